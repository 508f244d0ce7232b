"""The regression gate: what is worse, what is noise, and what cannot be compared."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.comparison import IDENTITY, Comparison, compare
from cofi_deploy.serve.junit import junit_xml
from cofi_deploy.serve.quantities import QUANTITIES, Tolerances

ROOT = Path(__file__).resolve().parent.parent.parent
REAL = json.loads((ROOT / "benchmarks" / "results" / "pruning-mrpc.json").read_text("utf-8"))
MACHINE = {"cpu": "a", "cpu_flags": ["avx2"], "cores": 2, "gpu": None}
OPPOSITE = {"worse": "better", "better": "worse", "vanished": "new", "new": "vanished"}

numbers = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.floats(0, 1),
    st.just(10**400),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)
measured = st.sampled_from([quantity.name for quantity in QUANTITIES])
extras = st.sampled_from(
    ["speedup_low", "speedup_high", "sequences_per_s_low", "examples", "metric_dense", "noise"]
)
random_rows = st.lists(
    st.dictionaries(st.one_of(st.sampled_from(IDENTITY), measured, extras), numbers, max_size=9),
    max_size=6,
)
# Rows with one identity each, so that every one finds its partner.
sane = st.fixed_dictionaries(
    {},
    optional={
        "metric": st.floats(0, 1),
        "agreement": st.floats(0, 1),
        "examples": st.integers(1, 10_000),
        "max_abs_logit_diff": st.floats(0, 1),
        "p50_ms": st.floats(0.01, 100),
        "size_bytes": st.integers(1, 10**9),
        "speedup": st.floats(1, 20),
        "speedup_low": st.floats(0.5, 20),
        "speedup_high": st.floats(1, 30),
    },
)
sane_rows = st.lists(sane, min_size=1, max_size=5).map(
    lambda rows: [{**row, "model": f"m{index}"} for index, row in enumerate(rows)]
)


def document(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "machine": MACHINE,
        "versions": {"onnxruntime": "1.0", "cofi-deploy": "0.1"},
        "rows": list(rows),
        **changes,
    }


def accuracy_row(metric: float, examples: int = 1000, **more: Any) -> dict[str, Any]:
    return {"model": "m", "runtime": "torch", "examples": examples, "metric_name": "accuracy",
            "metric": metric, **more}  # fmt: skip


def speed_row(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"model": "m", "runtime": "torch", "batch_size": 1, "seq_len": 128, "speedup": value,
            "speedup_low": low, "speedup_high": high, **more}  # fmt: skip


def judged(before: dict[str, Any], after: dict[str, Any], **tolerances: float) -> Comparison:
    return compare(document(before), document(after), Tolerances(**tolerances))


def verdict(comparison: Comparison, quantity: str) -> str:
    (found,) = [one for one in comparison.findings if one.quantity == quantity]
    return found.verdict


def test_a_real_file_against_itself_is_all_the_same() -> None:
    found = compare(REAL, REAL, Tolerances())
    assert found.ok
    assert {one.verdict for one in found.findings} == {"same"}
    assert len(found.findings) > 200
    assert (found.vanished, found.new, found.ambiguous, found.notes) == ((), (), (), ())


def test_a_worse_copy_of_a_real_file_is_told_by_quantity() -> None:
    worse = copy.deepcopy(REAL)
    accuracy = next(row for row in worse["rows"] if row["model"] == "mrpc-s60" and "metric" in row)
    accuracy["metric"] -= 0.15
    timed = next(row for row in worse["rows"] if row.get("speedup") and row["model"] == "mrpc-s95")
    for key in ("speedup", "speedup_low", "speedup_high"):
        timed[key] /= 2
    gone = worse["rows"].pop()
    found = compare(REAL, worse, Tolerances())
    assert not found.ok
    told = [(one.identity["model"], one.quantity) for one in found.findings[:2]]
    assert sorted(told) == [("mrpc-s60", "metric"), ("mrpc-s95", "speedup")]
    assert found.counts()["worse"] == 2
    (vanished,) = found.vanished
    assert (vanished["runtime"], vanished["batch_size"]) == (gone["runtime"], gone["batch_size"])
    assert found.sentence.startswith("Worse: metric of mrpc-s60 ")
    assert "(2 of " in found.sentence


@given(rows=random_rows)
@settings(deadline=None)  # a busy machine pauses for longer
def test_any_file_against_itself_has_nothing_worse_or_better(rows: list[dict[str, Any]]) -> None:
    found = compare(document(*rows), document(*rows), Tolerances())
    assert found.ok
    assert {one.verdict for one in found.findings} <= {"same"}


@given(one=random_rows, other=random_rows)
@settings(deadline=None)  # a busy machine pauses for longer
def test_rows_of_any_content_are_compared_and_written_without_a_crash(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    found = compare(document(*one), document(*other), Tolerances())
    assert junit_xml(found).startswith(b"<?xml")
    json.dumps([one.identity for one in found.findings], allow_nan=False)


@given(one=sane_rows, other=sane_rows)
@settings(deadline=None)  # a busy machine pauses for longer
def test_exchanged_files_exchange_better_and_worse(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    def verdicts(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[Any, str]:
        found = compare(document(*first), document(*second), Tolerances())
        return {(one.identity["model"], one.quantity): one.verdict for one in found.findings}

    forward, backward = verdicts(one, other), verdicts(other, one)
    assert backward == {key: OPPOSITE.get(told, told) for key, told in forward.items()}


@given(one=sane_rows, other=sane_rows, seed=st.integers(0, 9))
@settings(deadline=None)  # a busy machine pauses for longer
def test_the_order_of_rows_does_not_matter(
    one: list[dict[str, Any]], other: list[dict[str, Any]], seed: int
) -> None:
    shuffled = random.Random(seed).sample(other, len(other))
    as_written = compare(document(*one), document(*other), Tolerances())
    assert as_written == compare(document(*one), document(*shuffled), Tolerances())


def test_a_drop_inside_the_interval_is_the_same() -> None:
    assert verdict(judged(accuracy_row(0.90, 400), accuracy_row(0.87, 400)), "metric") == "same"


def test_a_drop_outside_of_the_interval_is_worse_and_told_in_points() -> None:
    found = judged(accuracy_row(0.90, 4000), accuracy_row(0.87, 4000))
    assert not found.ok
    assert "0.9000 became 0.8700: -3.00 points" in found.sentence
    assert "of 4,000 and 4,000 examples" in found.sentence


def test_a_real_drop_within_the_tolerance_is_the_same() -> None:
    rows = accuracy_row(0.90, 4000), accuracy_row(0.87, 4000)
    assert verdict(judged(*rows, max_metric_drop=3.0), "metric") == "same"
    assert verdict(judged(*rows, max_metric_drop=2.9), "metric") == "worse"


def test_the_interval_of_two_shares_is_that_of_agresti_and_caffo() -> None:
    # By hand: 49/82 and 57/72, variances 0.0029327 and 0.0022907, 1.96 standard errors 0.14166.
    (found,) = judged(accuracy_row(48 / 80, 80), accuracy_row(56 / 70, 70)).findings
    assert found.judgement.low == pytest.approx(0.0525, abs=1e-4)
    assert found.judgement.high == pytest.approx(0.3358, abs=1e-4)


def test_a_metric_without_a_number_of_examples_is_not_compared() -> None:
    found = judged(accuracy_row(0.9, 0), accuracy_row(0.5, 0))
    assert verdict(found, "metric") == "not comparable"
    assert "no number of examples" in found.findings[0].judgement.reason


def test_a_metric_that_became_nan_is_worse() -> None:
    found = judged(accuracy_row(0.9), accuracy_row(float("nan")))
    assert verdict(found, "metric") == "worse"
    assert "became nan" in found.sentence


@pytest.mark.parametrize("source", ["comparison", "claims"])
def test_paired_tests_of_verify_see_what_independent_intervals_do_not(source: str) -> None:
    def verified(metric: float, low: float, high: float) -> dict[str, Any]:
        row = accuracy_row(metric, 400, metric_dense=0.9)
        difference = metric - 0.9
        if source == "comparison":
            test = {"difference": difference, "low": low, "high": high}
            return document(row, comparison={"runtime": "torch", "test": test})
        claim = {"claim": "max_drop", "runtime": "torch", "measured": -difference * 100,
                 "low": -high * 100, "high": -low * 100}  # fmt: skip
        return document(row, verdict={"claims": [claim]})

    before, after = verified(0.89, -0.02, 0.0), verified(0.87, -0.04, -0.02)
    found = compare(before, after, Tolerances())
    assert verdict(found, "metric") == "worse"
    assert "95 % interval paired: -3.41 to -0.59" in found.sentence
    unpaired = compare({**before, "comparison": {}, "verdict": {}}, after, Tolerances())
    assert verdict(unpaired, "metric") == "same"


def test_another_dense_model_is_not_paired() -> None:
    test = {"difference": -0.01, "low": -0.01, "high": -0.01}
    before = document(
        accuracy_row(0.89, 400, metric_dense=0.90), comparison={"runtime": "torch", "test": test}
    )
    after = document(
        accuracy_row(0.87, 400, metric_dense=0.88), comparison={"runtime": "torch", "test": test}
    )
    assert verdict(compare(before, after, Tolerances()), "metric") == "same"


def test_a_speedup_is_worse_only_when_the_intervals_are_apart() -> None:
    before = speed_row(10.0, 9.5, 10.5)
    assert verdict(judged(before, speed_row(8.5, 7.5, 9.6)), "speedup") == "same"
    found = judged(before, speed_row(8.5, 8.0, 9.0))
    assert verdict(found, "speedup") == "worse"
    assert "10 (9.5 to 10.5) became 8.5 (8 to 9), tolerated: 0.1 as a fraction" in found.sentence
    assert verdict(judged(before, speed_row(8.5, 8, 9), max_slowdown=0.2), "speedup") == "same"


def test_a_speedup_that_is_too_noisy_is_not_compared_and_says_why() -> None:
    noisy = {**speed_row(1, 1, 1), "speedup": None, "noise": "too noisy: 26 %"}
    found = judged(speed_row(10, 9, 11), noisy)
    assert verdict(found, "speedup") == "not comparable"
    assert found.findings[0].judgement.reason == "too noisy: 26 %"
    assert found.ok


def test_speedups_without_intervals_are_not_compared() -> None:
    bare = {"model": "m", "speedup": 10.0}
    assert verdict(judged(bare, {**bare, "speedup": 5.0}), "speedup") == "not comparable"


def test_latencies_compare_on_one_machine_and_tails_have_more_room() -> None:
    before = {"model": "m", "p50_ms": 10.0, "p90_ms": 10.0, "p99_ms": 10.0}
    after = {"model": "m", "p50_ms": 11.5, "p90_ms": 11.5, "p99_ms": 13.5}
    found = judged(before, after)
    assert {one.quantity: one.verdict for one in found.findings} == {
        "p50_ms": "worse",
        "p90_ms": "same",
        "p99_ms": "worse",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {**MACHINE, "cpu": "b"}}, "other machine: cpu a became b"),
        ({"machine": {**MACHINE, "gpu": "H"}}, "other machine: gpu none became H"),
        ({"machine": {}}, "a file does not say on which machine it was made"),
        ({"versions": {"onnxruntime": "2.0"}}, "other versions: onnxruntime 1.0 became 2.0"),
    ],
    ids=["cpu", "gpu", "unknown", "version"],
)
def test_latencies_of_another_place_are_not_compared(change: dict[str, Any], said: str) -> None:
    before = document({**speed_row(10, 9, 11), "p50_ms": 1.0})
    after = document({**speed_row(5, 4, 6), "p50_ms": 9.0}, **change)
    found = compare(before, after, Tolerances())
    assert verdict(found, "p50_ms") == "not comparable"
    assert verdict(found, "speedup") == "worse"
    assert f"times and memory are not compared, {said}" in found.notes


def test_another_version_of_cofi_deploy_is_what_a_gate_is_there_for() -> None:
    newer = document({"model": "m", "p50_ms": 9.0}, versions={"onnxruntime": "1.0"})
    found = compare(document({"model": "m", "p50_ms": 1.0}), newer, Tolerances())
    assert verdict(found, "p50_ms") == "worse"


@pytest.mark.parametrize("require_all", [True, False])
def test_vanished_rows_and_quantities_fail_where_all_are_required(require_all: bool) -> None:
    kept = accuracy_row(0.9, agreement=1.0)
    before = document(kept, speed_row(10, 9, 11))
    after = document({key: value for key, value in kept.items() if key != "agreement"})
    found = compare(before, after, Tolerances(), require_all=require_all)
    assert verdict(found, "agreement") == "vanished"
    assert [row["batch_size"] for row in found.vanished] == [1]
    assert found.ok is not require_all
    assert ("Incomplete: 2 rows or quantities" in found.sentence) is require_all


def test_new_rows_are_listed_and_fail_nothing() -> None:
    found = compare(
        document(accuracy_row(0.9)), document(accuracy_row(0.9), speed_row(9, 8, 10)), Tolerances()
    )
    assert found.ok
    assert [row["seq_len"] for row in found.new] == [128]


def test_a_key_that_only_one_file_has_tells_no_rows_apart() -> None:
    found = judged(accuracy_row(0.9), accuracy_row(0.9, seed=3, backend="python"))
    assert [one.quantity for one in found.findings] == ["metric"]


def test_an_ignored_key_tells_no_rows_apart() -> None:
    before, after = accuracy_row(0.9), {**accuracy_row(0.9), "model": "other"}
    assert not judged(before, after).findings
    found = compare(document(before), document(after), Tolerances(), ignore=["model"])
    assert verdict(found, "metric") == "same"


def test_a_metric_compares_between_numbers_of_threads_and_a_speedup_does_not() -> None:
    before = document(accuracy_row(0.9, threads=1), speed_row(10, 9, 11, threads=1))
    after = document(accuracy_row(0.9, threads=8), speed_row(10, 9, 11, threads=8))
    found = compare(before, after, Tolerances())
    assert [one.quantity for one in found.findings] == ["metric"]
    assert (len(found.vanished), len(found.new)) == (1, 1)


def test_places_that_are_measured_twice_are_left_out_and_told() -> None:
    twice = document(accuracy_row(0.9), accuracy_row(0.8))
    found = compare(twice, document(accuracy_row(0.9)), Tolerances())
    assert not found.findings
    assert len(found.ambiguous) == 1
    assert "1 places are measured several times in one file" in found.notes[0]


def test_logit_differences_below_rounding_do_not_count() -> None:
    def row(value: float) -> dict[str, Any]:
        return {"model": "m", "max_abs_logit_diff": value}

    assert verdict(judged(row(1e-6), row(9e-4)), "max_abs_logit_diff") == "same"
    found = judged(row(1e-6), row(0.01))
    assert verdict(found, "max_abs_logit_diff") == "worse"
    assert "1e-06 became 0.01, tolerated: 0.001, or doubling" in found.sentence


def test_growing_beyond_the_tolerance_is_worse() -> None:
    before, after = {"model": "m", "size_bytes": 1000}, {"model": "m", "size_bytes": 1030}
    assert verdict(judged(before, after), "size_bytes") == "worse"
    assert verdict(judged(before, after, max_growth=0.05), "size_bytes") == "same"


def test_another_schema_is_told() -> None:
    older = {**document(accuracy_row(0.9)), "schema_version": 0}
    found = compare(older, document(accuracy_row(0.9)), Tolerances())
    assert found.notes == ("the files have different schemas: 0 became 1",)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_metric_drop", -1.0, "--max-metric-drop is -1, allowed: 0 to 100 points"),
        ("max_slowdown", float("nan"), "--max-slowdown is nan, allowed: 0 to 100 as a fraction"),
        ("max_growth", 101.0, "--max-growth is 101, allowed: 0 to 100 as a fraction"),
    ],
)
def test_a_tolerance_that_means_nothing_is_refused(name: str, value: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Tolerances(**{name: value})
