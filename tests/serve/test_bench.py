"""Rows for every subject, runtime and shape; what cannot be measured is told."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cofi_deploy.errors import RunnerError, UsageError
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve import bench as benching
from cofi_deploy.serve.bench import bench, usable_runtimes
from cofi_deploy.serve.inputs import InputLimits
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.timed_inputs import batches_for

ROW_KEYS = {
    "model",
    "family",
    "parameters",
    "realized_sparsity",
    "runtime",
    "precision",
    "device",
    "threads",
    "batch_size",
    "seq_len",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "sequences_per_s",
    "rounds",
    "warmup_runs",
    "own_cores",
    "others_cores",
    "others_share",
    "switches_per_s",
    *(f"p{percentile}_{end}_ms" for percentile in (50, 90, 99) for end in ("low", "high")),
}
TASK_KEYS = {"tokens_per_s", "tokens_mean", "tokens_p50", "tokens_p95", "padding_share"}


@pytest.fixture(scope="module")
def encoded(task, pruned):
    return task.encode("validation", load_tokenizer(pruned.tokenizer))


def test_every_subject_runtime_and_shape_has_a_row(subjects, quick, encoded):
    both = [subjects["dense"], subjects["pruned"]]
    result = bench(both, quick("torch", "onnxruntime-cpu"), encoded)
    places = [
        (row["model"], row["runtime"], row["batch_size"], row["seq_len"]) for row in result.rows
    ]
    assert places == [
        (label, runtime, batch, length)
        for runtime in ("torch", "onnxruntime-cpu")
        for batch, length in ((2, 8), (1, "task"))
        for label in ("dense", "pruned")
    ]
    for row in result.rows:
        assert row.keys() >= ROW_KEYS
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["p50_low_ms"] <= row["p50_ms"]
        assert row["warmup_runs"] >= 2
        assert ("speedup" in row) == (row["model"] == "pruned")
        assert (row.keys() & TASK_KEYS) == (TASK_KEYS if row["seq_len"] == "task" else set())
    assert result.conditions["cpu_count"] == len(os.sched_getaffinity(0))
    assert len(result.samples) == len(result.rows)
    assert result.skipped == []


def test_a_point_with_a_runtime_is_measured_in_that_one_alone(pruned, quick):
    settings = quick("torch", "onnxruntime-cpu", points=("torch@1x4", "1x8"))
    rows = bench([pruned], settings).rows
    assert [(row["runtime"], row["seq_len"]) for row in rows] == [
        ("torch", 4),
        ("torch", 8),
        ("onnxruntime-cpu", 8),
    ]


def test_task_lengths_without_a_task_are_told(pruned, quick):
    result = bench([pruned], quick("onnxruntime-cpu"))
    assert [row["seq_len"] for row in result.rows] == [8]
    assert result.notes[0].startswith("onnxruntime-cpu@1xtask was skipped: there are no texts")


def test_what_cannot_be_measured_is_skipped_with_its_reason(pruned):
    alone = Subject(label="pruned", artifacts={"torch": pruned.artifacts["torch"]})
    usable, skipped = usable_runtimes([alone], ["torch", "onnxruntime-cpu", "tensorrt", "torch"])
    assert usable == ["torch"]
    assert [item["runtime"] for item in skipped] == ["onnxruntime-cpu", "tensorrt"]
    assert skipped[0]["reason"] == "no artifact of pruned for it; run: cofi-deploy export"


def test_an_unknown_runtime_is_refused(pruned, quick):
    with pytest.raises(UsageError, match="runtime is 'onyx', allowed: torch"):
        bench([pruned], quick("onyx"))


def test_a_sequence_longer_than_the_model_is_refused(pruned, quick):
    with pytest.raises(RunnerError, match="41 tokens long, allowed: up to 40"):
        bench([pruned], quick("torch", points=("1x41",)))


def test_a_fresh_process_tells_load_first_inference_and_memory(pruned, quick):
    settings = quick("onnxruntime-cpu", points=("2x8",), fresh_process=True)
    (row,) = bench([pruned], settings).rows
    assert row["load_ms"] > 0
    assert row["first_inference_ms"] > 0
    assert 10 < row["idle_memory_mib"] < row["peak_memory_mib"] < 2000


def test_task_lengths_are_probed_with_their_longest_batch(pruned, quick, encoded, monkeypatch):
    probed = []

    def probe(artifact, point):
        probed.append((artifact, point.batch_size, point.seq_len, point.threads))
        return {"load_ms": 1.0}

    monkeypatch.setattr("cofi_deploy.serve.bench.probe", probe)
    settings = quick("onnxruntime-cpu", points=("2xtask",), fresh_process=True)
    (row,) = bench([pruned], settings, encoded).rows
    batches = batches_for(settings.points[0], InputLimits.from_arch(pruned.arch()), encoded, seed=0)
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    assert probed == [(pruned.artifacts["onnxruntime-cpu"], 2, longest, 1)]
    assert row["load_ms"] == 1.0


@pytest.mark.parametrize(
    "runtime",
    [
        "onnxruntime-cpu",
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("openvino", marks=pytest.mark.slow),
    ],
)
def test_saturation_extends_the_first_rows_of_each_length(subjects, quick, encoded, runtime):
    points = ("1x8", "2x8", "1xtask")
    settings = quick(runtime, points=points, saturate=True)
    rows = bench([subjects["dense"], subjects["pruned"]], settings, encoded).rows
    saturated = [row for row in rows if "clients" in row]
    assert [(row["model"], row["batch_size"], row["seq_len"]) for row in saturated] == [
        ("dense", 1, 8),
        ("pruned", 1, 8),
        ("dense", 1, "task"),
        ("pruned", 1, "task"),
    ]
    for row in saturated:
        assert row["saturated_sequences_per_s"] > 0
        assert ("saturated_speedup" in row) == (row["model"] == "pruned")


def test_timed_ids_are_those_of_the_task(encoded, limits):
    point = OperatingPoint(batch_size=3, seq_len=10)
    (batch,) = batches_for(point, limits, encoded, seed=0)
    np.testing.assert_array_equal(batch["input_ids"].ravel(), encoded.input_ids[:30])
    assert batch["attention_mask"].all()


def test_more_ids_than_the_split_has_are_repeated(encoded, limits):
    point = OperatingPoint(batch_size=500, seq_len=40)
    (batch,) = batches_for(point, limits, encoded, seed=0)
    assert batch["input_ids"].shape == (500, 40)


def test_batches_of_the_task_keep_its_lengths(encoded, limits):
    point = OperatingPoint(batch_size=2, seq_len="task")
    batches = batches_for(point, limits, encoded, seed=0)
    assert len(batches) == 16
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    assert all(batch["attention_mask"].any(axis=0).all() for batch in batches)


def test_a_batch_larger_than_the_split_is_filled(encoded, limits):
    point = OperatingPoint(batch_size=len(encoded) + 5, seq_len="task")
    (batch,) = batches_for(point, limits, encoded, seed=0)
    assert batch["input_ids"].shape[0] == len(encoded) + 5


def test_task_lengths_need_a_split(limits):
    with pytest.raises(RunnerError, match="1xtask needs the texts of a task, got none"):
        batches_for(OperatingPoint(batch_size=1, seq_len="task"), limits, None, seed=0)


class OnDevice:
    """A runner whose device has a clock of its own; each call takes a millisecond more."""

    input_names = ("input_ids",)

    def __init__(self) -> None:
        self.calls = 0

    def bind(self, _):
        def call() -> None:
            self.calls += 1

        return call

    def device_ms(self) -> float:
        return float(self.calls)


def test_the_device_s_own_times_are_kept_without_the_warm_up(quick):
    settings = quick("torch")
    samples, device_ms = benching._time(
        {"pruned": OnDevice()}, {"pruned": [{"input_ids": np.zeros((1, 4))}]}, settings
    )
    rounds = len(samples.ms["pruned"])
    warmup = samples.warmup_runs["pruned"]
    assert warmup > 0
    assert device_ms["pruned"] == [float(warmup + number) for number in range(1, rounds + 1)]


def test_a_runtime_on_the_cpu_has_no_device_times(subjects, quick):
    result = bench(list(subjects.values()), quick("torch", points=("2x8",)))
    assert not any("device_p50_ms" in row for row in result.rows)
