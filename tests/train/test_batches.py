"""Batches by step number: the same ones for a resumed run, every feature once in an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.kinds import INPUT_NAMES, TASK_KINDS, TaskKind
from cofi_deploy.train.batches import Batch, Batches, as_batch
from tests.builders import random_split

CPU = torch.device("cpu")


def batches_of(count: int, batch_size: int, seed: int = 0) -> Batches:
    lengths = [1 + (5 * index) % 17 for index in range(count)]
    split = random_split(lengths, "text-classification")
    return Batches(split, batch_size=batch_size, seed=seed, device=CPU)


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.rows, b.rows) and all(
        torch.equal(a.inputs[name], b.inputs[name]) for name in INPUT_NAMES
    )


@given(count=st.integers(1, 60), batch_size=st.integers(1, 16), epoch=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_epoch_sees_every_feature_exactly_once(count: int, batch_size: int, epoch: int):
    batches = batches_of(count, batch_size)
    steps = batches.steps_per_epoch
    rows = [batches.at(epoch * steps + step).rows for step in range(steps)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(count))
    assert sum(len(part) < batch_size for part in rows) <= 1


@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_step_has_the_same_batch_whenever_it_is_asked_for(steps: list[int]):
    straight = batches_of(23, 4)
    in_order = [straight.at(step) for step in range(41)]
    jumping = batches_of(23, 4)
    for step in steps:
        assert same(jumping.at(step), in_order[step])


def test_epochs_and_seeds_differ():
    batches, other = batches_of(40, 4), batches_of(40, 4, seed=1)
    first = [batches.at(step).rows.tolist() for step in range(10)]
    assert first != [batches.at(10 + step).rows.tolist() for step in range(10)]
    assert first != [other.at(step).rows.tolist() for step in range(10)]


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0, 0), (0.0, 0), (0.01, 1), (0.5, 5), (1, 10), (2.26, 23), (3, 30)]
)
def test_epochs_become_whole_steps_and_at_least_one_unless_none(epochs: float, steps: int):
    batches = batches_of(39, 4)
    assert batches.steps_per_epoch == 10
    assert batches.steps(epochs) == steps


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_batch_is_padded_to_its_longest_and_splits_inputs_from_targets(kind: TaskKind):
    split = random_split([3, 5, 5], kind)
    batch = as_batch(split, np.array([2, 0]), CPU)
    assert set(batch.inputs) == set(INPUT_NAMES)
    assert set(batch.targets) == set(split.targets)
    assert not set(batch.targets) & set(INPUT_NAMES)
    for value in batch.inputs.values():
        assert value.shape == (2, 5)
        assert value.dtype == torch.int64
    assert batch.valid.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.inputs["input_ids"][0].tolist() == split.input_ids[8:13].tolist()
    assert batch.inputs["input_ids"][1].tolist() == [*split.input_ids[:3].tolist(), 0, 0]
    for name, value in batch.targets.items():
        assert value.tolist() == split.targets[name][[2, 0]].tolist()


@pytest.mark.parametrize(("rows", "width"), [([0], 4), ([1], 8), ([0, 2], 9), ([3], 4)])
def test_widths_repeat_but_never_exceed_the_longest_feature_of_the_split(
    rows: list[int], width: int
):
    split = random_split([3, 5, 9, 4], "text-classification")
    assert as_batch(split, np.array(rows), CPU).valid.shape == (len(rows), width)


def test_batches_hold_features_of_near_equal_length():
    split = random_split(list(range(1, 201)), "text-classification")
    batches = Batches(split, batch_size=10, seed=0, device=CPU)
    padding = total = 0
    for step in range(batches.steps_per_epoch):
        valid = batches.at(step).valid
        padding += int((~valid).sum())
        total += valid.numel()
    assert padding / total < 0.06
