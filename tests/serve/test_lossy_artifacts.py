"""Lossy exports in the runners and in `verify`: the right precision, the right tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cofi_deploy.errors import RunnerError
from cofi_deploy.export.calibration import calibration_from_task
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.openvino_core import openvino_core
from cofi_deploy.serve import runner_openvino
from cofi_deploy.serve.accuracy import max_abs_logit_diff
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.runner import availability, open_runner
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verify import VerifySettings, verify

EXPORTS = {"onnxruntime-cpu": export_onnx, "openvino": export_openvino}


@pytest.fixture(params=EXPORTS)
def runtime(request):
    reason = availability(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def needs_bf16(runtime, precision):
    if runtime == "openvino" and precision == "bf16":
        pytest.importorskip("openvino")
        if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has no bf16")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_runner_opens_each_precision_and_says_which(precision, runtime, pruned, limits, tmp_path):
    needs_bf16(runtime, precision)
    directory = EXPORTS[runtime](pruned.artifacts["torch"], tmp_path / "x", precision=precision)
    inputs = random_inputs(limits, 2, 9, seed=0)
    with open_runner(pruned.artifacts[runtime], runtime, threads=1) as exact:
        expected = exact.infer(inputs)["logits"]
    with open_runner(directory, runtime, threads=1) as runner:
        assert runner.precision == precision
        got = runner.infer(inputs)["logits"]
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()


def test_int8_cannot_be_had_from_an_export_of_another_precision(runtime, pruned, tmp_path):
    with pytest.raises(RunnerError, match="precision is 'int8', this artifact allows: fp32"):
        open_runner(pruned.artifacts[runtime], runtime, precision="int8")
    directory = EXPORTS[runtime](pruned.artifacts["torch"], tmp_path / "x", precision="int8")
    with pytest.raises(RunnerError, match="precision is 'fp32', this artifact allows: int8; exp"):
        open_runner(directory, runtime, precision="fp32")


def test_a_bf16_export_is_refused_or_run_in_fp32_where_the_processor_lacks_it(
    pruned, tmp_path, monkeypatch
):
    openvino = pytest.importorskip("openvino")
    directory = export_openvino(pruned.artifacts["torch"], tmp_path / "x", precision="bf16")

    class OldCore(openvino.Core):
        def get_property(self, *names):
            return ["FP32"]

    monkeypatch.setattr(runner_openvino, "openvino_core", OldCore)
    words = "precision is 'bf16', but this processor has no bf16 (AVX512-BF16 or AMX); use 'fp32'"
    with pytest.raises(RunnerError, match=re.escape(words)):
        open_runner(directory, "openvino", threads=1)
    with open_runner(directory, "openvino", threads=1, precision="fp32") as runner:
        assert runner.precision == "fp32"


def test_verify_reads_a_cut_vocabulary_with_its_own_tokenizer(pruned, task, quick, tmp_path):
    small = export_onnx(
        pruned.artifacts["torch"],
        tmp_path / "onnx",
        text=calibration_from_task(task),
        shrink_embeddings=True,
    )
    artifacts = {"torch": pruned.artifacts["torch"], "onnxruntime-cpu": small}
    cut = Subject(label="cut", artifacts=artifacts)
    assert cut.own_tokenizer("torch") is None
    assert cut.own_tokenizer("onnxruntime-cpu") == small
    assert pruned.own_tokenizer("onnxruntime-cpu") is None
    settings = VerifySettings(
        bench=quick("torch", "onnxruntime-cpu", points=("2x8", "1xtask")), limit=30
    )
    document = verify(pruned, [cut], task, settings, tmp_path / "out").document
    scored = [row for row in document["rows"] if "metric" in row]
    assert {row["agreement"] for row in scored} == {1.0}
    assert all(row["max_abs_logit_diff"] < 1e-4 for row in scored)
    assert sum("p50_ms" in row for row in document["rows"]) == 2 * 2 * 2


def test_answers_to_other_tokens_have_no_logit_difference():
    one, other = [{"logits": np.zeros((4, 3))}], [{"logits": np.zeros((5, 3))}]
    assert max_abs_logit_diff(one, other) is None
    assert max_abs_logit_diff(one, one) == 0.0
