"""A dense and an uneven pruned classifier, exported for every runtime that is here, and a task."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.loading import load, save_compact, save_dense
from cofi_deploy.model import CofiConfig, build
from cofi_deploy.serve.bench import BenchSettings
from cofi_deploy.serve.inputs import InputLimits, random_inputs
from cofi_deploy.serve.latency import OperatingPoint, Schedule
from cofi_deploy.serve.subject import Subject
from cofi_deploy.tasks import load_task
from tests.builders import bert_tokenizer

LABELS = ("negative", "neutral", "positive")
SIZES = DenseShape(layers=2, hidden=16, heads=4, ffn=32, head_size=4)
FULL = (LayerArch(heads=4, ffn=32),) * 2
# One layer without attention, odd widths.
UNEVEN = (LayerArch(heads=0, ffn=5), LayerArch(heads=3, ffn=7))
MAX_POSITIONS = 40


def arch_of(layers: tuple[LayerArch, ...], hidden: int) -> Arch:
    return Arch(
        family="bert",
        vocab_size=len(vocabulary()),
        max_positions=MAX_POSITIONS,
        type_vocab_size=2,
        hidden=hidden,
        head_size=4,
        layers=layers,
        dense=SIZES,
        pooler=16,
    )


def vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    return {piece: index for index, piece in enumerate(pieces)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    return bert_tokenizer(vocabulary(), max_length=MAX_POSITIONS)


def random_model(arch: Arch):
    torch.manual_seed(3)
    model = build(CofiConfig.from_arch(arch, "text-classification", labels=LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="session")
def subjects(tmp_path_factory) -> dict[str, Subject]:
    """``dense`` and ``pruned``, each with a model directory and two exports."""
    root = tmp_path_factory.mktemp("models")
    save_dense(random_model(arch_of(FULL, 16)), make_tokenizer(), root / "dense")
    save_compact(random_model(arch_of(UNEVEN, 13)), make_tokenizer(), root / "pruned")
    made = {}
    for label in ("dense", "pruned"):
        artifacts = {
            "torch": root / label,
            "onnxruntime-cpu": export_onnx(root / label, root / f"{label}-onnx"),
            "openvino": export_openvino(root / label, root / f"{label}-openvino"),
        }
        made[label] = Subject(label=label, artifacts=artifacts)
    return made


@pytest.fixture(scope="session")
def pruned(subjects) -> Subject:
    return subjects["pruned"]


@pytest.fixture(scope="session")
def limits(pruned) -> InputLimits:
    return InputLimits.from_arch(load(pruned.artifacts["torch"]).arch)


@pytest.fixture
def padded_inputs(limits):
    """Three rows of 11 tokens, padded by 0, 3 and 7."""
    inputs = random_inputs(limits, 3, 11, seed=1)
    for row, padding in enumerate((0, 3, 7)):
        inputs["attention_mask"][row, 11 - padding :] = 0
        inputs["token_type_ids"][row, 4 : 11 - padding] = 1
    return inputs


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """60 labelled texts in the validation split; some pairs of words carry markup."""
    draw = random.Random(0)
    words = ["good", "bad", "fine", "dull", "film", "river", "tale", "<b>bold</b> & co"]
    rows = [
        f"{' '.join(draw.choices(words, k=draw.randint(1, 4)))} {number}\t{draw.choice(LABELS)}"
        for number in range(300)
    ]
    path = tmp_path_factory.mktemp("data") / "data.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return load_task("text-classification", data=str(path), max_length=MAX_POSITIONS)


@pytest.fixture
def quick(monkeypatch):
    """Settings that measure next to nothing, so that tests are quick; timings mean nothing.

    The load of the machine is not judged: tests run beside other work.
    """
    monkeypatch.setattr("cofi_deploy.serve.conditions.MIN_WINDOW_S", float("inf"))

    def settings(*runtimes: str, points: tuple[str, ...] = ("2x8", "1xtask"), **changes):
        return BenchSettings(
            **{
                "runtimes": runtimes,
                "points": tuple(OperatingPoint.parse(point) for point in points),
                "threads": 1,
                "schedule": Schedule(min_repeats=3, max_seconds=0.0),
                "fresh_process": False,
                **changes,
            }
        )

    return settings
