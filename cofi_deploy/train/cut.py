"""Fold masks into the weights and slice: the compact model.

In: a dense model and fixed masks. Out: a model of the smaller `Arch` with the same answers. The
weights come from the same functions that the masked forward pass computes with (folding.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cofi_deploy.errors import CheckpointError
from cofi_deploy.folding import (
    AttentionWeights,
    FfnWeights,
    Kept,
    NormWeights,
    fold_attention,
    fold_columns,
    fold_ffn,
    fold_norm,
    slice_columns,
)
from cofi_deploy.masks import Masks
from cofi_deploy.model import Attention, CofiConfig, CofiPreTrainedModel, FeedForward, build


def cut(model: CofiPreTrainedModel, masks: Masks) -> CofiPreTrainedModel:
    """The compact model that answers as ``model`` does under ``masks``.

    Raises:
        CheckpointError: ``model`` is compact already, or the masks do not fit it.
    """
    if not model.arch.is_dense:
        raise CheckpointError(
            f"only a dense model can be cut, this one has sparsity {model.arch.sparsity:.3f}"
        )
    arch = masks.arch(model.arch)
    config = CofiConfig(**{**model.config.to_dict(), "arch": arch.to_json()})
    compact = build(config)
    with torch.no_grad():
        compact.load_state_dict(dict(_cut_tensors(model, Kept.of(masks))), strict=True)
    compact.to(masks.hidden.device)  # type: ignore[arg-type]
    compact.train(model.training)
    return compact


def _cut_tensors(model: CofiPreTrainedModel, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    embeddings = model.encoder.embeddings
    for name in ("word", "position", "token_type"):
        table = getattr(embeddings, name).weight
        yield f"encoder.embeddings.{name}.weight", fold_columns(table, kept)
    norm = fold_norm(NormWeights(embeddings.norm.weight, embeddings.norm.bias), kept)
    yield from _norm_tensors("encoder.embeddings.norm", norm)
    for index, layer in enumerate(model.encoder.layers):
        prefix = f"encoder.layers.{index}"
        if isinstance(layer.attention, Attention):
            yield from _attention_tensors(f"{prefix}.attention", layer.attention, kept)
        if isinstance(layer.ffn, FeedForward):
            yield from _ffn_tensors(f"{prefix}.ffn", layer.ffn, kept)
    yield from _head_tensors(model, kept)


def _attention_tensors(
    prefix: str, attention: Attention, kept: Kept
) -> Iterator[tuple[str, Tensor]]:
    weights = fold_attention(attention.weights(), kept, attention.index, attention.head_size)
    if weights is not None:
        yield from _named(prefix, weights)


def _ffn_tensors(prefix: str, ffn: FeedForward, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    weights = fold_ffn(ffn.weights(), kept, ffn.index)
    if weights is not None:
        yield from _named(prefix, weights)


def _named(prefix: str, weights: AttentionWeights | FfnWeights) -> Iterator[tuple[str, Tensor]]:
    """`query` and `query_bias` of a tuple become `query.weight` and `query.bias` of a module."""
    for field, value in weights._asdict().items():
        if isinstance(value, NormWeights):
            yield from _norm_tensors(f"{prefix}.norm", value)
        elif field.endswith("_bias"):
            yield f"{prefix}.{field.removesuffix('_bias')}.bias", value
        else:
            yield f"{prefix}.{field}.weight", value


def _norm_tensors(prefix: str, norm: NormWeights) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.weight", norm.weight
    yield f"{prefix}.bias", norm.bias


def _head_tensors(model: CofiPreTrainedModel, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    """Maps that read the residual stream lose columns; the classifier behind a pooler does not."""
    readers = (
        {"pooler.weight"} if model.arch.pooler is not None and hasattr(model, "pooler") else set()
    )
    if not readers:
        readers = {"classifier.weight"}
    for name, tensor in model.state_dict().items():
        if not name.startswith("encoder."):
            yield name, slice_columns(tensor, kept) if name in readers else tensor
