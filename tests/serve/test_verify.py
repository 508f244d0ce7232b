"""Dense against pruned on a tiny task, in three runtimes, from artifacts to report."""

from __future__ import annotations

import json
from html import unescape

import pytest

from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import UsageError
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
    return verify(subjects["dense"], [subjects["pruned"]], task, settings, out)


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


def test_errors_that_changed_are_shown_in_words_in_both_directions(verified):
    (comparison,) = verified.document["comparisons"]
    assert (comparison["model"], comparison["runtime"]) == ("pruned", "torch")
    counts = [comparison[key]["count"] for key in ("lost", "gained")]
    assert all(counts)
    assert sum(counts) + comparison["both_wrong"] == comparison["disagreements"]
    assert comparison["agreement"] == 1 - comparison["disagreements"] / 40
    for key, right in (("lost", "dense"), ("gained", "pruned")):
        examples = comparison[key]["examples"]
        assert len(examples) == min(comparison[key]["count"], 20)
        for example in examples:
            assert example[right] == example["label"]
            assert example["dense"] != example["pruned"]
            assert example["label"] in {"negative", "neutral", "positive"}


def test_the_report_has_the_curves_of_the_run(verified):
    assert 'id="curve-loss-title"' in verified.report_file.read_text()


def test_a_missed_drop_is_no(subjects, task, quick, tmp_path):
    settings = VerifySettings(
        bench=quick("onnxruntime-cpu", points=()), targets=Targets(max_drop=-100), limit=10
    )
    result = verify(subjects["dense"], [subjects["pruned"]], task, settings, tmp_path)
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
    result = verify(twin, [pruned], task, settings, tmp_path)
    assert result.ok
    (comparison,) = result.document["comparisons"]
    assert comparison["disagreements"] == 0
    test = comparison["test"]
    assert (test["difference"], test["low"], test["high"], test["p_value"]) == (0, 0, 0, 1)


def test_exports_without_a_model_directory_are_scored_without_agreement(
    subjects, task, quick, tmp_path
):
    exports = [
        Subject(label=label, artifacts={"onnxruntime-cpu": subject.artifacts["onnxruntime-cpu"]})
        for label, subject in subjects.items()
    ]
    settings = VerifySettings(bench=quick("onnxruntime-cpu", points=("1x8",)), limit=10)
    result = verify(exports[0], [exports[1]], task, settings, tmp_path)
    assert result.ok
    assert all("agreement" not in row for row in rows(result, "metric"))
    assert result.report_file.is_file()


@pytest.fixture(scope="module")
def family(subjects, task, tmp_path_factory):
    """Dense and two members: the first is the dense model's twin, the second is pruned."""
    settings = VerifySettings(
        bench=BenchSettings(
            runtimes=("torch", "onnxruntime-cpu"),
            points=(OperatingPoint.parse("2x8"),),
            threads=1,
            schedule=Schedule(min_repeats=3, max_seconds=0.0),
            fresh_process=False,
        ),
        targets=Targets(max_drop=0),
        judged="s0",
        limit=30,
    )
    twin = Subject(label="s0", artifacts=subjects["dense"].artifacts)
    pruned = Subject(label="s95", artifacts=subjects["pruned"].artifacts)
    out = tmp_path_factory.mktemp("family")
    return verify(subjects["dense"], [twin, pruned], task, settings, out)


def test_every_member_of_a_family_is_scored_and_timed_beside_the_dense_model(family):
    labels = ["dense", "s0", "s95"]
    for key in ("metric", "p50_ms"):
        found = [(row["runtime"], row["model"]) for row in rows(family, key)]
        expected = [(name, label) for name in ("torch", "onnxruntime-cpu") for label in labels]
        assert found == expected
    document = family.document
    assert (document["dense"], document["members"]) == ("dense", ["s0", "s95"])
    assert list(document["structures"]) == labels


def test_targets_of_a_family_are_about_the_judged_member_alone(family):
    assert family.document["judged"] == "s0"
    assert family.ok  # the twin loses nothing, whatever the pruned member loses
    assert [claim.runtime for claim in family.verdict.claims] == ["torch", "onnxruntime-cpu"]
    assert all(claim.measured == 0 for claim in family.verdict.claims)


def test_each_member_has_its_own_paired_test(family):
    by_label = {item["model"]: item for item in family.document["comparisons"]}
    assert by_label["s0"]["disagreements"] == 0
    assert by_label["s95"]["disagreements"] > 0
    for row in rows(family, "metric"):
        if row["model"] == "dense":
            assert "change_low" not in row
            continue
        test = by_label[row["model"]]["test"]
        assert (row["change_low"], row["change_high"]) == (test["low"], test["high"])
        assert row["p_value"] == test["p_value"]
        change = row["metric"] - row["metric_dense"]
        assert row["change_low"] <= change <= row["change_high"]


def test_sizes_tell_the_parameters_of_every_part(family):
    sizes = {item["model"]: item for item in family.document["sizes"]}
    assert list(sizes) == ["dense", "s0", "s95"]
    parameters = {row["model"]: row["parameters"] for row in rows(family, "metric")}
    for label, size in sizes.items():
        assert sum(size["parameters_by_part"].values()) == size["parameters"] == parameters[label]
    assert sizes["s95"]["parameters_by_part"]["ffn"] < sizes["dense"]["parameters_by_part"]["ffn"]


@pytest.mark.parametrize(
    ("labels", "judged", "message"),
    [
        pytest.param([], None, "there is no pruned model to compare with 'dense'", id="none"),
        pytest.param(["a", "a"], None, "two models are called 'a'", id="twice"),
        pytest.param(["dense"], None, "two models are called 'dense'", id="like the dense one"),
        pytest.param(["a", "b"], "c", "judged is 'c', allowed: a, b", id="unknown"),
    ],
)
def test_labels_that_make_no_sense_are_refused(labels, judged, message, subjects, task, tmp_path):
    members = [Subject(label=name, artifacts=subjects["pruned"].artifacts) for name in labels]
    settings = VerifySettings(bench=BenchSettings(runtimes=("torch",), points=()), judged=judged)
    with pytest.raises(UsageError, match=message):
        verify(subjects["dense"], members, task, settings, tmp_path)
    assert list(tmp_path.iterdir()) == []
