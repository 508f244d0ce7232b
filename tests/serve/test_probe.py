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
    monkeypatch.setattr("cofi_deploy.serve.probe._TIMEOUT_S", 0.01)
    point = OperatingPoint(batch_size=1, seq_len=4, runtime="onnxruntime-cpu", threads=1)
    with pytest.raises(RunnerError, match=r"onnxruntime-cpu@1x4 of .* took more than 0\.01 s"):
        probe(pruned.artifacts["onnxruntime-cpu"], point)


def test_peak_memory_is_that_of_this_process():
    held = bytearray(30 * 2**20)
    before = peak_memory_mib()
    assert before > 30
    del held
    # The kernel counts pages in batches for each thread, so the value may waver a little.
    assert peak_memory_mib() >= before - 4
