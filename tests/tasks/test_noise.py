"""Noisy copies of a split: what may change in them and what may not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.tasks.noise import with_noisy_copies
from tests.builders import random_split

SPECIAL = (0, 1, 2, 3)


def copies_of(split, copies=2, share=0.3, seed=0):
    return with_noisy_copies(split, copies=copies, share=share, special_ids=SPECIAL, seed=seed)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), kind=st.sampled_from(TASK_KINDS)
)
@settings(max_examples=40, deadline=None)
def test_copies_repeat_everything_but_some_words(lengths, kind):
    split = random_split(lengths, kind)
    noisy, count, tokens = copies_of(split), len(split), len(split.input_ids)
    assert len(noisy) == 3 * count
    assert noisy.lengths.tolist() == 3 * split.lengths.tolist()
    assert np.array_equal(noisy.input_ids[:tokens], split.input_ids)
    special = np.isin(split.input_ids, SPECIAL)
    for start in (tokens, 2 * tokens):
        copy = noisy.input_ids[start : start + tokens]
        assert np.array_equal(copy[special], split.input_ids[special])
        assert set(copy[~special]) <= set(split.input_ids[~special])
    for row in range(count):
        first, last = split.batch([row]), noisy.batch([row + 2 * count])
        assert all(np.array_equal(first[key], last[key]) for key in first if key != "input_ids")


def test_the_share_is_met_on_average_and_follows_the_seed():
    split = random_split([50] * 200, "text-classification")
    first, same, other = (copies_of(split, copies=1, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.input_ids, same.input_ids)
    assert not np.array_equal(first.input_ids, other.input_ids)
    tokens = len(split.input_ids)
    words = ~np.isin(split.input_ids, SPECIAL)
    changed = (first.input_ids[tokens:] != split.input_ids)[words].mean()
    assert changed == pytest.approx(0.3, abs=0.02)  # a drawn word is seldom the same one


def test_no_copies_leave_the_split_as_it_is():
    split = random_split([4, 5], "text-classification")
    assert copies_of(split, copies=0) is split
