"""ONNX graphs whose batch is fixed to 1: another layout of the same function."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cofi_deploy import api
from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import ConfigError
from cofi_deploy.export.calibration import calibration_rows
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.opsets import OPSETS
from cofi_deploy.export.triton import export_triton
from cofi_deploy.exports import check_export, rebuild_command
from cofi_deploy.kinds import INPUT_NAMES, TASK_KINDS, output_names
from cofi_deploy.loading import load
from cofi_deploy.serve.profile_onnxruntime import profiled_runs
from cofi_deploy.serve.runner import RunnerSettings, open_runner
from tests.builders import random_model
from tests.families import MODELS, dense_arch_of, padded_inputs

GONE = LayerArch(heads=0, ffn=0)
STRUCTURES = {
    "uneven": {},
    "dense": {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 32},
    "nothing left but embeddings": {"layers": (GONE,) * 3, "hidden": 1},
    "one head and then FFNs": {
        "layers": (LayerArch(heads=1, ffn=0), GONE, LayerArch(heads=0, ffn=5))
    },
    "FFNs alone": {"layers": (LayerArch(heads=0, ffn=9), GONE, LayerArch(heads=0, ffn=1))},
}


def run(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_every_kind_and_structure_answers_like_torch_at_every_length(
    kind, structure, write_model, random_inputs
):
    model = load(write_model(kind, **structure))
    proto = onnx_from_model(model, opset=17, one_text=True)
    for length in (1, 2, 33, 64):
        inputs = random_inputs(1, length)
        with torch.inference_mode():
            expected = model.outputs({k: torch.from_numpy(v) for k, v in inputs.items()})
        got = run(proto, inputs)
        assert set(got) == set(output_names(kind))
        for name, array in got.items():
            assert array.shape == tuple(expected[name].shape)
            np.testing.assert_allclose(array, expected[name].numpy(), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("family", MODELS)
def test_every_family_and_opset_answers_like_torch(family, opset):
    model = random_model("text-classification", dense_arch_of(family))
    inputs = padded_inputs(model.arch, lengths=(9,), width=14)
    with torch.inference_mode():
        expected = model.outputs(inputs)["logits"].numpy()
    proto = onnx_from_model(model, opset=opset, one_text=True)
    got = run(proto, {name: value.numpy() for name, value in inputs.items()})["logits"]
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_the_same_numbers_give_the_same_answers(kind, precision, write_model, random_inputs):
    source, model = open_source(write_model(kind))
    numerics = choose_numerics(model, precision, calibration_rows(source, None))
    both = [
        run(
            onnx_from_model(model, opset=17, numerics=numerics, one_text=one_text),
            random_inputs(1, 21),
        )
        for one_text in (False, True)
    ]
    tolerance = {"fp16": 5e-3, "bf16": 1e-5}[precision]  # a product with its sum rounds once less
    for name in output_names(kind):
        np.testing.assert_allclose(both[1][name], both[0][name], atol=tolerance)


def test_residuals_and_biases_are_part_of_the_products(write_model):
    model = load(write_model("token-classification"))
    graph = onnx_from_model(model, opset=17, one_text=True).graph
    writers = {node.output[0]: node for node in graph.node}
    for layer, parts in ((0, ["ffn"]), (1, ["attention"]), (2, ["attention", "ffn"])):
        for part in parts:
            residual = writers[f"encoder.layers.{layer}.{part}.residual"]
            # A bias that no shift could hold is added first.
            assert residual.op_type == "Gemm" or residual.input[0].endswith(".out")
    assert writers["encoder.layers.1.attention.query.out"].op_type == "Gemm"
    values = {i.name: onnx.numpy_helper.to_array(i).tolist() for i in graph.initializer}
    shapes = [values[node.input[1]] for node in graph.node if node.op_type == "Reshape"]
    assert all(-1 not in shape for shape in shapes)  # no axis is inferred


@pytest.fixture(scope="module")
def both(write_model, tmp_path_factory) -> dict[bool, Path]:
    """A graph of any batch and one of one text, of the same model."""
    folder = tmp_path_factory.mktemp("both")
    model = write_model("question-answering")
    return {
        one_text: api.export(
            model, format="onnx", output=folder / str(one_text), batch_size=batch_size
        )
        for one_text, batch_size in ((False, None), (True, (1, 1, 1)))
    }


def test_an_export_of_one_text_says_so_and_can_be_made_again(both):
    manifest = check_export(both[True])
    assert manifest.options["batch_size"] == [1, 1, 1]
    assert rebuild_command(manifest).endswith("--format onnx --batch-size 1:1:1")
    assert "batch_size" not in check_export(both[False]).options
    proto = onnx.load(both[True] / "model.onnx")
    assert tuple(item.name for item in proto.graph.input) == INPUT_NAMES
    for item in (*proto.graph.input, *proto.graph.output):
        batch, sequence = item.type.tensor_type.shape.dim
        assert (batch.dim_value, sequence.dim_param) == (1, "sequence")


def test_a_runner_asks_it_for_each_text_of_a_batch(both, random_inputs):
    inputs = random_inputs(5, 17)
    with open_runner(both[False], "onnxruntime-cpu") as runner:
        expected = runner.infer(inputs)
    with open_runner(both[True], "onnxruntime-cpu") as runner:
        got = runner.infer(inputs)
    for name, array in got.items():
        assert array.shape == (5, 17)
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


def test_its_profile_of_a_batch_is_that_of_all_texts(both, random_inputs):
    settings = RunnerSettings(runtime="onnxruntime-cpu", threads=1, precision=None)
    runs = profiled_runs(both[True], settings, random_inputs(3, 16), warmup=2, runs=4)
    assert len(runs) == 4
    for each in runs:
        assert {place.part for place in each if place} >= {"attention", "ffn", "embedding"}


def test_int8_which_would_be_slower_is_refused(write_model, tmp_path):
    words = "an int8 graph of one text at a time is slower than that of any batch"
    with pytest.raises(ConfigError, match=words):
        api.export(
            write_model(),
            format="onnx",
            precision="int8",
            batch_size=(1, 1, 1),
            output=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_a_server_that_forms_batches_refuses_it(both, tmp_path):
    words = f"{str(both[True])!r} computes one text at a time, but a server forms batches; run: "
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_triton(both[True], tmp_path / "models", name="tiny")
