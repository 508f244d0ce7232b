"""The weights that remain under masks: folded (scaled by soft mask values) and sliced.

One set of functions serves both uses, which is why a masked and a cut model agree: the masked
forward pass of training computes with what these return (differentiably, weights of dead units
are never touched), and `train/cut.py` stores what these return as the compact model.

Exact folding rule (cofi-spec 5.1): the embedding tables, the rows of W_O and W_D with their
biases, and the affine weights of every LayerNorm are scaled by the hidden mask; consumers of the
residual stream are only sliced. Where a map leads from the embeddings into the residual stream
(ELECTRA), its rows and bias are scaled instead of the tables. Differs from reference: it scaled
consumers instead, and left b_D out, which is wrong by up to 17 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cofi_deploy.masks import Masks


class NormWeights(NamedTuple):
    """Affine weights of a LayerNorm over the kept dimensions."""

    weight: Tensor  # (hidden,)
    bias: Tensor  # (hidden,)


class AttentionWeights(NamedTuple):
    """Weights of an attention sublayer; ``width`` is heads * head_size."""

    query: Tensor  # (width, hidden)
    query_bias: Tensor  # (width,)
    key: Tensor  # (width, hidden)
    key_bias: Tensor  # (width,)
    value: Tensor  # (width, hidden)
    value_bias: Tensor  # (width,)
    output: Tensor  # (hidden, width)
    output_bias: Tensor  # (hidden,)
    norm: NormWeights


class FfnWeights(NamedTuple):
    """Weights of a feed-forward sublayer."""

    up: Tensor  # (ffn, hidden)
    up_bias: Tensor  # (ffn,)
    down: Tensor  # (hidden, ffn)
    down_bias: Tensor  # (hidden,)
    norm: NormWeights


@dataclass(frozen=True, eq=False)
class Kept:
    """Indices of what ``masks`` leave, worked out once per step.

    Reading them costs one copy to the host; the forward pass itself then never synchronizes.
    """

    masks: Masks
    hidden: Tensor  # (kept hidden,)
    heads: tuple[Tensor, ...]  # per layer (kept heads,)
    ffn: tuple[Tensor, ...]  # per layer (kept ffn,)

    @classmethod
    def of(cls, masks: Masks) -> Kept:
        """Find the nonzero entries of every family; a layer's switch counts for its units."""
        device = masks.hidden.device
        heads = (masks.heads * masks.attn_block[:, None]).detach().cpu()
        ffn = (masks.ffn * masks.ffn_block[:, None]).detach().cpu()
        hidden = masks.hidden.detach().cpu()
        return cls(
            masks=masks,
            hidden=hidden.nonzero().flatten().to(device),
            heads=tuple(row.nonzero().flatten().to(device) for row in heads),
            ffn=tuple(row.nonzero().flatten().to(device) for row in ffn),
        )

    @property
    def hidden_scale(self) -> Tensor:
        """Soft values of the kept hidden dimensions, (kept hidden,)."""
        return self.masks.hidden[self.hidden]


def fold_columns(table: Tensor, kept: Kept) -> Tensor:
    """Embedding rows (..., hidden) under the hidden mask: (..., kept hidden)."""
    return _select(table, -1, kept.hidden) * kept.hidden_scale


def slice_columns(weight: Tensor, kept: Kept) -> Tensor:
    """Weight (out, hidden) of a consumer of the residual stream: (out, kept hidden)."""
    return _select(weight, 1, kept.hidden)


def fold_rows(weight: Tensor, bias: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """Map (hidden, in) into the residual stream: (kept hidden, in), (kept hidden,)."""
    scale = kept.hidden_scale
    rows = _select(weight, 0, kept.hidden) * scale[:, None]
    return rows, _select(bias, 0, kept.hidden) * scale


def fold_norm(norm: NormWeights, kept: Kept) -> NormWeights:
    """LayerNorm over kept dimensions whose output carries the hidden mask."""
    scale = kept.hidden_scale
    return NormWeights(
        _select(norm.weight, 0, kept.hidden) * scale, _select(norm.bias, 0, kept.hidden) * scale
    )


def fold_attention(
    weights: AttentionWeights, kept: Kept, layer: int, head_size: int
) -> AttentionWeights | None:
    """Attention of ``layer`` under the masks; None when no head is left."""
    heads = kept.heads[layer]
    if heads.numel() == 0:
        return None
    offsets = torch.arange(head_size, device=heads.device)
    rows = (heads[:, None] * head_size + offsets).flatten()  # (width,)
    masks = kept.masks
    head_scale = masks.heads[layer][heads].repeat_interleave(head_size)  # (width,)
    out_scale = masks.attn_block[layer] * kept.hidden_scale  # (kept hidden,)
    output = _select(_select(weights.output, 0, kept.hidden), 1, rows)
    return AttentionWeights(
        query=_slice_both(weights.query, rows, kept),
        query_bias=_select(weights.query_bias, 0, rows),
        key=_slice_both(weights.key, rows, kept),
        key_bias=_select(weights.key_bias, 0, rows),
        value=_slice_both(weights.value, rows, kept),
        value_bias=_select(weights.value_bias, 0, rows),
        output=out_scale[:, None] * output * head_scale,
        output_bias=out_scale * _select(weights.output_bias, 0, kept.hidden),
        norm=fold_norm(weights.norm, kept),
    )


def fold_ffn(weights: FfnWeights, kept: Kept, layer: int) -> FfnWeights | None:
    """Feed-forward sublayer of ``layer`` under the masks; None when no unit is left."""
    units = kept.ffn[layer]
    if units.numel() == 0:
        return None
    masks = kept.masks
    out_scale = masks.ffn_block[layer] * kept.hidden_scale  # (kept hidden,)
    down = _select(_select(weights.down, 0, kept.hidden), 1, units)
    return FfnWeights(
        up=_slice_both(weights.up, units, kept),
        up_bias=_select(weights.up_bias, 0, units),
        down=out_scale[:, None] * down * masks.ffn[layer][units],
        down_bias=out_scale * _select(weights.down_bias, 0, kept.hidden),
        norm=fold_norm(weights.norm, kept),
    )


def _slice_both(weight: Tensor, rows: Tensor, kept: Kept) -> Tensor:
    return _select(_select(weight, 0, rows), 1, kept.hidden)


def _select(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    """``index_select`` that costs nothing when everything is kept."""
    return tensor if index.numel() == tensor.shape[axis] else tensor.index_select(axis, index)
