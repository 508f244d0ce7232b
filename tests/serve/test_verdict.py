"""Targets are held, missed or undecided, and the sentence carries the numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.fault import Diagnosis
from cofi_deploy.serve.significance import PairedTest
from cofi_deploy.serve.verdict import Targets, judge


def accuracy_row(metric=0.885, dense=0.9, runtime="onnxruntime-cpu"):
    return {
        "runtime": runtime,
        "metric": metric,
        "metric_dense": dense,
        "metric_name": "accuracy",
    }


def latency_row(speedup, low, high, runtime="onnxruntime-cpu"):
    return {
        "runtime": runtime,
        "batch_size": 1,
        "seq_len": 128,
        "speedup": speedup,
        "speedup_low": low,
        "speedup_high": high,
    }


def test_kept_promises_are_told_with_the_narrowest_of_them():
    verdict = judge(
        Targets(max_drop=1.5, min_speedup=8),
        [accuracy_row(), accuracy_row(metric=0.899, runtime="openvino")],
        [latency_row(9.1, 8.9, 9.3), latency_row(12.0, 11.0, 13.0)],
        {},
    )
    assert verdict.ok
    assert verdict.sentence == (
        "Held: at most 1.50 points lost (allowed: 1.5) and at least 9.10 times faster (asked: 8)."
    )
    assert [claim.outcome for claim in verdict.claims] == ["held"] * 4


def test_a_drop_of_exactly_the_target_is_held_despite_floating_point():
    assert judge(Targets(max_drop=1.5), [accuracy_row(0.885, 0.9)], [], {}).ok
    assert not judge(Targets(max_drop=1.4999), [accuracy_row(0.885, 0.9)], [], {}).ok


def test_a_pruned_model_that_is_better_has_lost_nothing():
    verdict = judge(Targets(max_drop=1.5), [accuracy_row(0.91)], [], {})
    assert verdict.sentence == "Held: nothing lost (allowed: 1.5)."
    assert verdict.claims[0].sentence == (
        "accuracy in onnxruntime-cpu rises by 1.00 points, allowed: 1.5"
    )


def test_a_missed_drop_names_runtime_value_interval_and_target():
    test = PairedTest(difference=-0.03, low=-0.05, high=-0.01)
    verdict = judge(Targets(max_drop=1.5), [accuracy_row(0.87)], [], {"onnxruntime-cpu": test})
    assert not verdict.ok
    assert verdict.sentence == (
        "Missed: accuracy in onnxruntime-cpu drops by 3.00 points "
        "(95 % interval of the drop 1.00 to 5.00), allowed: 1.5."
    )


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        pytest.param(latency_row(8.5, 8.0, 9.0), "held", id="whole interval at or above"),
        pytest.param(latency_row(8.2, 7.9, 8.5), "undecided", id="interval holds the target"),
        pytest.param(latency_row(7.8, 7.5, 8.1), "undecided", id="below, but not surely"),
        pytest.param(latency_row(7.0, 6.8, 7.9), "missed", id="whole interval below"),
        pytest.param(latency_row(None, None, None), "undecided", id="too noisy"),
    ],
)
def test_a_speedup_is_held_only_when_its_whole_interval_is(row, outcome):
    verdict = judge(Targets(min_speedup=8), [], [row], {})
    assert verdict.claims[0].outcome == outcome
    assert verdict.ok == (outcome == "held")


def test_a_noisy_measurement_is_told_as_such():
    verdict = judge(Targets(min_speedup=8), [], [latency_row(None, None, None)], {})
    assert verdict.sentence == (
        "Undecided: no speedup of onnxruntime-cpu at 1x128 can be told, "
        "the measurement is too noisy."
    )


def test_a_busy_machine_is_the_reason_that_the_verdict_gives():
    why = (
        "this machine is too busy to measure: other processes used 1.2 of 2 cores; stop other work "
        "and measure again"
    )
    row = {**latency_row(None, None, None), "noise": why}
    verdict = judge(Targets(min_speedup=8), [], [row], {})
    assert verdict.sentence == (
        f"Undecided: no speedup of onnxruntime-cpu at 1x128 can be told, {why}."
    )


def test_an_undecided_speedup_says_how_to_decide_it():
    verdict = judge(Targets(min_speedup=8), [], [latency_row(8.2, 7.9, 8.5)], {})
    assert "asked: 8; the interval holds the target: measure longer to decide" in verdict.sentence


def test_a_miss_is_told_before_what_is_undecided():
    rows = [latency_row(8.2, 7.9, 8.5), latency_row(3.0, 2.9, 3.1, "openvino")]
    verdict = judge(Targets(min_speedup=8), [], rows, {})
    assert verdict.sentence.startswith("Missed: openvino at 1x128 is 3.00 times faster")
    assert verdict.sentence.endswith("(2 of 2 claims do not hold).")


def test_targets_without_any_measurement_are_not_met():
    verdict = judge(Targets(max_drop=1, min_speedup=2), [], [], {})
    assert not verdict.ok
    assert verdict.sentence == "Not shown: nothing was measured for max_drop and min_speedup."


def test_without_targets_everything_is_well():
    verdict = judge(Targets(), [accuracy_row()], [latency_row(1, 1, 1)], {})
    assert verdict.ok
    assert verdict.claims == ()
    assert verdict.sentence.startswith("No targets were set")


@given(st.floats(0.1, 20), st.floats(0.1, 20), st.floats(0, 5), st.floats(0, 5), st.floats(0, 1))
def test_an_easier_target_is_never_harder_to_meet(asked, speedup, below, above, share):
    row = latency_row(speedup, max(speedup - below, 0), speedup + above)
    if judge(Targets(min_speedup=asked), [], [row], {}).ok:
        assert judge(Targets(min_speedup=asked * max(share, 0.01)), [], [row], {}).ok


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param(
            {"max_drop": 150}, "--max-drop is 150, allowed: -100 to 100 points", id="drop"
        ),
        pytest.param({"min_speedup": 0}, "--min-speedup is 0, allowed: above 0", id="zero"),
        pytest.param({"min_speedup": float("nan")}, "--min-speedup is nan, allowed", id="nan"),
    ],
)
def test_targets_that_mean_nothing_are_refused(targets, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Targets(**targets)


def test_a_fault_is_a_missed_claim_that_comes_before_what_was_not_measured():
    fault = Diagnosis(
        model="pruned", runtime="openvino", fault="head_count", sentence="pruned is broken"
    )
    verdict = judge(Targets(min_speedup=2), [], [], {}, [fault])
    assert not verdict.ok
    assert verdict.sentence == "Missed: pruned is broken."
    (claim,) = verdict.claims
    assert (claim.claim, claim.runtime, claim.asked, claim.measured, claim.outcome) == (
        "no_fault",
        "openvino",
        0.0,
        1.0,
        "missed",
    )
