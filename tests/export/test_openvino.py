"""The OpenVINO export, on the real CPU plugin."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from cofi_deploy.arch import Arch, LayerArch
from cofi_deploy.errors import ConfigError, ExportError, MissingDependencyError, RunnerError
from cofi_deploy.export import openvino as exporter
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino, openvino_infer
from cofi_deploy.exports import check_export, rebuild_command
from cofi_deploy.kinds import TASK_KINDS, output_names
from cofi_deploy.loading import load
from cofi_deploy.openvino_core import openvino_core
from cofi_deploy.serve.runner import open_runner

WIDE = {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 32}  # what int8 gains from

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_every_kind_answers_like_torch_at_every_shape(kind, write_model, random_inputs, tmp_path):
    model_dir = write_model(kind)
    directory = export_openvino(model_dir, tmp_path / "openvino")
    infer, model = openvino_infer(directory / "openvino_model.xml"), load(model_dir)
    for batch, length in ((1, 1), (1, 64), (4, 9)):
        inputs = random_inputs(batch, length)
        with torch.inference_mode():
            expected = model.outputs({k: torch.from_numpy(v) for k, v in inputs.items()})
        got = infer(inputs)
        assert tuple(got) == output_names(kind)
        for name, array in got.items():
            np.testing.assert_allclose(array, expected[name].numpy(), atol=5e-5)


def test_dense_checkpoint_and_an_encoder_without_layers_convert(
    dense_directory, write_model, tmp_path
):
    empty = write_model(layers=(LayerArch(heads=0, ffn=0),) * 3, hidden=3)
    for index, model_dir in enumerate((dense_directory, empty)):
        manifest = check_export(export_openvino(model_dir, tmp_path / str(index)))
        assert manifest.parity.max_abs_logit_diff <= 1e-4


def test_weights_stay_fp32_and_metadata_says_what_the_model_is(write_model, tmp_path):
    model_dir = write_model()
    directory = export_openvino(model_dir, tmp_path / "openvino")
    ir = openvino_core().read_model(directory / "openvino_model.xml")
    types = {op.get_element_type() for op in ir.get_ops() if op.get_type_name() == "Constant"}
    assert openvino.Type.f16 not in types
    info = {key: ir.get_rt_info(["cofi_deploy", key]).value for key in ("arch", "task_kind")}
    assert Arch.from_json(json.loads(info["arch"])) == load(model_dir).arch
    assert info["task_kind"] == "text-classification"
    assert [dim.is_dynamic for dim in ir.input("input_ids").partial_shape] == [True, True]
    manifest = check_export(directory)
    assert manifest.format == "openvino"
    assert manifest.precision == "fp32"
    assert manifest.parity.runtime == "openvino"
    assert set(manifest.files) >= {"openvino_model.xml", "openvino_model.bin", "tokenizer.json"}
    assert "model.onnx" not in manifest.files


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_size_by_part_is_as_in_onnx_and_adds_up_to_the_files(precision, write_model, tmp_path):
    model_dir = write_model(**WIDE)
    directory = export_openvino(model_dir, tmp_path / "openvino", precision=precision)
    parts = check_export(directory).size_by_part
    files = ("openvino_model.xml", "openvino_model.bin", "tokenizer.json", "tokenizer_config.json")
    assert sum(parts.values()) == sum((directory / name).stat().st_size for name in files)
    if precision in {"fp32", "int8"}:  # of the others ONNX keeps more numbers in fp32
        other = check_export(export_onnx(model_dir, tmp_path / "onnx", precision=precision))
        # At fp32 ONNX has the numbers of the positions, too, which pick rows of a joined table.
        expected = dict(other.size_by_part)
        expected["other embeddings"] -= 8 * 64 if precision == "fp32" else 0
        # At int8 ONNX stores the head in fp16, which OpenVINO converts before it writes its file,
        # and keys and values of the last attention: two matrices of 32 times 32 numbers.
        expected["head"] *= 2 if precision == "int8" else 1
        expected["layers"] += 2 * 32 * 32 * 2 if precision == "int8" else 0
        for part in ("word embeddings", "other embeddings", "layers", "head"):
            assert parts[part] == pytest.approx(expected[part], rel=0.05), part


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.55), ("bf16", 0.55), ("int8", 0.6)])
def test_lossy_weights_take_less_space_and_answer_nearly_the_same(
    precision, share, write_model, random_inputs, tmp_path
):
    plain = export_openvino(write_model(**WIDE), tmp_path / "fp32")
    lossy = export_openvino(write_model(**WIDE), tmp_path / precision, precision=precision)
    sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (plain, lossy)]
    assert sizes[1] < share * sizes[0]
    assert check_export(lossy).precision == precision
    inputs = random_inputs(4, 30)
    answers = [openvino_infer(folder / "openvino_model.xml")(inputs) for folder in (plain, lossy)]
    difference = np.abs(answers[0]["logits"] - answers[1]["logits"]).max()
    assert 0 < difference < 0.1 * np.abs(answers[0]["logits"]).max()


def test_an_ir_that_answers_otherwise_is_refused(write_model, tmp_path, monkeypatch):
    honest = exporter.openvino_infer

    def altered(path, **options):
        infer = honest(path, **options)
        return lambda inputs: {name: array + 0.5 for name, array in infer(inputs).items()}

    monkeypatch.setattr(exporter, "openvino_infer", altered)
    with pytest.raises(ExportError, match=r"openvino differs from PyTorch by up to 5\.00e-01"):
        export_openvino(write_model(), tmp_path / "openvino")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ir_is_refused(tmp_path):
    path = tmp_path / "openvino_model.xml"
    path.write_text("<net/>")
    with pytest.raises(ExportError, match=r"OpenVINO does not open .*openvino_model\.xml"):
        openvino_infer(path)


def test_a_missing_package_names_the_install_line(write_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = (
        "the OpenVINO export needs the package 'openvino', which is not installed; "
        "run: pip install 'cofi-deploy[openvino]'"
    )
    with pytest.raises(MissingDependencyError, match=re.escape(words)):
        export_openvino(write_model(), tmp_path / "openvino")


def test_int8_products_are_computed_on_bytes(write_model, tmp_path):
    directory = export_openvino(write_model(**WIDE), tmp_path / "int8", precision="int8")
    compiled = openvino_core().compile_model(directory / "openvino_model.xml", "CPU")
    info = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    products = [item for item in info if item["layerType"].astype(str) == "FullyConnected"]
    on_bytes = [item for item in products if item["runtimePrecision"].astype(str) == "u8"]
    assert len(on_bytes) == 3 * 6 - 2  # without keys and values of the last attention
    assert len(products) == 3 * 6 + 2  # with those two, pooler and classifier


def test_bf16_is_compared_at_fp32_where_the_processor_lacks_it(
    write_model, tmp_path, monkeypatch, caplog
):
    class OldCore(openvino.Core):
        def get_property(self, *names):
            return (
                ["FP32"] if "OPTIMIZATION_CAPABILITIES" in names else super().get_property(*names)
            )

    monkeypatch.setattr(exporter, "openvino_core", OldCore)
    export_openvino(write_model(), tmp_path / "openvino", precision="bf16")
    assert "this processor has no bf16: openvino_model.xml is compared" in caplog.text


@pytest.mark.parametrize("place", ["a,b", "a b;c=d", "wei\u00df"])
def test_any_name_of_a_directory_will_do(write_model, random_inputs, tmp_path, place):
    directory = export_openvino(write_model(), tmp_path / place / "openvino")
    check_export(directory)
    with open_runner(directory, "openvino", threads=1) as runner:
        assert runner.infer(random_inputs(1, 8))["logits"].shape == (1, 3)


def test_an_unknown_precision_names_what_is_allowed(write_model, tmp_path):
    words = "precision is 'int4', allowed: fp32, fp16, bf16, int8"
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_openvino(write_model(), tmp_path / "openvino", precision="int4")


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_fixed_shape_pads_what_is_smaller_and_splits_what_is_larger(
    kind, precision, write_model, random_inputs, tmp_path
):
    model_dir = write_model(kind, **WIDE)
    fixed = export_openvino(model_dir, tmp_path / "fixed", shape=(2, 24), precision=precision)
    free = export_openvino(model_dir, tmp_path / "free", precision=precision)
    ir = openvino_core().read_model(fixed / "openvino_model.xml")
    assert list(ir.input("input_ids").shape) == [2, 24]
    with (
        open_runner(fixed, "openvino", threads=1) as runner,
        open_runner(free, "openvino", threads=1) as reference,
    ):
        for batch, length in ((1, 1), (2, 24), (5, 9)):
            inputs = random_inputs(batch, length)
            expected = reference.infer(inputs)
            for name, array in runner.infer(inputs).items():
                assert array.shape == expected[name].shape
                atol = 1e-4 if precision == "fp32" else 0.1 * np.abs(expected[name]).max()
                np.testing.assert_allclose(array, expected[name], rtol=0, atol=atol)
        with pytest.raises(RunnerError, match="is 25 tokens long, allowed: up to 24"):
            runner.infer(random_inputs(1, 25))


def test_the_rebuild_command_names_the_fixed_shape(write_model, tmp_path):
    manifest = check_export(export_openvino(write_model(), tmp_path / "fixed", shape=(1, 32)))
    assert rebuild_command(manifest).endswith(
        " --format openvino --batch-size 1:1:1 --seq-len 32:32:32"
    )


@pytest.mark.parametrize("shape", [(0, 8), (1, 0), (1, 65)])
def test_a_shape_that_the_model_cannot_take_is_refused(shape, write_model, tmp_path):
    words = f"shape is {shape[0]}x{shape[1]}, allowed: a batch of 1 and up, a length of 1 to 64"
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_openvino(write_model(), tmp_path / "fixed", shape=shape)


def test_a_static_graph_that_answers_otherwise_is_refused(write_model, tmp_path, monkeypatch):
    honest, calls = exporter.openvino_infer, []

    def altered(path, **options):
        infer = honest(path, **options)
        calls.append(path)
        shift = 0.5 * (len(calls) - 1)  # the second file is the static one
        return lambda inputs: {name: array + shift for name, array in infer(inputs).items()}

    monkeypatch.setattr(exporter, "openvino_infer", altered)
    with pytest.raises(ExportError, match=r"graph of shape 2x16 differs from the dynamic one by 5"):
        export_openvino(write_model(), tmp_path / "fixed", shape=(2, 16))


@pytest.mark.slow
def test_ctrl_c_is_no_segmentation_fault_behind_graphs_that_go_in_any_order(write_model, tmp_path):
    export_openvino(write_model(), tmp_path / "any")
    export_openvino(write_model(), tmp_path / "one", shape=(2, 16))
    script = """
import os, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
from cofi_deploy.export.openvino import openvino_infer
first, second = (
    openvino_infer(pathlib.Path(path) / "openvino_model.xml") for path in sys.argv[1:]
)
del first
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "any"), str(tmp_path / "one")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")
