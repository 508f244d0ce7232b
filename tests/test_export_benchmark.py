"""`benchmarks/export.py`: its rows, and the README's tables of them."""

from __future__ import annotations

from typing import Any

import pytest

from cofi_deploy.artifacts import write_json
from cofi_deploy.serve.latency import Schedule
from tests.api.conftest import few_steps, one_thread, tiny_bert, tiny_data, tiny_run, train_tiny
from tests.scripts import load_script

__all__ = ["few_steps", "one_thread", "tiny_bert", "tiny_data", "tiny_run", "train_tiny"]

script = load_script("export")
table = load_script("export_table")


def row(variant: str, batch: int, p50: float, **changes: Any) -> dict[str, Any]:
    times = 30.0 / p50
    return {
        "model": "sst2-s95",
        "variant": variant,
        "size_bytes": 23_450_000,
        "batch_size": batch,
        "seq_len": 128,
        "threads": 2,
        "p50_ms": p50,
        "times_pytorch": times,
        "times_pytorch_low": times - 0.1,
        "times_pytorch_high": times + 0.1,
        "metric_name": "accuracy",
        "metric": 0.87654,
        "agreement": 0.9912,
        **changes,
    }


def synthetic() -> dict[str, Any]:
    filled = {
        "floor_ms": 0.25,
        "parts_ms": {"ffn": 1.0, "embedding": 3.5, "head": 0.1, "x": 0.2},
    }
    return {
        "machine": {"cpu": "Some CPU", "cores": 2},
        "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0", "openvino": "2026.4.0"},
        "rows": [
            row("torch fp32", 1, 30.0),
            row("openvino bf16", 1, 7.5, **filled),
            row("openvino bf16", 32, 15.0, noise="too busy", floor_ms=3.0),
            row("onnx int8", 1, 8.0, floor_ms=0.1, parts_ms={"ffn": 1.0}),
            row("onnx tuned for 1x128", 1, 10.0, metric=None, kept="int8"),
        ],
    }


def test_the_table_says_what_the_result_file_says():
    lines = table.export_tables(synthetic()).splitlines()
    head = "| artifact | MB | accuracy | agreement | 1 x 128, ms (times PyTorch) | "
    assert lines[0] == "<details><summary><b>sst2-s95</b></summary>"
    assert lines[2] == head + "32 x 128, ms (times PyTorch) |"
    assert lines[4] == "| torch fp32 | 23.4 | 0.877 | 0.991 | 30.00 (1.0x, 0.9 to 1.1) |  |"
    assert lines[5] == (
        "| openvino bf16 | 23.4 | 0.877 | 0.991 | 7.50 (4.0x, 3.9 to 4.1) | too busy (2.0x) |"
    )
    tuned = "| onnx tuned for 1x128: int8 | 23.4 |  | 0.991 | 10.00 (3.0x, 2.9 to 3.1) |  |"
    assert lines[7] == tuned
    assert lines[9] == (
        "1 x 128: openvino bf16 is fastest. Its operations alone would take 0.25 ms (120.0x). "
        "Most time: embedding 3.50, ffn 1.00, x 0.20 ms."
    )
    assert lines[-1].startswith("Some CPU, 2 cores, 2 threads; torch 2.13.0, onnxruntime 1.32.0")


def test_the_readme_gets_the_tables_between_its_markers(tmp_path, monkeypatch):
    tables = load_script("tables")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    readme = "a\n<!-- export: begin -->\nold\n<!-- export: end -->\nz\n"
    assert tables.rendered(readme) == "a\n<!-- export: begin -->\n<!-- export: end -->\nz\n"
    write_json(tmp_path / "results" / "export.json", synthetic())
    assert "| openvino bf16 | 23.4 |" in tables.rendered(readme)
    assert "old" not in tables.rendered(readme)


def test_every_format_and_precision_is_measured_and_tuned_where_there_is_text():
    with_text = script.variants(((1, 128), (32, 128)), with_text=True, tune=True)
    assert {"onnx fp16", "openvino bf16", "onnx int8, small vocabulary"} <= set(with_text)
    tuned = with_text["openvino tuned for 32x128"]
    assert (tuned["target"], tuned["batch_size"]) == ("openvino@32x128", (32, 32, 32))
    without_search = script.variants(((1, 128),), with_text=True, tune=False)
    assert {n for n in without_search if " for " in n} == {"onnx fp32 for 1x128"}


def test_without_text_there_is_no_search_but_openvino_has_one_shape():
    found = script.variants(((1, 128), (32, 128)), with_text=False, tune=True)
    assert not any("tuned" in name or "vocabulary" in name for name in found)
    fixed = found["openvino int8 for 32x128"]
    assert (fixed["precision"], fixed["seq_len"]) == ("int8", (128, 128, 128))
    fits = [
        name for name in found if name.startswith("openvino int8") and script._fits(name, "1x128")
    ]
    assert fits == ["openvino int8", "openvino int8 for 1x128"]


def test_the_command_names_runs_and_no_place_of_a_machine(tmp_path):
    runs = [str(tmp_path / "sst2-s95"), "runs/mrpc"]
    told = script._command([*runs, "--seconds", "4", "--no-tune"])
    words = "python benchmarks/export.py sst2-s95 mrpc --seconds 4 --no-tune"
    assert " ".join(told) == words


@pytest.mark.slow
def test_a_row_has_size_accuracy_latency_and_floor(tiny_run, tmp_path, monkeypatch):
    chosen = {
        "onnx fp32": {"format": "onnx"},
        "openvino fp16": {"format": "openvino", "precision": "fp16"},
        "onnx of no kind": {"format": "onnx", "precision": "fp8"},
    }
    monkeypatch.setattr(script, "variants", lambda *_, **__: chosen)
    rows, refused = script.rows_of_model(
        {"model": "sst2-tiny"},
        tiny_run / "model",
        tmp_path,
        Schedule(min_repeats=3, max_seconds=0.0),
        run=tiny_run,
        shapes=((2, 8),),
    )
    assert [row["variant"] for row in rows] == ["torch fp32", "onnx fp32", "openvino fp16"]
    assert "allowed: fp32" in refused["onnx of no kind"]
    torch_row, onnx_row, openvino_row = rows
    assert torch_row["times_pytorch"] == 1.0
    assert onnx_row["agreement"] == 1.0
    assert onnx_row["metric"] == torch_row["metric"]
    weights = tiny_run / "model" / "model.safetensors"
    assert torch_row["size_bytes"] == weights.stat().st_size < openvino_row["size_bytes"]
    assert 0 < onnx_row["floor_ms"] < onnx_row["p50_ms"]
    assert {"attention", "ffn", "embedding", "head"} & set(onnx_row["parts_ms"])
    ratio = torch_row["p50_ms"] / onnx_row["p50_ms"]
    assert onnx_row["times_pytorch"] == pytest.approx(ratio)
