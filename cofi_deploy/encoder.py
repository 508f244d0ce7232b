"""Embeddings, attention and feed-forward sublayers of an `Arch`, dense, masked or compact.

Post-LayerNorm, BERT's architecture and its relatives': where families differ, the `Arch` has a
size or a name for it. Head counts are constants of each layer, never inferred from
tensor shapes: a graph that reshapes with -1 lets optimizers fuse with a wrong count in silence.
A vanished sublayer is the identity: no residual, no LayerNorm. Next file: `model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cofi_deploy import products
from cofi_deploy.arch import Arch
from cofi_deploy.embeddings import Embeddings
from cofi_deploy.errors import CheckpointError
from cofi_deploy.folding import (
    AttentionWeights,
    FfnWeights,
    Kept,
    NormWeights,
    fold_attention,
    fold_ffn,
)
from cofi_deploy.masks import Masks

# Added to the scores of padding. Finite, so that a row of nothing but padding gives no NaN, and
# inside fp16's range (65504); exp(-1e4) is exactly 0 in fp32, so padding has no influence.
MASKED_SCORE = -1e4

Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class EncoderOutput(NamedTuple):
    """What the encoder gives; ``kept`` is None unless masks were applied."""

    last: Float[Tensor, "batch sequence kept_hidden"]
    states: tuple[Tensor, ...]  # embeddings, then each layer's output
    kept: Kept | None


class Encoder(nn.Module):
    """Embeddings and layers of an `Arch`."""

    def __init__(self, arch: Arch, dropout: float) -> None:
        """Allocate what the architecture keeps; weights are initialised by the model."""
        super().__init__()
        self.embeddings = Embeddings(arch, dropout)
        self.layers = nn.ModuleList(
            Layer(arch, index, dropout) for index in range(len(arch.layers))
        )

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"],
        token_type_ids: Int[Tensor, "batch sequence"],
        masks: Masks | None = None,
    ) -> EncoderOutput:
        """Run all layers; with ``masks``, on the sub-network that they leave."""
        kept = None if masks is None else Kept.of(masks)
        x = self.embeddings(input_ids, token_type_ids, kept)
        bias = (
            1.0 - attention_mask[:, None, None, :].to(x.dtype)
        ) * MASKED_SCORE  # (batch, 1, 1, sequence)
        states = [x]
        for layer in self.layers:
            x = layer(x, bias, kept)
            states.append(x)
        return EncoderOutput(x, tuple(states), kept)


class Layer(nn.Module):
    """One attention and one feed-forward sublayer, either of which may be gone."""

    def __init__(self, arch: Arch, index: int, dropout: float) -> None:
        """Only the kept sublayers get modules."""
        super().__init__()
        shape = arch.layers[index]
        self.attention = Attention(arch, index, dropout) if shape.heads else None
        self.ffn = FeedForward(arch, index, dropout) if shape.ffn else None

    def forward(self, x: Tensor, bias: Tensor, kept: Kept | None) -> Tensor:
        """States (batch, sequence, kept hidden) to states of the same shape."""
        if self.attention is not None:
            x = self.attention(x, bias, kept)
        if self.ffn is not None:
            x = self.ffn(x, kept)
        return x


class Attention(nn.Module):
    """Multi-head self-attention with residual and LayerNorm."""

    def __init__(self, arch: Arch, index: int, dropout: float) -> None:
        """``index`` is the layer's place, needed to look its masks up."""
        super().__init__()
        self.index = index
        self.heads = arch.layers[index].heads
        self.head_size = arch.head_size
        width = self.heads * self.head_size
        self.query = nn.Linear(arch.hidden, width)
        self.key = nn.Linear(arch.hidden, width)
        self.value = nn.Linear(arch.hidden, width)
        self.output = nn.Linear(width, arch.hidden)
        self.norm = nn.LayerNorm(arch.hidden, eps=arch.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def weights(self) -> AttentionWeights:
        """The layer's own parameters, unfolded."""
        return AttentionWeights(
            self.query.weight,
            self.query.bias,
            self.key.weight,
            self.key.bias,
            self.value.weight,
            self.value.bias,
            self.output.weight,
            self.output.bias,
            NormWeights(self.norm.weight, self.norm.bias),
        )

    def forward(self, x: Tensor, bias: Tensor, kept: Kept | None) -> Tensor:
        """Attend, add, normalise; the identity when the masks leave no head."""
        weights: AttentionWeights | None = self.weights()
        heads = self.heads
        if kept is not None:
            weights = fold_attention(self.weights(), kept, self.index, self.head_size)
            heads = kept.heads[self.index].numel()
        if weights is None:
            return x
        context = self._context(x, bias, weights, heads)
        out = products.linear(context, weights.output, weights.output_bias)
        return _layer_norm(self.dropout(out) + x, weights.norm, self.norm.eps)

    def _context(self, x: Tensor, bias: Tensor, weights: AttentionWeights, heads: int) -> Tensor:
        batch, length = x.shape[:2]
        shape = (batch, length, heads, self.head_size)
        projections = [
            (weights.query, weights.query_bias),
            (weights.key, weights.key_bias),
            (weights.value, weights.value_bias),
        ]
        query, key, value = (
            part.view(shape).transpose(1, 2) for part in products.linears(x, projections)
        )  # (batch, heads, sequence, head_size) each
        query = query * (1.0 / math.sqrt(self.head_size))
        scores = query @ key.transpose(-1, -2) + bias  # (batch, heads, sequence, sequence)
        context: Tensor = self.dropout(scores.softmax(dim=-1)) @ value
        return context.transpose(1, 2).reshape(batch, length, heads * self.head_size)


class FeedForward(nn.Module):
    """Two linear maps around an activation, with residual and LayerNorm."""

    def __init__(self, arch: Arch, index: int, dropout: float) -> None:
        """``index`` is the layer's place, needed to look its masks up."""
        super().__init__()
        self.index = index
        self.activation = activation_of(arch.activation)
        self.up = nn.Linear(arch.hidden, arch.layers[index].ffn)
        self.down = nn.Linear(arch.layers[index].ffn, arch.hidden)
        self.norm = nn.LayerNorm(arch.hidden, eps=arch.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def weights(self) -> FfnWeights:
        """The layer's own parameters, unfolded."""
        norm = NormWeights(self.norm.weight, self.norm.bias)
        return FfnWeights(self.up.weight, self.up.bias, self.down.weight, self.down.bias, norm)

    def forward(self, x: Tensor, kept: Kept | None) -> Tensor:
        """Feed forward, add, normalise; the identity when the masks leave no unit."""
        weights: FfnWeights | None = self.weights()
        if kept is not None:
            weights = fold_ffn(self.weights(), kept, self.index)
        if weights is None:
            return x
        inner = self.activation(products.linear(x, weights.up, weights.up_bias))
        out = self.dropout(products.linear(inner, weights.down, weights.down_bias))
        return _layer_norm(out + x, weights.norm, self.norm.eps)


def activation_of(name: str) -> Activation:
    """The function that an `Arch` names.

    Raises:
        CheckpointError: There is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"activation is {name!r}, allowed: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _layer_norm(x: Tensor, norm: NormWeights, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, eps)
