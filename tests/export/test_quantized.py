"""Rounding to few bits: within half a step, zero stays zero, and the bits are those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cofi_deploy.export.quantized import (
    affine,
    bfloat16_bits,
    columns_of,
    quantized,
    quantized_matrix,
)

NUMBERS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
MATRICES = arrays(np.float32, (3, 5), elements=NUMBERS)


@given(MATRICES)
def test_signed_bytes_are_within_half_a_step_of_each_rows_own_scale(values):
    rows, scales = quantized(values, axis=1)
    assert rows.dtype == np.int8
    assert scales.shape == (3, 1)
    assert np.abs(rows.astype(int)).max() <= 127
    error = np.abs(rows * scales - values)
    assert (error <= 0.501 * scales).all()


def test_a_row_of_zeros_stays_zero():
    rows, scales = quantized(np.zeros((2, 4), np.float32), axis=1)
    assert not rows.any()
    assert (scales == 1.0).all()


def test_scales_of_columns_spare_a_row_one_large_number():
    """As position 0 of BERT has it: 1.8 in one column, where all else is about 0.05."""
    table = np.random.default_rng(0).normal(scale=0.05, size=(512, 64)).astype(np.float32)
    table[0, 7] = 1.8
    columns = columns_of(table)
    (plain, plain_scales), (fine, scales) = (
        quantized(table, axis=1),
        quantized(table / columns, axis=1),
    )
    errors = [np.abs(plain * plain_scales - table), np.abs(fine * scales * columns - table)]
    assert errors[1][0].mean() < 0.6 * errors[0][0].mean()
    assert errors[1].mean() < 1.1 * errors[0].mean()


def test_columns_of_zeros_are_divided_by_one():
    assert columns_of(np.array([[0.0, 3.0], [0.0, 4.0]], np.float32)) == pytest.approx(
        [1.0, 12.5**0.5]
    )


@given(st.tuples(NUMBERS, NUMBERS).map(sorted))
def test_unsigned_bytes_hold_the_range_and_zero_exactly(limits):
    scale, zero = affine(tuple(limits))
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    assert (0 - float(zero)) * scale <= low + 0.51 * scale
    assert (255 - float(zero)) * scale >= high - 0.51 * scale


@given(arrays(np.float32, 20, elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_bfloat16_is_rounded_like_torch_does(values):
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(bfloat16_bits(values).view(np.int16), expected)


@pytest.mark.parametrize("limits", [(0.0, 0.0), (-1.0, -1.0), (2.0, 2.0)])
def test_a_range_without_width_has_a_scale(limits):
    scale, zero = affine(limits)
    assert scale > 0
    assert 0 <= zero <= 255


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 33), st.sampled_from([1.0, 9.0])
)
def test_neighbouring_bytes_of_a_matrix_never_overflow_16_bits(seed, outputs, inputs, tail):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(outputs, inputs)) * tail ** rng.random((outputs, inputs))).astype(
        np.float32
    )
    weight[0] = 0.0
    rows, scales = quantized_matrix(weight)
    assert rows.dtype == np.int8
    assert scales.shape == (outputs, 1)
    padded = np.pad(rows.astype(int), ((0, 0), (0, inputs % 2)))
    assert np.abs(padded[:, ::2] + padded[:, 1::2]).max() * 255 <= 2**15 - 1
    # Never further off than half of the bytes would be.
    coarse = np.abs(weight).max(axis=1, keepdims=True) / 63.5
    error = np.square(rows * scales - weight).sum(axis=1)
    assert (error <= inputs * np.square(coarse[:, 0]) / 4 + 1e-9).all()
