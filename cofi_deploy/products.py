"""Linear maps; in bf16 on a CPU, of widths that repeat from step to step.

Under masks nearly every step has other widths, and oneDNN compiles a kernel for each new shape,
which takes longer than the product itself; odd widths are also multiplied at half the speed
(benchmarks/train_throughput.py). So weights and states are widened with zeros to the next multiple
while they are converted to bf16, which they are anyway. Zeros change no sum. Used by `encoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# A row of an AMX tile holds 32 bf16 numbers; wide matrices lose little by a coarser step.
_FINE, _COARSE, _WIDE = 32, 64, 256

Map = tuple[Tensor, Tensor]  # weight (out, in), bias (out,)


def linear(
    x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]
) -> Float[Tensor, "*rows out"]:
    """`torch.nn.functional.linear`; under bf16 autocast on a CPU, through `_Widened`."""
    return linears(x, [(weight, bias)])[0]


def linears(x: Float[Tensor, "*rows in"], maps: Sequence[Map]) -> list[Tensor]:
    """Several linear maps of the same states: one product where they are widened.

    Args:
        x: States.
        maps: Weight (out, in) and bias (out,) of each.

    Returns:
        (*rows, out) for each map; under autocast in its type.
    """
    if not _are_widened(x):
        return [F.linear(x, weight, bias) for weight, bias in maps]
    rows = x.reshape(-1, x.shape[-1])
    parts = _Widened.apply(rows, *(tensor for each in maps for tensor in each))  # type: ignore[no-untyped-call]
    return [part.view(*x.shape[:-1], part.shape[-1]) for part in parts]


def _are_widened(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


class _Widened(torch.autograd.Function):
    """x W^T + b for weights side by side, on widened bf16 copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, biases = tensors[::2], tensors[1::2]
        ends = list(accumulate((weight.shape[0] for weight in weights), initial=0))
        wide_x, wide_weight = _widened(x), _stacked(weights, ends)
        ctx.save_for_backward(wide_x, wide_weight)
        ctx.inputs, ctx.ends = x.shape[1], ends
        ctx.dtypes = [tensor.dtype for tensor in (x, *tensors)]
        out = wide_x @ wide_weight.T  # (rows, widened sum of all out)
        places = zip(pairwise(ends), biases, strict=True)
        return tuple(out[:, low:high] + bias.to(out.dtype) for (low, high), bias in places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide_x, wide_weight = ctx.saved_tensors
        wide = wide_x.new_zeros(wide_x.shape[0], wide_weight.shape[0])
        for (low, high), grad in zip(pairwise(ctx.ends), grads, strict=True):
            wide[:, low:high] = grad
        inputs, (x_dtype, *dtypes) = ctx.inputs, ctx.dtypes
        weight_grads = (wide.T @ wide_x)[:, :inputs]
        found: list[Tensor | None] = [None]
        if ctx.needs_input_grad[0]:  # frozen embeddings lead into a cut model's first layer
            found = [(wide @ wide_weight)[:, :inputs].to(x_dtype)]
        for index, (low, high) in enumerate(pairwise(ctx.ends)):
            found.append(weight_grads[low:high].to(dtypes[2 * index]))
            found.append(grads[index].sum(0, dtype=dtypes[2 * index + 1]))
        return tuple(found)


def _widened(x: Tensor) -> Tensor:
    """A bf16 copy (rows, widened columns)."""
    rows, width = x.shape
    if width == _next(width):
        return x.to(torch.bfloat16)
    wide = torch.zeros(rows, _next(width), dtype=torch.bfloat16)
    wide[:, :width] = x
    return wide


def _stacked(weights: Sequence[Tensor], ends: Sequence[int]) -> Tensor:
    """bf16 copies of the weights below each other: (widened sum of all out, widened in)."""
    inputs = weights[0].shape[1]
    wide = torch.zeros(_next(ends[-1]), _next(inputs), dtype=torch.bfloat16)
    for (low, high), weight in zip(pairwise(ends), weights, strict=True):
        wide[low:high, :inputs] = weight
    return wide


def _next(width: int) -> int:
    multiple = _FINE if width <= _WIDE else _COARSE
    return -(-width // multiple) * multiple
