"""Every runtime answers like PyTorch, and refuses what it cannot open or read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch

from cofi_deploy.errors import ArtifactError, EnvironmentProblem, RunnerError, UsageError
from cofi_deploy.openvino_core import openvino_core
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.runner import RUNTIMES, availability, open_runner, physical_cores

HERE = ["torch", "onnxruntime-cpu", "openvino"]


@pytest.fixture(params=HERE)
def runtime(request):
    reason = availability(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("label", ["dense", "pruned"])
def test_every_runtime_answers_like_pytorch_with_padding(runtime, label, subjects, padded_inputs):
    artifacts = subjects[label].artifacts
    with open_runner(artifacts["torch"], "torch", threads=1) as reference:
        expected = reference.infer(padded_inputs)
    with open_runner(artifacts[runtime], runtime, threads=1) as runner:
        got = runner.infer(padded_inputs)
    assert list(got) == ["logits"]
    assert got["logits"].dtype == np.float32
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=1e-5)


def test_a_runner_tells_what_it_is(runtime, pruned):
    with open_runner(pruned.artifacts[runtime], runtime, threads=2) as runner:
        assert (runner.runtime, runner.precision, runner.device) == (runtime, "fp32", "cpu")
        assert runner.threads == 2
        assert sorted(runner.input_names) == ["attention_mask", "input_ids", "token_type_ids"]
        assert runner.limits.max_positions == 40
        assert runner.load_ms > 0


def test_outputs_survive_the_next_inference(runtime, pruned, limits):
    first, second = (random_inputs(limits, 2, 5, seed=seed) for seed in (0, 1))
    with open_runner(pruned.artifacts[runtime], runtime, threads=1) as runner:
        kept = runner.infer(first)["logits"]
        before = kept.copy()
        runner.infer(second)
        np.testing.assert_array_equal(kept, before)


def test_wrong_inputs_are_refused_by_every_runtime(runtime, pruned, limits):
    inputs = random_inputs(limits, 1, 4, seed=0)
    inputs["input_ids"][0, 2] = limits.vocab_size
    with (
        open_runner(pruned.artifacts[runtime], runtime, threads=1) as runner,
        pytest.raises(RunnerError, match=f"'input_ids' holds the value {limits.vocab_size}"),
    ):
        runner.infer(inputs)


def test_a_bound_call_runs_without_arguments_and_checks_first(runtime, pruned, limits):
    inputs = random_inputs(limits, 1, 4, seed=0)
    with open_runner(pruned.artifacts[runtime], runtime, threads=1) as runner:
        assert runner.bind(inputs)() is None
        with pytest.raises(RunnerError, match="'token_type_ids' is missing"):
            runner.bind({name: inputs[name] for name in ("input_ids", "attention_mask")})


def test_a_closed_runner_says_so(runtime, pruned, limits):
    runner = open_runner(pruned.artifacts[runtime], runtime, threads=1)
    call = runner.bind(random_inputs(limits, 1, 4, seed=0))
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match=f"this {runtime} runner is closed"):
        runner.infer(random_inputs(limits, 1, 4, seed=0))
    if runtime != "torch":
        with pytest.raises(RunnerError, match="session is closed"):
            call()


def test_bf16_in_pytorch_is_near_and_is_told(pruned, limits):
    inputs = random_inputs(limits, 2, 6, seed=0)
    with open_runner(pruned.artifacts["torch"], "torch", threads=1) as exact:
        expected = exact.infer(inputs)["logits"]
    with open_runner(pruned.artifacts["torch"], "torch", threads=1, precision="bf16") as runner:
        assert runner.precision == "bf16"
        got = runner.infer(inputs)["logits"]
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < 0.2


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        pytest.param("torch", "torch: precision is 'fp8', allowed: fp32, bf16", id="torch"),
        pytest.param(
            "onnxruntime-cpu",
            "onnxruntime-cpu: precision is 'fp8', this artifact allows: fp32; export it again",
            id="onnxruntime",
        ),
        pytest.param(
            "openvino",
            "openvino: precision is 'fp8', this artifact allows: fp32, bf16; export it again",
            id="openvino",
        ),
    ],
)
def test_a_precision_that_the_artifact_lacks_is_refused(runtime, message, pruned):
    with pytest.raises(RunnerError, match=re.escape(message)):
        open_runner(pruned.artifacts[runtime], runtime, threads=1, precision="fp8")


def test_openvino_computes_bf16_only_where_the_processor_does(pruned):
    pytest.importorskip("openvino")
    has_bf16 = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has_bf16:
        with open_runner(pruned.artifacts["openvino"], "openvino", precision="bf16") as runner:
            assert runner.precision == "bf16"
    else:
        with pytest.raises(RunnerError, match="'bf16', but this processor has no bf16"):
            open_runner(pruned.artifacts["openvino"], "openvino", precision="bf16")


def test_a_tampered_artifact_is_refused_by_its_checksum(pruned, tmp_path):
    copy = tmp_path / "onnx"
    shutil.copytree(pruned.artifacts["onnxruntime-cpu"], copy)
    model = copy / "model.onnx"
    model.write_bytes(model.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=re.escape(f"{str(model)!r} has sha256")):
        open_runner(copy, "onnxruntime-cpu")


def test_a_file_that_the_runtime_refuses_is_named_with_its_reason(pruned, tmp_path):
    copy = tmp_path / "onnx"
    shutil.copytree(pruned.artifacts["onnxruntime-cpu"], copy)
    (copy / "model.onnx").write_bytes(b"no protobuf")
    manifest = json.loads((copy / "export.json").read_text())
    manifest["files"] = {"model.onnx": _sha256(b"no protobuf")}
    (copy / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(RunnerError, match=r"onnxruntime-cpu could not open .*Protobuf.*export it"):
        open_runner(copy, "onnxruntime-cpu")


def test_an_export_for_another_runtime_is_refused_with_the_command(pruned):
    with pytest.raises(
        RunnerError, match=r"openvino opens exports of format 'openvino', .* --format openvino"
    ):
        open_runner(pruned.artifacts["onnxruntime-cpu"], "openvino")


def test_a_model_directory_is_no_export(pruned):
    with pytest.raises(ArtifactError, match=r"holds no export\.json"):
        open_runner(pruned.artifacts["torch"], "onnxruntime-cpu")


def test_an_unknown_runtime_gets_the_list_and_the_nearest():
    with pytest.raises(UsageError, match=r"'onnxruntime'.*openvino.*did you mean 'onnxruntime-c"):
        availability("onnxruntime")


def test_threads_below_one_are_refused(pruned):
    with pytest.raises(UsageError, match="threads is 0, allowed: 1 and up"):
        open_runner(pruned.artifacts["torch"], "torch", threads=0)


def test_an_unusable_runtime_says_why_before_it_opens_anything(tmp_path):
    unusable = [(name, reason) for name in RUNTIMES if (reason := availability(name))]
    for name, reason in unusable:
        with pytest.raises(EnvironmentProblem, match=re.escape(reason)):
            open_runner(tmp_path, name)


def test_threads_default_to_physical_cores(pruned):
    with open_runner(pruned.artifacts["onnxruntime-cpu"], "onnxruntime-cpu") as runner:
        assert runner.threads == physical_cores() >= 1


def test_a_torch_runner_gives_the_process_its_threads_back(pruned, limits):
    before = torch.get_num_threads()
    with open_runner(pruned.artifacts["torch"], "torch", threads=before + 1) as runner:
        runner.infer(random_inputs(limits, 1, 4, seed=0))
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
