"""Dense against pruned on a tiny task, in three runtimes, from artifacts to report."""

from __future__ import annotations

import json
from html import unescape

import pytest

from cofi_deploy.artifacts import read_json
from cofi_deploy.serve.bench import BenchSettings
from cofi_deploy.serve.latency import OperatingPoint, Schedule
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verdict import Targets
from cofi_deploy.serve.verify import VerifySettings, verify

RUNTIMES = ("torch", "onnxruntime-cpu", "openvino")


@pytest.fixture(scope="module")
def verified(subjects, task, tmp_path_factory):
    """One verification that all tests below read."""
    out = tmp_path_factory.mktemp("verified")
    metrics = out / "metrics.jsonl"
    steps = [{"stage": "prune", "step": step, "loss": 1 / (step + 1)} for step in range(5)]
    metrics.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"stage": "pru')
    settings = VerifySettings(
        bench=BenchSettings(
            runtimes=(*RUNTIMES, "tensorrt"),
            points=(OperatingPoint.parse("2x8"), OperatingPoint.parse("1xtask")),
            threads=1,
            schedule=Schedule(min_repeats=3, max_seconds=0.0),
            fresh_process=False,
        ),
        targets=Targets(max_drop=100, min_speedup=1e6),
        limit=40,
        metrics_file=metrics,
        command=("cofi-deploy", "verify", "--max-drop", "100"),
    )
    return verify(subjects["dense"], subjects["pruned"], task, settings, out)


def rows(verified, key):
    return [row for row in verified.document["rows"] if key in row]


def test_the_files_hold_what_is_returned(verified):
    stored = read_json(verified.result_file)
    assert stored.pop("schema_version") == 1
    assert stored == json.loads(json.dumps(verified.document))
    assert stored["command"] == "cofi-deploy verify --max-drop 100"


def test_each_model_is_scored_in_each_runtime(verified):
    scored = rows(verified, "metric")
    assert [(row["model"], row["runtime"]) for row in scored] == [
        (label, runtime) for runtime in RUNTIMES for label in ("dense", "pruned")
    ]
    dense = {row["runtime"]: row["metric"] for row in scored if row["model"] == "dense"}
    for row in scored:
        assert (row["task"], row["split"], row["examples"]) == (
            "text-classification",
            "validation",
            40,
        )
        assert row["metric_name"] == "accuracy"
        assert row["metric_dense"] == dense[row["runtime"]]
        assert row["agreement"] == 1.0
        assert row["max_abs_logit_diff"] < 1e-4
        assert row["size_bytes"] > 0


def test_pytorch_differs_from_itself_by_nothing(verified):
    for row in rows(verified, "metric"):
        if row["runtime"] == "torch":
            assert row["max_abs_logit_diff"] == 0.0


def test_each_model_is_timed_in_each_runtime_and_shape(verified):
    timed = rows(verified, "p50_ms")
    assert len(timed) == 2 * len(RUNTIMES) * 2
    for row in timed:
        assert row["task"] == "text-classification"
        assert ("speedup" in row) == (row["model"] == "pruned")


def test_a_runtime_that_is_not_here_is_skipped_with_its_reason(verified):
    (skipped,) = verified.document["skipped"]
    assert skipped["runtime"] == "tensorrt"
    assert skipped["reason"]
    assert skipped["reason"] in unescape(verified.report_file.read_text())


def test_an_impossible_speedup_is_no(verified):
    assert not verified.ok
    assert not verified.document["verdict"]["ok"]
    kinds = {claim.claim: claim.outcome for claim in verified.verdict.claims}
    assert kinds["max_drop"] == "held"
    assert kinds["min_speedup"] in {"missed", "undecided"}


def test_examples_on_which_the_models_disagree_are_shown_in_words(verified):
    comparison = verified.document["comparison"]
    assert comparison["runtime"] == "torch"
    assert 0 < len(comparison["examples"]) <= 20
    for example in comparison["examples"]:
        assert example["dense"] != example["pruned"]
        assert {example["label"], example["dense"], example["pruned"]} <= {
            "negative",
            "neutral",
            "positive",
        }
    assert comparison["agreement"] == 1 - comparison["disagreements"] / 40


def test_the_report_has_the_curves_of_the_run(verified):
    assert 'id="curve-loss-title"' in verified.report_file.read_text()


def test_a_missed_drop_is_no(subjects, task, quick, tmp_path):
    settings = VerifySettings(
        bench=quick("onnxruntime-cpu", points=()), targets=Targets(max_drop=-100), limit=10
    )
    result = verify(subjects["dense"], subjects["pruned"], task, settings, tmp_path)
    assert not result.ok
    assert [claim.runtime for claim in result.verdict.claims] == ["onnxruntime-cpu"]
    assert result.verdict.sentence.startswith("Missed: accuracy in onnxruntime-cpu drops by")
    # PyTorch is scored although it was not asked for: it is what the others are compared with.
    assert {row["runtime"] for row in rows(result, "metric")} == {"torch", "onnxruntime-cpu"}


def test_equal_models_differ_in_nothing(subjects, task, quick, tmp_path):
    pruned = subjects["pruned"]
    twin = Subject(label="twin", artifacts=pruned.artifacts)
    settings = VerifySettings(
        bench=quick("torch", points=()), targets=Targets(max_drop=0), limit=20
    )
    result = verify(twin, pruned, task, settings, tmp_path)
    assert result.ok
    assert result.document["comparison"]["disagreements"] == 0
    test = result.document["comparison"]["test"]
    assert (test["difference"], test["low"], test["high"], test["p_value"]) == (0, 0, 0, 1)


def test_exports_without_a_model_directory_are_scored_without_agreement(
    subjects, task, quick, tmp_path
):
    exports = [
        Subject(label=label, artifacts={"onnxruntime-cpu": subject.artifacts["onnxruntime-cpu"]})
        for label, subject in subjects.items()
    ]
    settings = VerifySettings(bench=quick("onnxruntime-cpu", points=("1x8",)), limit=10)
    result = verify(exports[0], exports[1], task, settings, tmp_path)
    assert result.ok
    assert all("agreement" not in row for row in rows(result, "metric"))
    assert result.report_file.is_file()
