"""Tiny models of every kind, written to disk with a real tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.kinds import TaskKind
from cofi_deploy.loading import save_compact
from cofi_deploy.model import CofiConfig, build
from tests.builders import bert_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS: dict[TaskKind, tuple[str, ...]] = {
    "text-classification": ("negative", "neutral", "positive"),
    "text-regression": (),
    "token-classification": ("O", "B-place", "I-place", "B-person"),
    "question-answering": (),
}
DENSE = DenseShape(layers=3, hidden=32, heads=4, ffn=64, head_size=8)
MAX_POSITIONS = 64

# Vanished sublayers, one head, odd widths.
UNEVEN = (LayerArch(heads=0, ffn=3), LayerArch(heads=1, ffn=0), LayerArch(heads=3, ffn=17))

WriteModel = Callable[..., Path]
RandomInputs = Callable[[int, int], dict[str, np.ndarray]]


def tiny_arch(layers: tuple[LayerArch, ...] = UNEVEN, hidden: int = 29, **changes: object) -> Arch:
    """A structure over `DENSE`; the vocabulary is that of `tiny_tokenizer`."""
    sizes = {
        "family": "bert",
        "vocab_size": len(_vocabulary()),
        "max_positions": MAX_POSITIONS,
        "type_vocab_size": 2,
        "hidden": hidden,
        "head_size": 8,
        "layers": layers,
        "dense": DENSE,
        "pooler": 32,
    }
    return Arch(**{**sizes, **changes})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over single characters, with BERT's special tokens and template."""
    return bert_tokenizer(_vocabulary(), max_length=MAX_POSITIONS)


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    """Write a compact model once for each kind and structure, and hand out its path."""
    made: dict[tuple[TaskKind, Arch], Path] = {}

    def write(kind: TaskKind = "text-classification", **structure: object) -> Path:
        arch = tiny_arch(**structure)
        if (kind, arch) not in made:
            folder = tmp_path_factory.mktemp("models") / "model"
            save_compact(_random_model(kind, arch), tiny_tokenizer(), folder)
            made[kind, arch] = folder
        return made[kind, arch]

    return write


@pytest.fixture(scope="session")
def dense_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers itself writes it."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        num_labels=3,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("dense") / "model"
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_directory(write_model: WriteModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX export of the uneven classifier; copy it before changing anything."""
    return export_onnx(write_model(), tmp_path_factory.mktemp("exports") / "onnx")


@pytest.fixture
def random_inputs() -> RandomInputs:
    """Ids, mask and types of a shape; row i has i tokens of padding."""

    def make(batch: int, length: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(batch * 1000 + length)
        mask = np.ones((batch, length), dtype=np.int64)
        for row in range(batch):
            mask[row, max(1, length - row) :] = 0
        return {
            "input_ids": generator.integers(5, len(_vocabulary()), (batch, length)) * mask,
            "attention_mask": mask,
            "token_type_ids": generator.integers(0, 2, (batch, length)) * mask,
        }

    return make


def _random_model(kind: TaskKind, arch: Arch):
    torch.manual_seed(7)
    model = build(CofiConfig.from_arch(arch, kind, labels=LABELS[kind])).eval()
    with torch.no_grad():
        # Larger than the initialisation, so that attention and biases matter to the answer.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def _vocabulary() -> dict[str, int]:
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    return {piece: index for index, piece in enumerate(pieces)}
