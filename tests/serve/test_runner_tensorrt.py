"""What can be known of the TensorRT runner without a GPU: reasons, profiles, refusals.

Execution itself needs a GPU and a TensorRT of its kind; it is marked `gpu`.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from cofi_deploy.errors import EnvironmentProblem, RunnerError
from cofi_deploy.export.engine_options import EngineOptions
from cofi_deploy.export.tensorrt import export_tensorrt, refit_tensorrt
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.runner import availability, open_runner
from cofi_deploy.serve.runner_tensorrt import matching_profile, profile_range

PROFILES = [((1, 16), (8, 128)), ((1, 16), (32, 384))]


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        pytest.param((1, 16), 0, id="smallest"),
        pytest.param((8, 128), 0, id="largest of the first"),
        pytest.param((9, 128), 1, id="batch beyond the first"),
        pytest.param((1, 200), 1, id="length beyond the first"),
    ],
)
def test_the_smallest_profile_that_fits_is_taken(shape, index):
    assert matching_profile(PROFILES, shape) == index
    assert matching_profile(PROFILES[::-1], shape) == 1 - index


BUCKETS = [((1, 1), (32, 32)), ((1, 33), (32, 64)), ((1, 65), (32, 128))]


@pytest.mark.parametrize(
    ("length", "index"), [(1, 0), (32, 0), (33, 1), (64, 1), (65, 2), (128, 2)]
)
def test_every_length_has_its_bucket(length, index):
    assert matching_profile(BUCKETS, (1, length)) == index
    assert matching_profile(BUCKETS, (32, length)) == index


def test_a_shape_outside_of_every_profile_is_refused_with_what_is_allowed():
    message = (
        "inputs have shape 33x128, but the engine takes 1x16 to 8x128, 1x16 to 32x384; "
        "build it again with other --batch-size and --seq-len or --buckets"
    )
    with pytest.raises(RunnerError, match=re.escape(message)):
        matching_profile(PROFILES, (33, 128))


def test_profiles_are_read_as_engine_json_has_them():
    shapes = {"min": [1, 16], "opt": [8, 128], "max": [32, 384]}
    assert profile_range({"input_ids": shapes, "attention_mask": shapes}) == ((1, 16), (32, 384))


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_library_or_gpu_the_reason_is_told(runtime, tmp_path):
    reason = availability(runtime)
    if reason is None:
        pytest.skip(f"{runtime} is usable here")
    assert re.search(r"not installed|no NVIDIA GPU|does not reach the GPU", reason)
    with pytest.raises(EnvironmentProblem, match=re.escape(reason)):
        open_runner(tmp_path, runtime)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_of_several_profiles_answers_like_pytorch(flavour, precision, pruned, tmp_path):
    if reason := availability(flavour):
        pytest.skip(reason)
    engine = export_tensorrt(
        pruned.artifacts["torch"],
        tmp_path / "trt",
        batch_size=(1, 2, 4),
        precision=precision,
        options=EngineOptions(flavour=flavour, buckets=(8, 24, 40)),
    )
    _check_answers(engine, flavour, pruned, atol=1e-2 if precision == "fp32" else 1e-1)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["refit", "strip"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_weights_are_put_into_an_engine(flavour, how, pruned, tmp_path):
    if reason := availability(flavour):
        pytest.skip(reason)
    model = pruned.artifacts["torch"]
    options = EngineOptions(flavour=flavour, **{how: True})
    engine = export_tensorrt(
        model, tmp_path / how, batch_size=(1, 2, 4), seq_len=(4, 8, 40), options=options
    )
    whole = refit_tensorrt(model, tmp_path / "whole", engine=engine)
    _check_answers(whole, flavour, pruned, atol=1e-2)


def _check_answers(engine, flavour, pruned, *, atol):
    with (
        open_runner(pruned.artifacts["torch"], "torch") as reference,
        open_runner(engine, flavour) as runner,
    ):
        for shape in ((1, 4), (3, 17), (4, 40), (2, 8)):
            inputs = random_inputs(runner.limits, *shape, seed=0)
            expected = reference.infer(inputs)["logits"]
            np.testing.assert_allclose(runner.infer(inputs)["logits"], expected, atol=atol)
