"""Weights in fewer bits: what each number of a graph becomes, and the scales beside them.

Comes in: fp32 arrays. Goes out: what `graph_builder.py` stores. Nothing here knows of graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.export.numerics import Range

Array = npt.NDArray[Any]

_INT8_MAX, _UINT8_MAX = 127, 255
# Two signed bytes of this sum, times the largest unsigned byte, fit into 16 bits: 128 * 255.
_PAIR_MAX = 128
_SCALES = 17
_NIBBLE_MAX, NIBBLE_ZERO = 7, 8  # a signed number of 4 bits, and what it is stored above


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


def nibbles(table: Array) -> tuple[Array, Array]:
    """Rows of signed 4-bit numbers, two in a byte, and a scale for each row.

    The first half of a row is in the lower bits, the second in the upper ones; a row of odd width
    ends with a 0. Of several scales each row takes the one whose numbers are closest to it.

    Args:
        table: (rows, width).

    Returns:
        Unsigned bytes (rows, width / 2 rounded up), scales (rows, 1).
    """
    least = np.abs(table).max(axis=1, keepdims=True) / _NIBBLE_MAX
    least = np.where(least > 0, least, 1.0)
    best_numbers = np.zeros(table.shape, dtype=np.int8)
    best_scales = np.ones_like(least, dtype=np.float32)
    best_error = np.full(least.shape, np.inf)
    for factor in np.linspace(0.5, 1.0, _SCALES):
        scales = (factor * least).astype(np.float32)  # (rows, 1)
        numbers = np.rint(table / scales).clip(-_NIBBLE_MAX, _NIBBLE_MAX).astype(np.int8)
        error = np.square(numbers * scales - table).sum(axis=1, keepdims=True)
        better = error < best_error
        best_numbers = np.where(better, numbers, best_numbers)
        best_scales = np.where(better, scales, best_scales)
        best_error = np.where(better, error, best_error)
    padded = np.pad(best_numbers, ((0, 0), (0, table.shape[1] % 2))) + np.int8(NIBBLE_ZERO)
    low, high = np.split(padded.astype(np.uint8), 2, axis=1)
    return low | (high << np.uint8(4)), best_scales


def numbers_of_nibbles(packed: Array, scales: Array, width: int) -> Array:
    """The fp32 table, (rows, ``width``), that `nibbles` stored: what a graph computes with."""
    numbers = np.concatenate([packed & 15, packed >> 4], axis=1)[:, :width].astype(np.float32)
    table: Array = (numbers - NIBBLE_ZERO) * scales
    return table


def quantized_matrix(weight: Array) -> tuple[Array, Array]:
    """Like `quantized`, for a matrix (outputs, inputs) that is multiplied by unsigned bytes.

    Processors without VNNI add the products of inputs 2k and 2k + 1 in 16 bits, and cut off in
    silence what does not fit. So the two weights together stay within 128, which fits, and the
    artifact answers the same on every processor, whatever its session options are. Of several
    scales each output takes the one whose bytes are closest to its weights.

    Source:
        Intel's vpmaddubsw, which ONNX Runtime and oneDNN (OpenVINO) use for AVX2.
    """
    least = np.where(weight.any(axis=1, keepdims=True), np.abs(weight), 1.0).max(axis=1) / _INT8_MAX
    best_rows = np.zeros(weight.shape, dtype=np.int8)
    best_scales = np.ones((len(weight), 1), dtype=np.float32)
    best_error = np.full((len(weight), 1), np.inf)
    for factor in np.linspace(1.0, 2.0, _SCALES):  # at 2 every pair fits as it is
        scales = (factor * least[:, None]).astype(np.float32)  # (outputs, 1)
        rows = _fitting(np.rint(weight / scales).astype(np.int16))
        error = np.square(rows * scales - weight).sum(axis=1, keepdims=True)
        better = error < best_error
        best_rows = np.where(better, rows, best_rows).astype(np.int8)
        best_scales = np.where(better, scales, best_scales)
        best_error = np.where(better, error, best_error)
    return best_rows, best_scales


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
