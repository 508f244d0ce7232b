"""The README's tables of the paper's structures say what their result files say."""

from __future__ import annotations

from typing import Any

from cofi_deploy.artifacts import write_json
from tests.scripts import load_script

table = load_script("paper_table")


def synthetic() -> dict[str, Any]:
    """A result file of gpu.py with two models at one point, and two training stages."""
    shared = {"runtime": "torch", "precision": "fp16", "batch_size": 128, "seq_len": 128}
    shared |= {"base_model": "bert-base, random weights", "threads": 2}
    train = {"stage": "prune", "batch_size": 32, "base_model": "bert-base, random weights"}
    return {
        "machine": {"gpu": "Some GPU, 580.1", "cpu": "Some CPU", "cores": 16},
        "versions": {"python": "3.12.3", "torch": "2.11.0+cu130"},
        "rows": [
            {**shared, "model": "dense", "realized_sparsity": 0.0, "p50_ms": 12.345},
            {**shared, "model": "mean-s95", "realized_sparsity": 0.9445, "p50_ms": 1.9}
            | {"speedup": 6.51, "speedup_low": 6.4, "speedup_high": 6.62}
            | {"published_speedup": 12.13},
            {**shared, "model": "odd", "realized_sparsity": 0.9, "p50_ms": 2.0, "speedup": None},
            {**shared, "model": "wide", "realized_sparsity": 0.8, "p50_ms": None, "speedup": None}
            | {"speedup_low": 1.84, "speedup_high": 2.87},
            {**train, "precision": "bf16", "sequences_per_s": 1234.5},
            {**train, "precision": "fp32", "sequences_per_s": 456.7},
            {**train, "precision": "fp32", "sequences_per_s": 3456.7, "stage": "finetune"},
        ],
        "parts": [
            {"part": "latency torch fp16", "state": "done", "reason": None},
            {"part": "latency tensorrt fp16", "state": "skipped", "reason": "tensorrt is not here"},
        ],
    }


def test_the_gpu_table_says_what_the_result_file_says():
    lines = table.gpu_tables(synthetic()).splitlines()
    assert lines[2:8] == [
        "| structure | encoder pruned | published | PyTorch fp16, 128 x 128 |",
        "|---|---|---|---|",
        "| dense | 0.0 % |  | 12.3 ms |",
        "| mean-s95 | 94.5 % | 12.1x | 6.5x (6.4 to 6.6) |",
        "| odd | 90.0 % |  | too noisy to compare |",
        "| wide | 80.0 % |  | 1.8 to 2.9 |",
    ]
    assert "| pruning, at its beginning, when nothing is pruned yet | 1,234 | 457 |" in lines
    assert "| fine-tuning the structure at 95 % |  | 3,457 |" in lines
    assert "Not measured: latency tensorrt fp16 (tensorrt is not here)." in lines
    assert lines[-1] == "Some GPU, 580.1; torch 2.11.0+cu130."


def test_the_cpu_table_names_the_processor_and_its_threads():
    document = synthetic()
    document["rows"] = [row for row in document["rows"] if "p50_ms" in row]
    lines = table.paper_tables(document).splitlines()
    assert lines[-1] == "Some CPU, 16 cores, 2 threads; torch 2.11.0+cu130."


def test_the_readme_gets_both_tables_between_its_markers(tmp_path, monkeypatch):
    tables = load_script("tables")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    readme = "a\n<!-- paper: begin -->\nold\n<!-- paper: end -->\nz\n"
    assert tables.rendered(readme) == "a\n<!-- paper: begin -->\n<!-- paper: end -->\nz\n"
    write_json(tmp_path / "results" / "gpu.json", synthetic())
    assert "| mean-s95 | 94.5 % | 12.1x |" in tables.rendered(readme)
    assert "old" not in tables.rendered(readme)
