"""Tiny models, masks and inputs of every kind, for the tests of the method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build
from cofi_deploy.tasks import EncodedSplit
from cofi_deploy.tasks.encoding import offsets_of

BERT_BASE = DenseShape(layers=12, hidden=768, heads=12, ffn=3072, head_size=64)
SMALL = DenseShape(layers=3, hidden=24, heads=3, ffn=20, head_size=8)
VOCABULARY = 60
MAX_POSITIONS = 40
LABELS: dict[TaskKind, tuple[str, ...]] = {
    "text-classification": ("negative", "neutral", "positive"),
    "text-regression": (),
    "token-classification": ("O", "B-place", "I-place", "B-person"),
    "question-answering": (),
}


def in_transformers(
    tokenizer: Tokenizer, *, max_length: int, **words: Any
) -> PreTrainedTokenizerFast:
    """As a model's tokenizer, with BERT's names of the special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        **words,
    )


def bert_tokenizer(
    vocabulary: Mapping[str, int], *, max_length: int, lowercase: bool = True, **words: Any
) -> PreTrainedTokenizerFast:
    """BERT's pipeline of normaliser, words and pieces, with its special tokens and template."""
    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return in_transformers(tokenizer, max_length=max_length, **words)


def dense_arch(shape: DenseShape = SMALL, **changes: object) -> Arch:
    """The unpruned `Arch` of a shape."""
    sizes: dict[str, object] = {
        "family": "bert",
        "vocab_size": VOCABULARY,
        "max_positions": MAX_POSITIONS,
        "type_vocab_size": 2,
        "hidden": shape.hidden,
        "head_size": shape.head_size,
        "layers": (LayerArch(heads=shape.heads, ffn=shape.ffn),) * shape.layers,
        "dense": shape,
        "pooler": shape.hidden,
    }
    return Arch(**{**sizes, **changes})


def random_model(
    kind: TaskKind,
    arch: Arch | None = None,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    deviation: float = 0.2,
) -> CofiPreTrainedModel:
    """A model whose every tensor matters to the answer: biases and LayerNorms are random too.

    The same in every test and process, and PyTorch's own generator is left as it was.
    """
    config = CofiConfig.from_arch(arch or dense_arch(), kind, labels=LABELS[kind], dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise * deviation)
    return model.eval()


def random_inputs(
    *,
    lengths: Sequence[int] = (9, 4, 1, 7),
    width: int | None = None,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
) -> dict[str, Tensor]:
    """Right-padded ids with random token types; padding has id 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(lengths))
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.randint(1, vocabulary, shape, generator=generator) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, shape, generator=generator) * mask,
    }


def random_split(lengths: Sequence[int], kind: TaskKind, *, seed: int = 0) -> EncodedSplit:
    """An encoded split of random tokens with targets that fit the kind."""
    rng = np.random.default_rng(seed)
    total, count = sum(lengths), len(lengths)
    targets: dict[str, np.ndarray] = {}
    if kind == "text-classification":
        targets["labels"] = rng.integers(0, 3, count)
    if kind == "text-regression":
        targets["labels"] = rng.random(count, dtype=np.float32)
    if kind == "question-answering":
        targets = {name: rng.integers(0, lengths) for name in ("start_positions", "end_positions")}
    return EncodedSplit(
        name="train",
        examples=(),
        input_ids=rng.integers(1, VOCABULARY, total).astype(np.int32),
        token_type_ids=rng.integers(0, 2, total).astype(np.int8),
        offsets=offsets_of(lengths),
        pad_token_id=0,
        targets=targets,
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer of `VOCABULARY` entries, enough to save beside a model."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{index}" for index in range(VOCABULARY - len(words))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return in_transformers(tokenizer, max_length=MAX_POSITIONS)


def masks_of(
    shape: DenseShape,
    *,
    hidden: int | None = None,
    heads: Sequence[int] | None = None,
    ffn: Sequence[int] | None = None,
    attn_off: Sequence[int] = (),
    ffn_off: Sequence[int] = (),
    soft: bool = True,
    seed: int = 0,
) -> Masks:
    """Masks that keep so many randomly chosen units: all of them where nothing is said.

    Args:
        shape: Of the dense model.
        hidden: Kept dimensions of the residual stream.
        heads: Kept heads of every layer.
        ffn: Kept FFN units of every layer.
        attn_off: Layers whose attention switch is zero.
        ffn_off: Layers whose feed-forward switch is zero.
        soft: Kept values lie in [0.3, 1) instead of being 1.
        seed: Of the choice.
    """
    generator = torch.Generator().manual_seed(seed)

    def values(size: int) -> Tensor:
        return 0.3 + 0.7 * torch.rand(size, generator=generator) if soft else torch.ones(size)

    def some(size: int, kept: int) -> Tensor:
        chosen = torch.zeros(size)
        chosen[torch.randperm(size, generator=generator)[:kept]] = 1.0
        return values(size) * chosen

    def switches(off: Sequence[int]) -> Tensor:
        on = torch.tensor([float(index not in off) for index in range(shape.layers)])
        return values(shape.layers) * on

    return Masks(
        hidden=some(shape.hidden, shape.hidden if hidden is None else hidden),
        heads=torch.stack([some(shape.heads, n) for n in heads or [shape.heads] * shape.layers]),
        ffn=torch.stack([some(shape.ffn, n) for n in ffn or [shape.ffn] * shape.layers]),
        attn_block=switches(attn_off),
        ffn_block=switches(ffn_off),
    )


@st.composite
def any_masks(
    draw: st.DrawFn, shape: DenseShape, *, soft: bool | None = None, min_hidden: int = 1
) -> Masks:
    """Masks of every structure: vanished units, sublayers and layers, hard or soft."""
    layers = st.integers(0, shape.layers - 1)

    def counts(size: int) -> list[int]:
        few = st.sampled_from(sorted({0, 1, size}))
        return draw(
            st.lists(few | st.integers(0, size), min_size=shape.layers, max_size=shape.layers)
        )

    return masks_of(
        shape,
        hidden=draw(st.just(shape.hidden) | st.integers(min_hidden, shape.hidden)),
        heads=counts(shape.heads),
        ffn=counts(shape.ffn),
        attn_off=draw(st.lists(layers, unique=True)),
        ffn_off=draw(st.lists(layers, unique=True)),
        soft=draw(st.booleans()) if soft is None else soft,
        seed=draw(st.integers(0, 2**16)),
    )


def as_double(masks: Masks) -> Masks:
    """The same masks in float64."""
    return Masks(**{field.name: getattr(masks, field.name).double() for field in fields(masks)})


@contextmanager
def float64_modules() -> Iterator[None]:
    """Modules built inside are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def max_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest absolute difference between two mappings of the same tensors."""
    assert set(a) == set(b)
    return max(float((a[name].double() - b[name].double()).abs().max().detach()) for name in a)
