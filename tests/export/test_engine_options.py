"""Profiles, targets, numbers and layers of engines that TensorRT-RTX builds without a GPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cofi_deploy import engines
from cofi_deploy.engines import CudaDevice, read_engine_record
from cofi_deploy.errors import ConfigError, EngineBuildError, EnvironmentProblem
from cofi_deploy.export import engine_options
from cofi_deploy.export.engine_layers import engine_layers
from cofi_deploy.export.engine_options import EngineOptions, check_flavour
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.lossy import quantized_modules
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.export.onnx import onnxruntime_infer
from cofi_deploy.export.rounding import rounded_to_bf16
from cofi_deploy.export.tensorrt import export_tensorrt
from cofi_deploy.exports import check_export, rebuild_command
from cofi_deploy.inspect_export import describe_export, render_export
from cofi_deploy.loading import load
from tests.export.test_tensorrt import WIDE

rtx = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="the extra 'tensorrt-rtx' is not installed"
)

BATCH = (1, 2, 4)
GPU = CudaDevice(name="NVIDIA L4", compute_capability="8.9", driver="13.0")


@pytest.fixture(scope="module")
def int8_engine(write_model, tmp_path_factory):
    """An int8 engine with buckets for two kinds of GPU."""
    return export_tensorrt(
        write_model(**WIDE),
        tmp_path_factory.mktemp("int8") / "trt",
        batch_size=BATCH,
        precision="int8",
        options=EngineOptions(
            flavour="tensorrt-rtx",
            buckets=(16, 40, 500),
            builder_level=1,
            compute_capabilities=("8.9", "12.0"),
        ),
    )


def _refused(options, flavour="tensorrt-rtx"):
    with pytest.raises((ConfigError, EnvironmentProblem)) as error:
        check_flavour(options, flavour)
    return str(error.value)


def test_buckets_are_profiles_that_meet_and_end_at_what_the_model_takes(int8_engine):
    record = read_engine_record(int8_engine)
    shapes = [
        (profile["input_ids"]["min"], profile["input_ids"]["opt"], profile["input_ids"]["max"])
        for profile in record.profiles
    ]
    assert shapes == [
        ([1, 1], [2, 16], [4, 16]),
        ([1, 17], [2, 40], [4, 40]),
        ([1, 41], [2, 64], [4, 64]),
    ]
    manifest = check_export(int8_engine)
    assert manifest.options["buckets"] == [16, 40, 64]
    assert "seq_len" not in manifest.options


def test_targets_and_level_are_recorded_and_the_rebuild_command_has_them(int8_engine):
    record = read_engine_record(int8_engine)
    assert record.compute_capabilities == ("8.9", "12.0")
    assert record.options == {
        "buckets": [16, 40, 500],
        "builder_level": 1,
        "compute_capabilities": ["8.9", "12.0"],
    }
    command = rebuild_command(check_export(int8_engine))
    # Not the GPUs: it is for the one that could not run the engine.
    assert command.endswith(
        "--format trt --precision int8 --batch-size 1:2:4 --buckets 16,40,64 --builder-level 1"
    )


def test_turing_is_refused_with_the_reason_that_the_builder_gives(
    write_model, tmp_path, monkeypatch
):
    options = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("7.5",))
    assert "is 7.5 (Turing), where TensorRT-RTX has no matrix products in fp32" in _refused(options)
    # When a later version can, this fails, and the target is to be allowed.
    monkeypatch.setattr(engine_options, "_TURING", "none")
    with pytest.raises(EngineBuildError, match="FP32 GEMM is not supported"):
        export_tensorrt(write_model(), tmp_path / "trt", precision="fp16", options=options)


def test_what_tensorrt_rtx_lacks_is_refused_together():
    words = _refused(
        EngineOptions(
            version_compatible=True, hardware="ampere+", compute_capabilities=("9.0", "8.9")
        )
    )
    assert words.startswith(f"tensorrt-rtx {rtx.__version__}: --version-compatible needs the lean")
    assert "--hardware ampere+ is unsupported in TensorRT-RTX" in words
    allowed = "8.0, 8.6, 8.9, 12.0, 12.1"
    assert f"--compute-capability is '9.0', allowed: {allowed}" in words


def test_what_tensorrt_lacks_is_refused(monkeypatch):
    monkeypatch.setitem(engines._MODULES, "tensorrt", ("tensorrt_rtx_bindings",))
    words = _refused(EngineOptions(compute_capabilities=("8.9",)), "tensorrt")
    assert "--compute-capability is for TensorRT-RTX; TensorRT builds for the GPU at hand" in words


@pytest.mark.parametrize("flag", ["refit", "strip"])
def test_refittable_engines_need_a_gpu(flag, monkeypatch):
    options = EngineOptions(**{flag: True})
    monkeypatch.setattr(engine_options, "cuda_device", lambda: None)
    assert f"--{flag} needs an NVIDIA GPU: tensorrt-rtx {rtx.__version__}" in _refused(options)
    monkeypatch.setattr(engine_options, "cuda_device", lambda: GPU)
    check_flavour(options, "tensorrt-rtx")


def test_weights_of_bytes_are_stored_so_and_computed_in_fp16(int8_engine, write_model):
    manifest = check_export(int8_engine)
    model = load(write_model(**WIDE))
    modules = quantized_modules(model.arch, model.kind)
    assert manifest.options["int8_products"] == len(modules) == 8
    assert manifest.options["int8_activations"] == "fp16"
    numerics = Numerics(precision="int8", int8=dict.fromkeys(modules), strongly_typed=True)
    proto = onnx_from_model(model, opset=17, numerics=numerics)
    types = {item.name: item.data_type for item in proto.graph.initializer}
    assert {types[f"{name}.weight"] for name in modules} == {TensorProto.INT8}
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    found = {item.name: item.type.tensor_type.elem_type for item in inferred}
    assert {found[f"{name}.product"] for name in modules} == {TensorProto.FLOAT16}


def test_a_bf16_graph_is_rounded_after_every_node(write_model, random_inputs, tmp_path):
    model = load(write_model())
    numerics = Numerics(precision="bf16", strongly_typed=True)
    proto = onnx_from_model(model, opset=17, numerics=numerics)
    onnx.checker.check_model(proto, full_check=True)
    rounded = rounded_to_bf16(proto)
    onnx.save_model(rounded, tmp_path / "rounded.onnx")
    # All that is computed, but for the two casts of the rounding itself, is in fp32.
    inferred = onnx.shape_inference.infer_shapes(rounded, strict_mode=True).graph.value_info
    bf16 = {i.name for i in inferred if i.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    assert bf16
    assert all(name.endswith(".bits") for name in bf16)
    inputs = random_inputs(2, 9)
    got = onnxruntime_infer(tmp_path / "rounded.onnx")(inputs)["logits"]
    onnx.save_model(onnx_from_model(model, opset=17), tmp_path / "exact.onnx")
    exact = onnxruntime_infer(tmp_path / "exact.onnx")(inputs)["logits"]
    difference = np.abs(got - exact).max()
    assert 1e-4 < difference < 0.05 * np.abs(exact).max() + 0.05


def test_without_a_gpu_the_report_has_the_layers_before_fusion(int8_engine):
    report = json.loads((int8_engine / "layers.json").read_text())
    assert report["of"] == "network"
    assert "before the builder fused them" in report["meaning"]
    by_name = {layer["name"]: layer for layer in report["layers"]}
    product = by_name["encoder.layers.0.ffn.up.product"]
    assert (product["layer"], product["part"]) == (0, "ffn")
    (output,) = product["outputs"]
    assert (output["type"], output["shape"]) == ("HALF", [-1, -1, 33])
    kept = {layer["layer"] for layer in report["layers"] if layer["part"] in {"ffn", "attention"}}
    assert kept == {0, 2}  # layer 1 vanished
    unplaced = [layer["kind"] for layer in report["layers"] if layer["part"] is None]
    assert set(unplaced) == {"CONSTANT"}  # scalars that several parts share


def test_the_inspectors_report_is_folded_by_the_nodes_that_a_layer_came_from():
    information = {
        "Layers": [
            {
                "Name": "__myl_MulAdd_myl0_3",
                "LayerType": "kgen",
                "Inputs": [{"Name": "x"}],
                "Outputs": [{"Name": "y"}],
                "Metadata": "[ONNX Layer: encoder.layers.2.ffn.up.out]\u001e"
                "[ONNX Layer: encoder.layers.2.ffn.activation]",
            },
            {"Name": "reformat", "Inputs": [{"Name": "y"}], "Outputs": [{"Name": "z"}]},
            "head/classifier.product",
        ]
    }
    report = engine_layers(json.dumps(information))
    assert report.of == "engine"
    assert [(each["layer"], each["part"]) for each in report.layers] == [
        (2, "ffn"),
        (2, "ffn"),
        (None, "head"),
    ]
    assert report.layers[0]["details"]["LayerType"] == "kgen"


def test_inspect_counts_layers_by_part(int8_engine):
    described = describe_export(int8_engine)
    assert described["layers"]["of"] == "network"
    counts = described["layers"]["by_part"]
    assert counts["layer 0 ffn"] > counts["head"] > 0
    assert not any(name.startswith("layer 1 ") for name in counts)
    titles = [getattr(each, "title", None) for each in render_export(described).renderables]
    assert any("before the builder fused them" in str(title) for title in titles)
