"""The commands of the five-minute tour, typed as a user types them, on real weights and text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.commands import cofi_deploy

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, minilm: Path, data_dir: Path) -> Path:
    """A folder in which `train` has been typed once."""
    folder = tmp_path_factory.mktemp("road")
    done = cofi_deploy(
        folder, "train", "--task", "mrpc", "--model", minilm, "--data-dir", data_dir / "glue",
        "--sparsity", "0.9", "--recipe", "smoke",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "samples per second" in done.stderr
    return folder


def test_training_meets_the_budget_and_leaves_a_whole_run(trained: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    document = json.loads((run / "run.json").read_text("utf-8"))
    assert document["state"] == "done"
    (model,) = document["result"]["models"]
    assert abs(model["realized_sparsity"] - 0.9) < 0.005
    assert {path.name for path in run.iterdir()} >= {"teacher", "model", "metrics.jsonl"}
    assert not (run / "checkpoint").exists()


@pytest.mark.parametrize("export_format", ["onnx", "openvino", "trt", "triton"])
def test_every_format_is_exported_from_the_newest_run(trained: Path, export_format: str) -> None:
    if export_format == "trt":
        pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    done = cofi_deploy(trained, "export", "--format", export_format)
    assert done.returncode == 0, done.stderr
    directory = Path(json.loads(done.stdout)[export_format]["directory"])
    assert (trained / directory / "export.json").is_file()


def test_auto_classes_and_load_give_the_same_logits(trained: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    code = (
        "import sys, torch, cofi_deploy\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "path = sys.argv[1]\n"
        "inputs = AutoTokenizer.from_pretrained(path)(['one sentence', 'and another, longer one'],"
        " padding=True, return_tensors='pt')\n"
        "with torch.no_grad():\n"
        "    auto = AutoModelForSequenceClassification.from_pretrained(path).eval()(**inputs)\n"
        "    ours = cofi_deploy.load(path)(**inputs)\n"
        "print(float((auto.logits - ours.logits).abs().max()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run / "model")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-6


def test_verify_finds_the_run_and_writes_a_report(trained: Path) -> None:
    done = cofi_deploy(
        trained,
        "verify",
        "--limit",
        "40",
        "--max-seconds",
        "0.5",
        "--repeats",
        "5",
        "--point",
        "1x32",
    )
    assert done.returncode == 0, done.stderr
    (run,) = (trained / "runs").iterdir()
    rows = json.loads((run / "verify.json").read_text("utf-8"))["rows"]
    agreements = [
        row["agreement"]
        for row in rows
        if row["runtime"] == "onnxruntime-cpu" and "agreement" in row
    ]
    assert agreements
    assert np.min(agreements) == 1.0
    assert "<html" in (run / "report.html").read_text("utf-8")


def test_a_target_that_is_missed_exits_1(trained: Path) -> None:
    done = cofi_deploy(
        trained, "verify", "--limit", "20", "--max-seconds", "0.5", "--repeats", "5",
        "--point", "1x32", "--runtime", "onnxruntime-cpu", "--min-speedup", "1000",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr


def test_squad_trains_from_local_files(minilm: Path, data_dir: Path, tmp_path: Path) -> None:
    done = cofi_deploy(
        tmp_path, "train", "--task", "squad", "--model", minilm, "--data-dir", data_dir / "squad",
        "--recipe", "smoke", "--sparsity", "0.6", "--set", "train_limit=16",
        "--set", "validation_limit=40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "run.json").read_text("utf-8"))["result"]
    assert result["metric_name"] == "f1"
