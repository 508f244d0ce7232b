"""The latency table: what it foretells, that it never falls, and that a cut meets it."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cofi_deploy.api.latency_tables import measure_table
from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import ArtifactError, BudgetError
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import FAMILIES, Masks
from cofi_deploy.train.alignment import aligned_masks
from cofi_deploy.train.cost import expected_share, realized_share
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.latency_table import (
    LatencyCost,
    LatencyTable,
    SublayerTable,
    monotone,
)
from cofi_deploy.train.projection import masks_at_target
from cofi_deploy.train.sparsity import check_target, reachable_share
from tests.builders import any_masks, dense_arch
from tests.made_up_clock import MadeUpClock, made_up_ms
from tests.train.latency_costs import COST, DENSE, SHAPE, cost_of, random_gates


@pytest.fixture
def gates() -> HardConcreteGates:
    return random_gates(0)


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
@given(masks=any_masks(SHAPE))
@settings(max_examples=60, deadline=None)
def test_a_table_of_a_bilinear_clock_foretells_every_structure_exactly(
    kind: TaskKind, masks: Masks
):
    arch = masks.arch(DENSE)
    floor = COST.table.hidden[0]  # below it a width counts as that
    if arch.hidden >= floor:
        assert cost_of(kind).kept(masks) == pytest.approx(made_up_ms(arch, kind), rel=1e-9)


def test_the_dense_model_takes_what_was_measured_of_it():
    assert COST.kept(Masks.ones(SHAPE)) == pytest.approx(COST.total, rel=1e-9)
    assert COST.value(0.9) == pytest.approx(10.0)
    assert COST.tolerance(0.9) == pytest.approx(0.005)


def test_the_expectation_follows_the_share_of_layers_behind_the_last_attention():
    # Only the switch of the last attention is in doubt: two structures, each half of the time.
    half = Masks.ones(SHAPE)
    half.attn_block[-1] = 0.5
    gone = Masks.ones(SHAPE)
    gone.attn_block[-1] = 0.0
    mean = (COST.kept(Masks.ones(SHAPE)) + COST.kept(gone)) / 2
    assert float(COST.expected(half)) == pytest.approx(mean, rel=1e-5)


def test_the_expected_cost_has_a_gradient_for_every_family(gates):
    expected_share(COST, gates.keep_prob()).backward()
    for name, value in gates.log_alpha.items():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
        # Whoever is more likely kept costs more, or nothing.
        assert (value.grad <= 1e-9).all(), name
        assert (value.grad < 0).any(), name


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-1, 9)
    )
)
def test_a_monotone_table_never_falls_and_never_leaves_what_was_measured(values):
    found = monotone(values)
    for axis in (0, 1):
        assert (np.diff(found, axis=axis) >= -1e-12).all()
    assert found.min() >= 0.0
    assert found.max() <= max(values.max(), 0.0)
    assert monotone(found) == pytest.approx(found)


def test_noise_in_a_table_is_taken_out_and_a_first_token_costs_no_more_than_all():
    table = SublayerTable(
        sizes=(1, 4), all_ms=((0.2, 0.1), (0.4, 1.0)), first_ms=((-0.1, 0.5), (0.1, 0.2))
    ).monotone()
    assert table.all_ms == ((pytest.approx(0.15), pytest.approx(0.15)), (0.4, 1.0))
    for everything, first in zip(table.all_ms, table.first_ms, strict=True):
        assert all(a >= b >= 0 for a, b in zip(everything, first, strict=True))


@given(masks=any_masks(SHAPE), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_pruning_more_never_costs_more(masks: Masks, seed: int):
    rng = torch.Generator().manual_seed(seed)
    fewer = {
        name: value * (torch.rand(value.shape, generator=rng) < 0.7)
        for name, value in vars(masks).items()
    }
    if fewer["hidden"].any():
        assert COST.kept(Masks(**fewer)) <= COST.kept(masks) + 1e-9


@given(seed=st.integers(0, 2**16), share=st.floats(0.0, 0.97), mean=st.sampled_from([-2.0, 0, 3]))
@settings(max_examples=60, deadline=None)
def test_the_projection_meets_every_speedup_that_is_not_refused(seed, share, mean):
    gates = random_gates(seed, mean)
    target = share * reachable_share(gates, COST)
    masks = masks_at_target(gates, target, COST)
    speedup = made_up_ms(DENSE) / made_up_ms(masks.arch(DENSE))
    if masks.arch(DENSE).hidden >= COST.table.hidden[0]:
        assert COST.value(realized_share(COST, masks)) == pytest.approx(speedup)
    assert COST.value(realized_share(COST, masks)) == pytest.approx(COST.value(target), rel=0.055)


def test_widths_are_multiples_at_a_speedup_too():
    masks = aligned_masks(random_gates(3, 1.0), 0.75, 8, COST)
    arch = masks.arch(DENSE)
    assert {arch.hidden % 8, *(layer.ffn % 8 for layer in arch.layers)} == {0}
    assert made_up_ms(DENSE) / made_up_ms(arch) == pytest.approx(4.0, rel=0.05)


def test_a_speedup_out_of_reach_is_refused_with_the_reachable_maximum(gates):
    maximum = COST.value(reachable_share(gates, COST))
    assert 5 < maximum < 1000
    words = (
        f"target speedup is 1000, but masks of {', '.join(FAMILIES)} reach 1 to {maximum:.4g}; ask"
    )
    with pytest.raises(BudgetError, match=re.escape(words)):
        check_target(1 - 1 / 1000, gates, COST)


def test_masks_that_cannot_meet_a_speedup_say_how_close_they_come():
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 0.0), families=("ffn",))
    with pytest.raises(BudgetError, match=r"masks of ffn come no closer to speedup 50 than \d\.\d"):
        masks_at_target(gates, 0.98, COST)


def test_a_corrected_cost_foretells_that_many_times_more():
    ones = Masks.ones(SHAPE)
    assert COST.corrected(1.5).kept(ones) == pytest.approx(1.5 * COST.kept(ones))
    assert COST.corrected(1.5).total == COST.total


def test_a_table_survives_json():
    text = json.dumps(COST.table.to_json())
    assert LatencyTable.from_json({"schema_version": 1, **json.loads(text)}) == COST.table


def test_a_table_with_an_unknown_entry_is_refused():
    with pytest.raises(ArtifactError, match="missing or unknown entry: 'ffn'; remove its file"):
        LatencyTable.from_json({"attention": COST.table.to_json()["attention"]})


def test_a_model_of_one_width_and_one_size_has_a_table():
    shape = DenseShape(layers=2, hidden=1, heads=1, ffn=1, head_size=1)
    arch = dense_arch(shape)
    table = measure_table(arch, "text-classification", MadeUpClock(), point="p", threads=1, key={})
    assert table.hidden == table.attention.sizes == table.ffn.sizes == (1,)
    assert math.isclose(LatencyCost(table, shape).kept(Masks.ones(shape)), made_up_ms(arch))
