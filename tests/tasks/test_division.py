from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.errors import ConfigError, DataError
from cofi_deploy.tasks.division import check_holdout, holdout_size, pick_groups, pick_stratified


@pytest.mark.parametrize(
    ("rows", "size"),
    [(67_349, 2000), (8_551, 855), (2_490, 249), (1_500, 200), (900, 180), (10, 2), (5, 1)],
)
def test_default_holdout_is_a_tenth_within_limits(rows, size):
    assert holdout_size(rows, None, "f") == size


def test_asked_share_is_used_as_it_is():
    assert holdout_size(100_000, 0.25, "f") == 25_000


def test_too_few_rows_say_how_many_are_needed():
    message = "'f.csv' has 4 usable rows, too few to hold any out; at least 5 are needed"
    with pytest.raises(DataError, match=re.escape(message)):
        holdout_size(4, None, "f.csv")


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, float("nan")])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match=re.escape(f"holdout is {share}, allowed: above 0")):
        check_holdout(share)


@given(
    labels=st.lists(st.integers(0, 4), min_size=20, max_size=300),
    seed=st.integers(0, 1000),
    share=st.floats(0.05, 0.5),
)
def test_every_class_gives_its_share_to_within_one(labels, seed, share):
    size = max(1, int(len(labels) * share))
    picked = pick_stratified(labels, size, seed=seed, classes=True)
    values = np.asarray(labels)
    single = sum(np.sum(values == name) == 1 for name in set(labels))
    assert len(set(picked.tolist())) == size
    for name in set(labels):
        count = int(np.sum(values == name))
        taken = int(np.sum(values[picked] == name))
        if count == 1:
            assert taken == 0
        else:
            assert taken < count
            assert abs(taken - count * size / (len(labels) - single)) <= 1


@given(seed=st.integers(0, 100))
def test_scores_are_covered_from_end_to_end(seed):
    scores = np.linspace(0, 5, 200)
    picked = scores[pick_stratified(scores, 20, seed=seed, classes=False)]
    assert picked.min() < 0.5
    assert picked.max() > 4.5
    assert abs(picked.mean() - 2.5) < 0.2


def test_the_seed_decides_which():
    labels = [0, 1] * 100
    first = pick_stratified(labels, 20, seed=1, classes=True)
    assert first.tolist() == pick_stratified(labels, 20, seed=1, classes=True).tolist()
    assert first.tolist() != pick_stratified(labels, 20, seed=2, classes=True).tolist()


@given(
    groups=st.lists(st.integers(0, 12), min_size=2, max_size=100).filter(lambda g: len(set(g)) > 1),
    size=st.integers(1, 30),
    seed=st.integers(0, 100),
)
def test_groups_stay_whole_and_something_is_left(groups, size, seed):
    picked = set(pick_groups(groups, min(size, len(groups) // 2), seed=seed).tolist())
    inside = {groups[at] for at in picked}
    outside = {name for at, name in enumerate(groups) if at not in picked}
    assert inside
    assert outside
    assert not inside & outside


def test_one_group_cannot_be_divided():
    with pytest.raises(ValueError, match="one group cannot be divided"):
        pick_groups([3, 3, 3], 1, seed=0)
