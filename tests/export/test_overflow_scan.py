"""An overflow that only the task's text brings out: found, kept in fp32, told and written down."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from cofi_deploy.arch import LayerArch
from cofi_deploy.export.calibration import CalibrationText, calibration_rows
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.lossy import FP16_HEADROOM, FP16_MAX, scan_activations
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.parity import batch_of
from cofi_deploy.export.tensorrt import EngineOptions, export_tensorrt
from cofi_deploy.exports import check_export, rebuild_command
from cofi_deploy.loading import load, save_compact
from tests.export.conftest import tiny_tokenizer

WIDE = {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 32}
SUBLAYER = "encoder.layers.1.ffn"
PRODUCT = f"{SUBLAYER}.down.product"


@pytest.fixture(scope="module")
def text() -> CalibrationText:
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789#$%&*"
    texts = [("".join(draw.choices(letters, k=draw.randint(1, 40))), None) for _ in range(200)]
    return CalibrationText(texts=tuple(texts), max_length=48, source="texts")


@pytest.fixture(scope="module")
def planted(write_model, text, tmp_path_factory):
    """Weights of one layer so large that this text comes near the end of fp16, and others do not.

    LayerNorm behind it takes the factor out again: in fp32 the answers are those of before.
    """
    source, model = open_source(write_model(**WIDE))
    reached = [_reached(model, calibration_rows(source, each)) for each in (None, text)]
    assert reached[1] > 1.05 * reached[0]  # else there is no number in between
    factor = FP16_MAX / FP16_HEADROOM / (reached[0] * reached[1]) ** 0.5
    with torch.no_grad():
        down = model.encoder.layers[1].ffn.down
        down.weight.mul_(factor)
        down.bias.mul_(factor)
    folder = tmp_path_factory.mktemp("planted") / "model"
    save_compact(model, tiny_tokenizer(), folder)
    return folder


def _reached(model, rows) -> float:
    scanned = scan_activations(onnx_from_model(model, opset=17), (batch_of([row]) for row in rows))
    return scanned[PRODUCT].magnitude


def test_onnx_keeps_the_layer_that_the_text_brings_near_overflow(planted, text, tmp_path, caplog):
    without = check_export(export_onnx(planted, tmp_path / "without", precision="fp16"))
    assert without.options["fp32_sublayers"] == []
    assert "stays fp32" not in caplog.text
    found = check_export(export_onnx(planted, tmp_path / "with", precision="fp16", text=text))
    assert found.options["fp32_sublayers"] == [SUBLAYER]
    assert f"{SUBLAYER} stays fp32: {SUBLAYER}." in caplog.text


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_engines_are_fitted_to_the_text_and_judged_on_it(precision, planted, text, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings", reason="'tensorrt-rtx' is not installed")
    shapes = {"batch_size": (1, 2, 4), "seq_len": (8, 16, 32), "precision": precision}
    options = EngineOptions(flavour="tensorrt-rtx")
    built = {
        name: check_export(
            export_tensorrt(planted, tmp_path / name, text=given, options=options, **shapes)
        )
        for name, given in (("without", None), ("with", text))
    }
    assert built["without"].options["fp32_sublayers"] == []
    assert built["with"].options["fp32_sublayers"] == [SUBLAYER]
    assert built["with"].options["text"] == "texts"
    assert built["without"].parity.text is None
    assert built["with"].parity.text.examples == 200


def test_openvino_stores_weights_beyond_fp16_without_a_loss(write_model, tmp_path):
    model = load(write_model(**WIDE))
    with torch.no_grad():
        down = model.encoder.layers[1].ffn.down
        down.weight.mul_(1e7)
        down.bias.mul_(1e7)
    save_compact(model, tiny_tokenizer(), tmp_path / "model")
    directory = export_openvino(tmp_path / "model", tmp_path / "openvino", precision="fp16")
    parity = check_export(directory).parity
    assert parity.agreement == 1.0
    assert parity.max_abs_logit_diff < 5e-2


@pytest.mark.slow
def test_the_command_line_tells_which_layer_stays_fp32(planted, text, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(first for first, _ in text.texts), encoding="utf-8")
    output = tmp_path / "onnx"
    command = ["export", planted, "--format", "onnx", "--precision", "fp16"]
    command += ["--calibration", texts, "--output", output]
    done = subprocess.run(
        [sys.executable, "-m", "cofi_deploy", *map(str, command)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"{SUBLAYER} stays fp32: {SUBLAYER}." in done.stderr
    manifest = check_export(output)
    assert manifest.options["fp32_sublayers"] == [SUBLAYER]
    assert rebuild_command(manifest).endswith(f"--precision fp16 --calibration {texts}")
