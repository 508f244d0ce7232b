"""Fold masks into the weights and slice: the compact model.

In: a dense model and fixed masks. Out: a model of the smaller `Arch` with the same answers. The
weights come from the same functions that the masked forward pass computes with (folding.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cofi_deploy.embeddings import Embeddings
from cofi_deploy.encoder import Attention, FeedForward
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
    fold_rows,
    slice_columns,
)
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build


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
    yield from _embedding_tensors("encoder.embeddings", model.encoder.embeddings, kept)
    for index, layer in enumerate(model.encoder.layers):
        prefix = f"encoder.layers.{index}"
        if isinstance(layer.attention, Attention):
            yield from _attention_tensors(f"{prefix}.attention", layer.attention, kept)
        if isinstance(layer.ffn, FeedForward):
            yield from _ffn_tensors(f"{prefix}.ffn", layer.ffn, kept)
    yield from _head_tensors(model, kept)


def _embedding_tensors(
    prefix: str, embeddings: Embeddings, kept: Kept
) -> Iterator[tuple[str, Tensor]]:
    """Tables in the residual stream lose columns; those behind a map stay, the map loses rows."""
    project = embeddings.project
    for name in ("word", "position", "token_type"):
        table = getattr(embeddings, name)
        if table is not None:
            weight = fold_columns(table.weight, kept) if project is None else table.weight
            yield f"{prefix}.{name}.weight", weight
    norm = NormWeights(embeddings.norm.weight, embeddings.norm.bias)
    yield from _norm_tensors(f"{prefix}.norm", fold_norm(norm, kept) if project is None else norm)
    if project is not None:
        weight, bias = fold_rows(project.weight, project.bias, kept)
        yield f"{prefix}.project.weight", weight
        yield f"{prefix}.project.bias", bias


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
