"""Cutting at a measured speedup: foretold, measured, corrected, and never hidden."""

from __future__ import annotations

import re

import pytest

from cofi_deploy.api.speedup import stopwatch_of
from cofi_deploy.errors import BudgetError
from cofi_deploy.targets import Target, speedup_told
from cofi_deploy.train.speedup import SpeedupBudget, measured_masks
from tests.made_up_clock import MadeUpClock, made_up_ms
from tests.train.latency_costs import COST, DENSE, random_gates

TARGET = Target("speedup", 4.0)


def budget(clock: MadeUpClock) -> SpeedupBudget:
    return SpeedupBudget(table=COST.table, stopwatch=stopwatch_of(DENSE, clock))


def test_a_table_that_is_right_needs_one_round_and_one_measurement_to_tell():
    clock = MadeUpClock()
    masks, facts = measured_masks(random_gates(1, 1.0), TARGET, budget(clock), DENSE)
    assert made_up_ms(DENSE) / made_up_ms(masks.arch(DENSE)) == pytest.approx(4.0, rel=0.02)
    assert facts["speedup"] == pytest.approx(4.0, rel=0.02)
    assert facts["speedup_low"] <= facts["speedup"] <= facts["speedup_high"]
    assert (facts["is_met"], facts["busy"], facts["for"]) == (True, None, "onnxruntime-cpu@1x128")
    assert len(facts["rounds"]) == 1
    assert len(clock.timed) == 4  # dense and pruned, twice


@pytest.mark.parametrize("factor", [0.6, 1.25, 1.8])
def test_whole_models_that_take_otherwise_than_foretold_are_projected_again(factor: float):
    clock = MadeUpClock(factor=factor)
    masks, facts = measured_masks(random_gates(1, 1.0), TARGET, budget(clock), DENSE)
    assert facts["rounds"][0]["foretold"] == pytest.approx(4.0, rel=0.02)
    assert facts["rounds"][0]["speedup"] == pytest.approx(4.0 / factor, rel=0.03)
    true = made_up_ms(DENSE) / (factor * made_up_ms(masks.arch(DENSE)))
    assert true == pytest.approx(4.0, rel=0.05)
    assert facts["speedup"] == pytest.approx(true)
    assert facts["is_met"]


def test_what_cannot_be_met_is_told_and_the_closest_is_kept():
    clock = MadeUpClock(factor=100.0)
    _, facts = measured_masks(random_gates(1, 1.0), TARGET, budget(clock), DENSE)
    assert not facts["is_met"]
    assert facts["speedup"] < 4.0
    told = speedup_told(facts)
    assert told.startswith(f"measured {facts['speedup']:.2f} (")
    assert told.endswith("which misses the target by more than 5 %")


def test_a_busy_machine_is_said_and_what_is_foretold_decides():
    clock = MadeUpClock(others_cores=1.9)
    masks, facts = measured_masks(random_gates(1, 1.0), TARGET, budget(clock), DENSE)
    assert made_up_ms(DENSE) / made_up_ms(masks.arch(DENSE)) == pytest.approx(4.0, rel=0.02)
    assert facts["speedup"] is None
    assert not facts["is_met"]
    words = "not measured; this machine is too busy to measure: other processes used 1.9 of 2 cores"
    assert speedup_told(facts).startswith(words)


def test_a_neighbour_that_leaves_the_ratio_is_said_beside_it():
    clock = MadeUpClock(others_cores=1.0)
    _, facts = measured_masks(random_gates(1, 1.0), TARGET, budget(clock), DENSE)
    assert facts["is_met"]
    assert re.search(r"measured 4\.0\d \(.*; this machine is too busy", speedup_told(facts))


def test_an_interval_too_wide_for_a_ratio_is_said():
    clock = MadeUpClock(noise=0.6)
    _, facts = measured_masks(random_gates(1, 1.0), TARGET, budget(clock), DENSE)
    assert facts["speedup"] is None
    assert "the 95 % interval of the speedup is" in speedup_told(facts)


def test_masks_that_were_never_close_are_an_error():
    with pytest.raises(BudgetError, match="come no closer to speedup 100000"):
        measured_masks(
            random_gates(1), Target("speedup", 1e5), budget(MadeUpClock()), DENSE, align=1
        )
