"""Word embeddings of 6 and 2 bits, rounded so that what a model makes of them stays the same.

Comes in: a table and how much each direction in it matters. Goes out: what `graph_builder.py`
stores. Which tables are rounded so is decided in `word_bits.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cofi_deploy.export.quantized import Array, closest

CODE_ZERO = 32  # what a signed number of 6 bits is stored above

# Of the mean importance, added to each direction: those that no text has shown count for a little.
# On SST-2 and MRPC a third of it or three times as much made no difference.
_DAMPING = 0.03
_COLUMNS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class WordCodes:
    """A table of word embeddings in few bits.

    Attributes:
        codes: uint8 (rows, width), from 1 to 63 in the first ``fine`` rows; 8, 24, 40 or 56 in the
            others, which differ in their two highest bits alone, so that the other four are stored
            for fine rows only.
        scales: fp32 (rows, 1); 0 for rows of zeros.
        fine: How many rows, the first ones, have 6 bits for each number; the others have 2.
    """

    codes: Array
    scales: Array
    fine: int

    def numbers(self) -> Array:
        """The fp32 table that a graph computes with, (rows, width)."""
        table: Array = (self.codes.astype(np.float32) - CODE_ZERO) * self.scales
        return table


def rounded_words(table: Array, fine: int, importance: Array) -> WordCodes:
    """Codes of 6 bits for the first rows of a table and of 2 bits for the others.

    Numbers are rounded column by column, those that matter most first. What each loses is made up
    for, as far as it goes, by those of its row that come later, so that the error lies where it
    matters least.

    Args:
        table: (rows, width).
        fine: How many rows, the first ones, get 6 bits.
        importance: (width, width): an error ``e`` of a row changes answers by ``e @ importance @
            e`` in the mean square. With the identity every number becomes the closest that there
            is.

    Source:
        Frantar et al. 2023, GPTQ (arXiv:2210.17323), section 3: there with the products of
        activations in place of the importance.
    """
    table = table.astype(np.float32)
    scales = np.concatenate(
        [
            closest(table[:fine], _fine_numbers, largest=CODE_ZERO - 1, factors=(0.5, 1.0))[1],
            closest(table[fine:], _coarse_numbers, largest=24, factors=(0.25, 1.0))[1],
        ]
    )
    order, passed_on = _shares_of_errors(importance)
    steps = table[:, order] / scales
    numbers = np.empty_like(steps)
    numbers[:fine, order] = _rounded_in_turn(steps[:fine], _fine_numbers, passed_on)
    numbers[fine:, order] = _rounded_in_turn(steps[fine:], _coarse_numbers, passed_on)
    return WordCodes(
        codes=(numbers + CODE_ZERO).astype(np.uint8),
        scales=np.where(table.any(axis=1, keepdims=True), scales, np.float32(0.0)),
        fine=fine,
    )


def _shares_of_errors(importance: Array) -> tuple[Array, Array]:
    """The order to round columns in, and how much of the error of each goes to later ones.

    Returns:
        Columns, the most important first, and an upper triangular matrix in that order with ones on
        its diagonal: row i times the error of column i is what the columns from i on lose by it.
    """
    width = len(importance)
    mean = np.trace(importance) / width
    if not 0 < mean < np.inf:  # answers that no word changes, or that are no numbers
        return np.arange(width), np.eye(width, dtype=np.float32)
    damped = importance / mean + _DAMPING * np.eye(width)
    order = np.argsort(-np.diag(damped), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    return order, (upper / np.diag(upper)[:, None]).astype(np.float32)


def _rounded_in_turn(steps: Array, nearest: Callable[[Array], Array], passed_on: Array) -> Array:
    """Columns rounded from the first to the last, each after what those before have passed on."""
    rest, numbers = steps.copy(), np.empty_like(steps)
    for start in range(0, steps.shape[1], _COLUMNS_AT_ONCE):
        block = slice(start, start + _COLUMNS_AT_ONCE)
        errors = np.zeros_like(steps[:, block])
        for column in range(start, start + errors.shape[1]):
            numbers[:, column] = nearest(rest[:, column])
            errors[:, column - start] = rest[:, column] - numbers[:, column]
            share = passed_on[column, block]
            rest[:, block] -= np.outer(errors[:, column - start], share)
        # What is further on gets the sum of a block at once: one product instead of many.
        rest[:, block.stop :] -= errors @ passed_on[block, block.stop :]
    return numbers


def _fine_numbers(values: Array) -> Array:
    return np.rint(values).clip(1 - CODE_ZERO, CODE_ZERO - 1)


def _coarse_numbers(values: Array) -> Array:
    """-24, -8, 8 or 24, whichever is closest."""
    return np.floor(values / 16).clip(-2, 1) * 16 + 8


def packed(codes: Array, bits: int) -> Array:
    """Codes below ``2**bits``, as many as fit in each byte: (rows, width) gets that much narrower.

    The first columns are in the lowest bits, the last ones in the highest; at the end of a row
    whose width is no multiple there are zeros.
    """
    count = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % count)))
    parts = np.split(padded, count, axis=1)
    stored = np.zeros_like(parts[0])
    for index, part in enumerate(parts):
        stored |= part << np.uint8(index * bits)
    return stored
