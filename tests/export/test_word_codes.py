"""Words of 6 and 2 bits: the bits they have, and errors where they matter least."""

from __future__ import annotations

import numpy as np
import pytest

from cofi_deploy.export import word_codes
from cofi_deploy.export.word_codes import packed, rounded_words


@pytest.mark.parametrize("width", [1, 6, 7, 8])
@pytest.mark.parametrize("fine", [0, 12, 20])
def test_fine_rows_have_6_bits_and_the_others_the_highest_two_of_them(width, fine):
    table = np.random.default_rng(0).standard_normal((20, width)).astype(np.float32)
    table[[3, 15]] = 0.0
    words = rounded_words(table, fine, np.eye(width))
    codes, scales = words.codes, words.scales
    assert (codes.dtype, codes.shape) == (np.uint8, table.shape)
    assert (scales.dtype, scales.shape) == (np.float32, (20, 1))
    assert ((codes > 0) & (codes < 64)).all()
    assert (codes[fine:] % 16 == 8).all()
    got = words.numbers()
    assert (got[[3, 15]] == 0).all()
    # At least as close as with the one scale that takes the largest value to the largest number.
    largest = np.abs(table).max(axis=1, keepdims=True)
    plain = np.where(largest > 0, largest / np.where(np.arange(20) < fine, 31, 24)[:, None], 1.0)
    steps = np.rint(table / plain)
    steps[fine:] = np.floor(table / plain)[fine:] // 16 * 16 + 8
    largest_step = np.square(steps.clip(-31, 31) * plain - table).sum(axis=1)
    assert (np.square(got - table).sum(axis=1) <= largest_step + 1e-6).all()


def test_more_bits_are_closer():
    table = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    got = rounded_words(table, 1000, np.eye(32)).numbers()
    error = np.sqrt(np.square(got - table).mean(axis=1))
    assert error[:1000].mean() < 0.04  # of a standard deviation
    assert 0.2 < error[1000:].mean() < 0.36  # the best four numbers of a Gaussian are off by 0.34


def importance_like(width, *, seed=0):
    """A few directions matter, as in real models; there half of the trace is in one of 300."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return directions * 0.7 ** np.arange(width) @ directions.T


@pytest.mark.parametrize("fine", [0, 200])
def test_what_the_importance_weighs_is_off_by_less_than_with_the_closest_numbers(fine):
    table = np.random.default_rng(1).standard_normal((200, 48)).astype(np.float32)
    importance = importance_like(48)
    errors = []
    for given_ in (np.eye(48), importance):
        error = rounded_words(table, fine, given_).numbers() - table
        errors.append(np.einsum("ri,ij,rj->r", error, importance, error).mean())
    closest, aware = errors
    assert aware < 0.35 * closest


def test_columns_are_rounded_as_one_after_the_other_would_be(monkeypatch):
    """Whole blocks of errors are passed on at once; that is the same sum."""
    table = np.random.default_rng(2).standard_normal((30, 48)).astype(np.float32)
    at_once = rounded_words(table, 10, importance_like(48))
    monkeypatch.setattr(word_codes, "_COLUMNS_AT_ONCE", 1)
    one_by_one = rounded_words(table, 10, importance_like(48))
    assert (at_once.codes != one_by_one.codes).mean() < 0.01  # ties, by the order of a sum
    np.testing.assert_array_equal(at_once.scales, one_by_one.scales)


@pytest.mark.parametrize(
    "importance",
    [np.zeros((8, 8)), np.diag([1.0, *[0.0] * 7]), np.full((8, 8), np.nan)],
)
def test_directions_without_importance_are_rounded_to_the_closest(importance):
    table = np.random.default_rng(3).standard_normal((20, 8)).astype(np.float32)
    got = rounded_words(table, 10, importance)
    np.testing.assert_array_equal(got.codes, rounded_words(table, 10, np.eye(8)).codes)


def test_a_table_of_few_bits_stays_as_it_is():
    table = rounded_words(
        np.random.default_rng(4).standard_normal((40, 12)).astype(np.float32), 0, np.eye(12)
    ).numbers()
    np.testing.assert_allclose(
        rounded_words(table, 0, importance_like(12)).numbers(), table, atol=1e-6
    )


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("width", [1, 6, 7, 8])
def test_packed_codes_have_the_first_columns_in_the_lowest_bits(width, bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, (5, width), dtype=np.uint8)
    stored = packed(codes, bits)
    count = 8 // bits
    assert (stored.dtype, stored.shape) == (np.uint8, (5, -(-width // count)))
    parts = [stored >> (bits * index) & (2**bits - 1) for index in range(count)]
    np.testing.assert_array_equal(np.hstack(parts)[:, :width], codes)
    assert not np.hstack(parts)[:, width:].any()
