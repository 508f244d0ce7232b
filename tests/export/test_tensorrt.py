"""Engines built by the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import json
import re
import shutil

import onnx
import pytest
from onnx import TensorProto, helper

from cofi_deploy import engines
from cofi_deploy.arch import DenseShape, LayerArch
from cofi_deploy.artifacts import sha256_file
from cofi_deploy.engines import CudaDevice, check_engine, read_engine_record
from cofi_deploy.errors import (
    ArtifactError,
    ConfigError,
    EngineBuildError,
    EnvironmentProblem,
    MissingDependencyError,
    RunnerError,
)
from cofi_deploy.export import engine as builder
from cofi_deploy.export import engine_options
from cofi_deploy.export import tensorrt as exporter
from cofi_deploy.export.engine import OptimizationProfile, build_engine
from cofi_deploy.export.engine_options import EngineOptions, dotted
from cofi_deploy.export.tensorrt import choose_flavour, export_tensorrt
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import INPUT_NAMES, TASK_KINDS

rtx = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="the extra 'tensorrt-rtx' is not installed"
)

RTX = EngineOptions(flavour="tensorrt-rtx")
SMALL = {"batch_size": (1, 2, 4), "seq_len": (8, 16, 32), "options": RTX}
# Wide enough for int8, and not a multiple of 8.
WIDE = {
    "dense": DenseShape(layers=3, hidden=48, heads=4, ffn=64, head_size=8),
    "hidden": 36,
    "layers": (LayerArch(heads=4, ffn=33), LayerArch(heads=0, ffn=0), LayerArch(heads=1, ffn=40)),
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def _slow(*values: str):
    return pytest.param(*values, marks=pytest.mark.slow)


# Each kind and each precision once in every run, all pairs of them among the slow tests.
_FAST = tuple(zip(TASK_KINDS, PRECISIONS, strict=True))
KINDS_AND_PRECISIONS = [
    (kind, precision) if (kind, precision) in _FAST else _slow(kind, precision)
    for kind in TASK_KINDS
    for precision in PRECISIONS
]

PROFILE = OptimizationProfile(min=(1, 8), opt=(2, 16), max=(4, 32))


@pytest.fixture(scope="module")
def engine_directory(write_model, tmp_path_factory):
    return export_tensorrt(write_model(), tmp_path_factory.mktemp("engine") / "trt", **SMALL)


@pytest.fixture
def copied(engine_directory, tmp_path):
    return shutil.copytree(engine_directory, tmp_path / "copy")


@pytest.mark.parametrize(("kind", "precision"), KINDS_AND_PRECISIONS)
def test_engines_of_every_kind_build_with_vanished_sublayers_and_odd_widths(
    kind, precision, write_model, tmp_path
):
    directory = export_tensorrt(write_model(kind), tmp_path / "trt", precision=precision, **SMALL)
    manifest, record = check_export(directory), read_engine_record(directory)
    assert (directory / "model.plan").stat().st_size > 1000
    assert (manifest.format, manifest.precision, manifest.kind) == ("trt", precision, kind)
    assert record.precision == precision
    rounded = ", rounded to bf16" if precision == "bf16" else ""
    assert manifest.parity.runtime == f"onnxruntime-cpu{rounded}"


@pytest.mark.parametrize("precision", ["fp16", *(_slow(each) for each in ("fp32", "bf16", "int8"))])
@pytest.mark.parametrize(
    "layers",
    [
        (LayerArch(heads=0, ffn=0),) * 3,
        (LayerArch(heads=1, ffn=1),) * 3,
        (LayerArch(heads=4, ffn=64),) * 3,
    ],
    ids=["no layer left", "one head and one unit each", "dense"],
)
def test_extreme_structures_build(layers, precision, write_model, tmp_path):
    directory = export_tensorrt(
        write_model(layers=layers), tmp_path / "trt", precision=precision, **SMALL
    )
    assert read_engine_record(directory).flavour == "tensorrt-rtx"


def test_dense_checkpoint_builds(dense_directory, tmp_path):
    assert check_export(export_tensorrt(dense_directory, tmp_path / "trt", **SMALL))


def test_record_says_what_the_engine_was_built_for(engine_directory):
    record = read_engine_record(engine_directory)
    assert record.version == rtx.__version__
    assert record.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert record.gpu is None
    assert record.plan_sha256 == sha256_file(engine_directory / "model.plan")
    shapes = {"min": [1, 8], "opt": [2, 16], "max": [4, 32]}
    assert record.profiles == (dict.fromkeys(INPUT_NAMES, shapes),)
    data = json.loads((engine_directory / "engine.json").read_text())
    assert data["schema_version"] == 1
    assert data["arch"]["hidden"] == 29
    assert data["options"] == {}
    assert {"model.plan", "engine.json", "layers.json"} <= set(check_export(engine_directory).files)


def test_lengths_are_cut_to_what_the_model_can_take(write_model, tmp_path):
    directory = export_tensorrt(
        write_model(),
        tmp_path / "trt",
        batch_size=(1, 1, 2),
        seq_len=(16, 128, 384),
        options=RTX,
    )
    (profile,) = read_engine_record(directory).profiles
    assert profile["input_ids"] == {"min": [1, 16], "opt": [1, 64], "max": [2, 64]}
    assert check_export(directory).options["seq_len"] == [16, 64, 64]


def test_options_that_do_not_fit_are_reported_together(write_model, tmp_path):
    words = (
        "batch_size is 8:1:32, allowed: 1 <= MIN <= OPT <= MAX; "
        "seq_len is 0:1:2, allowed: 1 <= MIN <= OPT <= MAX; "
        "precision is 'int4', allowed: fp32, fp16, bf16, int8; did you mean 'int8'?; "
        "flavour is 'cuda', allowed: auto, tensorrt, tensorrt-rtx; "
        "buckets has 0, allowed: lengths of 1 token or more; "
        "builder_level is 6, allowed: 0 to 5; "
        "hardware is 'any', allowed: same, ampere+, same-capability"
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_tensorrt(
            write_model(),
            tmp_path / "trt",
            batch_size=(8, 1, 32),
            seq_len=(0, 1, 2),
            precision="int4",
            options=EngineOptions(
                flavour="cuda",
                buckets=(0, 8),
                builder_level=6,
                hardware="any",
            ),
        )


def test_auto_takes_rtx_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(exporter, "cuda_device", lambda: None)
    assert choose_flavour("auto") == "tensorrt-rtx"


def test_auto_takes_tensorrt_where_it_and_a_gpu_are_present(monkeypatch):
    device = CudaDevice(name="a GPU", compute_capability="9.0")
    monkeypatch.setattr(exporter, "cuda_device", lambda: device)
    monkeypatch.setitem(engines._MODULES, "tensorrt", ("tensorrt_rtx_bindings",))
    assert choose_flavour("auto") == "tensorrt"


def test_without_any_library_the_install_line_is_given(monkeypatch):
    for flavour in engines.FLAVOURS:
        monkeypatch.setitem(engines._MODULES, flavour, ("no_such_module",))
    with pytest.raises(MissingDependencyError, match=r"pip install 'cofi-deploy\[tensorrt-rtx\]'"):
        choose_flavour("auto")


def test_a_named_flavour_that_is_missing_is_refused_before_the_work(
    write_model, tmp_path, monkeypatch
):
    monkeypatch.setitem(engines._MODULES, "tensorrt", ("no_such_module",))
    with pytest.raises(MissingDependencyError, match="needs the package 'tensorrt'"):
        export_tensorrt(write_model(), tmp_path / "trt", options=EngineOptions(flavour="tensorrt"))
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_without_a_gpu_is_refused_before_the_work(write_model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_options, "cuda_device", lambda: None)
    monkeypatch.setitem(engines._MODULES, "tensorrt", ("tensorrt_rtx_bindings",))
    with pytest.raises(EnvironmentProblem, match="but the CUDA driver shows none; run this on"):
        export_tensorrt(write_model(), tmp_path / "trt", options=EngineOptions(flavour="tensorrt"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_the_parser_refuses_carries_its_first_error(tmp_path):
    path = tmp_path / "model.onnx"
    node = helper.make_node("NoSuchOperator", ["input_ids"], ["logits"])
    onnx.save_model(_model(node, TensorProto.INT64), path)
    words = rf"tensorrt-rtx {re.escape(rtx.__version__)} built no engine from 'model.onnx' at fp32:"
    with pytest.raises(EngineBuildError, match=words + r" the parser says: .*; export at another"):
        build_engine(path, flavour="tensorrt-rtx", profiles=[PROFILE], precision="fp32")


def test_a_graph_that_the_builder_refuses_carries_shapes_and_its_first_error(tmp_path):
    # The standard Attention operator at fp32 has no kernel; the parser takes it, the builder not.
    path = tmp_path / "model.onnx"
    shape = ["batch", 2, "sequence", 8]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("q", "k", "v")
    ]
    node = helper.make_node("Attention", ["q", "k", "v"], ["out"])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "attention", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(model, path)
    profile = OptimizationProfile(min=(1, 2, 1, 8), opt=(2, 2, 4, 8), max=(4, 2, 8, 8))
    words = r"at fp32 \(input_ids .*\): .*Attention.*; narrow --batch-size and --seq-len"
    with pytest.raises(EngineBuildError, match=words):
        build_engine(path, flavour="tensorrt-rtx", profiles=[profile], precision="fp32")


def test_an_interrupted_build_leaves_nothing(write_model, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "build_engine", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_tensorrt(write_model(), tmp_path / "trt", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_gpu_is_told_what_the_engine_needs(engine_directory, monkeypatch):
    monkeypatch.setattr(engines, "cuda_device", lambda: None)
    words = "needs an NVIDIA GPU of compute capability 8.0, 8.6, 8.9, 12.0, 12.1, but the CUDA"
    with pytest.raises(RunnerError, match=re.escape(words)):
        check_engine(engine_directory)


def test_a_gpu_that_the_engine_was_not_built_for_is_named_with_the_rebuild_command(
    engine_directory, write_model, monkeypatch
):
    device = CudaDevice(name="NVIDIA H100", compute_capability="9.0")
    monkeypatch.setattr(engines, "cuda_device", lambda: device)
    words = (
        "but NVIDIA H100 has 9.0; rebuild it here: cofi-deploy export "
        f"{write_model()} --format trt --batch-size 1:2:4 --seq-len 8:16:32"
    )
    with pytest.raises(RunnerError, match=re.escape(words)):
        check_engine(engine_directory)


def test_a_gpu_that_the_engine_was_built_for_passes(engine_directory, monkeypatch):
    device = CudaDevice(name="NVIDIA L4", compute_capability="8.9")
    monkeypatch.setattr(engines, "cuda_device", lambda: device)
    assert check_engine(engine_directory).flavour == "tensorrt-rtx"


def test_an_engine_of_another_version_is_refused_with_both_versions(copied, monkeypatch):
    monkeypatch.setattr(rtx, "__version__", "9.9.9")
    with pytest.raises(
        RunnerError,
        match=r"built by tensorrt-rtx 1\..*, but 9\.9\.9 is installed; rebuild it here",
    ):
        check_engine(copied)


def test_an_engine_of_a_flavour_that_is_not_installed_gives_the_install_line(copied, monkeypatch):
    monkeypatch.setitem(engines._MODULES, "tensorrt-rtx", ("no_such_module",))
    with pytest.raises(MissingDependencyError, match="'tensorrt-rtx', which is not installed"):
        check_engine(copied)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profiles": [{}]}, "a profile without inputs"),
        ({"profiles": [{"input_ids": {"min": [1], "opt": [1], "max": [1]}}]}, "missing or unknown"),
        ({"flavour": "openvino"}, "names flavour 'openvino', allowed: tensorrt, tensorrt-rtx"),
        ({"profiles": None}, "has a missing or unknown entry"),
        ({"schema_version": 7}, "has schema_version 7"),
    ],
)
def test_a_record_that_is_not_ours_is_refused(changes, words, copied):
    path = copied / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ArtifactError, match=re.escape(words)):
        read_engine_record(copied)


def test_names_of_compute_capabilities_are_written_with_a_dot():
    assert [dotted(name) for name in ("SM75", "SM120")] == ["7.5", "12.0"]


def test_only_tensorrt_10_needs_the_flag_for_strong_typing():
    class Ten:
        __version__ = "10.14.1"

        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 1

    assert builder._network_flags(Ten, "tensorrt") == 2
    Ten.__version__ = "11.4.0"
    assert builder._network_flags(Ten, "tensorrt") == 0
    assert builder._network_flags(rtx, "tensorrt-rtx") == 0


def _model(node: onnx.NodeProto, data_type: int) -> onnx.ModelProto:
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        [node],
        "odd",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", data_type, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
