"""A fresh process that fails says why."""

from __future__ import annotations

import pytest

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.probe import peak_memory_mib, probe


def test_a_failing_process_is_told_with_its_last_line(tmp_path):
    point = OperatingPoint(batch_size=1, seq_len=4, runtime="onnxruntime-cpu", threads=1)
    with pytest.raises(RunnerError, match=r"ended with status 1 .* holds no export\.json"):
        probe(tmp_path, point)


def test_a_process_that_takes_too_long_is_told(pruned, monkeypatch):
    monkeypatch.setattr("cofi_deploy.serve.own_process.TIMEOUT_S", 0.01)
    point = OperatingPoint(batch_size=1, seq_len=4, runtime="onnxruntime-cpu", threads=1)
    with pytest.raises(RunnerError, match=r"onnxruntime-cpu@1x4 of .* took more than 0\.01 s"):
        probe(pruned.artifacts["onnxruntime-cpu"], point)


@pytest.mark.parametrize(
    "runtime",
    ["onnxruntime-cpu", "openvino", pytest.param("torch", marks=pytest.mark.slow)],
)
def test_each_runtime_is_measured_in_a_process_of_its_own(pruned, runtime):
    held = bytearray(300 * 2**20)  # ours, which the other process must not count
    point = OperatingPoint(batch_size=2, seq_len=9, runtime=runtime, threads=1)
    got = probe(pruned.artifacts[runtime], point)
    assert got.keys() == {"load_ms", "first_inference_ms", "peak_memory_mib", "idle_memory_mib"}
    assert got["load_ms"] > 0
    assert got["first_inference_ms"] > 0
    assert 10 < got["idle_memory_mib"] <= got["peak_memory_mib"]
    # The model is tiny: what it costs is little beside the libraries.
    assert got["peak_memory_mib"] - got["idle_memory_mib"] < 250
    del held


def test_a_larger_batch_takes_more_memory(subjects):
    costs = []
    for batch in (1, 4000):
        point = OperatingPoint(batch_size=batch, seq_len=40, runtime="onnxruntime-cpu", threads=1)
        got = probe(subjects["dense"].artifacts["onnxruntime-cpu"], point)
        costs.append(got["peak_memory_mib"] - got["idle_memory_mib"])
    # Each layer holds 4,000 x 40 positions of 32 FFN units: 20 MiB at the least.
    assert costs[1] > costs[0] + 20


def test_peak_memory_is_that_of_this_process():
    held = bytearray(30 * 2**20)
    before = peak_memory_mib()
    assert before > 30
    del held
    # The kernel counts pages in batches for each thread, so the value may waver a little.
    assert peak_memory_mib() >= before - 4
