"""Weights in fewer bits: what each number of a graph becomes, and the scales beside them.

Comes in: fp32 arrays. Goes out: what `graph_builder.py` stores. Nothing here knows of graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Range = tuple[float, float]  # smallest and largest value of a tensor

_INT8_MAX, _UINT8_MAX = 127, 255
# Two signed bytes of this sum, times the largest unsigned byte, fit into 16 bits: 128 * 255.
_PAIR_MAX = 128
_SCALES = 17


def quantized(value: Array, *, axis: int) -> tuple[Array, Array]:
    """Signed bytes and scales: ``value`` is about ``bytes * scales``.

    Args:
        value: Any shape.
        axis: Along which values share a scale; the scales keep it with size 1.
    """
    extremes = np.abs(value).max(axis=axis, keepdims=True)
    scales = np.where(extremes > 0, extremes / _INT8_MAX, 1.0).astype(np.float32)
    return np.rint(value / scales).astype(np.int8), scales


def columns_of(table: Array) -> Array:
    """What to divide the columns of a table by, (columns,), before its rows get their scales.

    The root mean square of each: a lone large number keeps a part of its weight. Columns of zeros
    are left as they are.
    """
    sizes = np.sqrt(np.square(table, dtype=np.float64).mean(axis=0)).astype(np.float32)
    return np.where(sizes > 0, sizes, np.float32(1.0))


def quantized_matrix(weight: Array) -> tuple[Array, Array]:
    """Like `quantized`, for a matrix (outputs, inputs) that is multiplied by unsigned bytes.

    Processors without VNNI add the products of inputs 2k and 2k + 1 in 16 bits, and cut off in
    silence what does not fit. So the two weights together stay within 128, which fits, and the
    artifact answers the same on every processor, whatever its session options are. Of several
    scales each output takes the one whose bytes are closest to its weights.

    Source:
        Intel's vpmaddubsw, which ONNX Runtime and oneDNN (OpenVINO) use for AVX2.
    """
    # At twice the smallest scale every pair fits as it is.
    return closest(weight, _pairs_that_fit, largest=_INT8_MAX, factors=(1.0, 2.0))


def closest(
    values: Array,
    rounded: Callable[[Array], Array],
    *,
    largest: int,
    factors: tuple[float, float],
) -> tuple[Array, Array]:
    """Rows as int8 and a scale for each, of several the one that is closest.

    Args:
        values: (rows, width).
        rounded: Numbers (rows, width) as those integers that there are.
        largest: Of those.
        factors: First and last of the scales that are tried, where 1 takes the largest value of a
            row to the largest integer.
    """
    extremes = np.abs(values).max(axis=1, keepdims=True)
    least = np.where(extremes > 0, extremes / largest, 1.0)
    best_numbers = np.zeros(values.shape, dtype=np.int8)
    best_scales = np.ones((len(values), 1), dtype=np.float32)
    best_error = np.full((len(values), 1), np.inf)
    for factor in np.linspace(*factors, _SCALES):
        scales = (factor * least).astype(np.float32)  # (rows, 1)
        numbers = rounded(values / scales).astype(np.int8)
        error = np.square(numbers * scales - values).sum(axis=1, keepdims=True)
        better = error < best_error
        best_numbers = np.where(better, numbers, best_numbers)
        best_scales = np.where(better, scales, best_scales)
        best_error = np.where(better, error, best_error)
    return best_numbers, best_scales


def _pairs_that_fit(values: Array) -> Array:
    return _fitting(np.rint(values).astype(np.int16))


def _fitting(rows: Array) -> Array:
    """Pairs that together are beyond 128 or -128 lose the rest, each about half of it."""
    even, odd = rows[:, : rows.shape[1] // 2 * 2 : 2], rows[:, 1::2]
    excess = np.maximum(np.abs(even + odd) - _PAIR_MAX, 0)  # other signs never reach it
    more, less = (excess + 1) // 2, excess // 2
    first_is_larger = np.abs(even) >= np.abs(odd)
    fitted = rows.copy()
    fitted[:, : rows.shape[1] // 2 * 2 : 2] -= np.sign(even) * np.where(first_is_larger, more, less)
    fitted[:, 1::2] -= np.sign(odd) * np.where(first_is_larger, less, more)
    return fitted


def affine(limits: Range) -> tuple[Array, Array]:
    """Scale and zero point that spread a range, widened to hold 0, over unsigned bytes."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = max((high - low) / _UINT8_MAX, float(np.finfo(np.float32).tiny))
    zero = np.clip(np.rint(-low / scale), 0, _UINT8_MAX)
    return np.asarray(scale, dtype=np.float32), np.asarray(zero, dtype=np.uint8)


def bfloat16_bits(value: Array) -> Array:
    """The bits of bfloat16, as uint16, of finite fp32 numbers."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2")
