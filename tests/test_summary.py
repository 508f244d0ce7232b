"""Tables for people: the ratio first, and no number that should not be believed."""

from __future__ import annotations

from typing import Any

import pytest

from cofi_deploy.artifacts import write_json
from cofi_deploy.serve.bench import BenchResult
from cofi_deploy.summary import print_latency, print_run


def row(model: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": model,
        "runtime": "openvino",
        "batch_size": 4,
        "seq_len": 128,
        "p50_ms": 12.345,
        "p90_ms": 13.5,
        "p99_ms": 17.25,
        "sequences_per_s": 1234.5,
        **changes,
    }


def printed(capsys, *rows: dict[str, Any], **parts: Any) -> list[list[str]]:
    """Cells of the lines, without the frames."""
    print_latency(BenchResult(rows=list(rows), samples=[], skipped=[], notes=[], **parts))
    lines = capsys.readouterr().err.replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_the_ratio_with_its_interval_stands_before_the_milliseconds(capsys):
    fast = {"speedup": 8.25, "speedup_low": 7.9, "speedup_high": 8.613}
    lines = printed(capsys, row("dense"), row("pruned", **fast, seq_len="task", tokens_per_s=98765))
    header = next(cells for cells in lines if "model" in cells)
    assert header == [
        "model",
        "runtime",
        "batch x length",
        "times faster (95 %)",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "sequences/s",
        "tokens/s",
    ]
    times = ["12.35", "13.50", "17.25", "1,234"]
    assert ["dense", "openvino", "4x128", "", *times, ""] in lines
    assert [
        "pruned",
        "openvino",
        "4xtask",
        "8.25 (7.90 to 8.61)",
        *times,
        "98,765",
    ] in lines


def test_eighty_columns_have_room_for_the_ratio_and_whole_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    fast = {"speedup": 10.25, "speedup_low": 9.9, "speedup_high": 10.613}
    lines = printed(capsys, row("sst2-s95", **fast, runtime="onnxruntime-cpu", seq_len="task"))
    assert any("times faster" in " ".join(cells) for cells in lines)
    assert not any("p99" in " ".join(cells) for cells in lines)
    values = [cells for cells in lines if cells[0] == "sst2-s95"]
    assert values[0][1:] == ["onnxruntime-cpu", "4xtask", "10.25 (9.90 to 10.61)", "12.35"]


def test_a_busy_machine_has_a_ratio_and_no_milliseconds(capsys):
    withheld = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "sequences_per_s"))
    fast = {"speedup": 8.25, "speedup_low": 7.9, "speedup_high": 8.613}
    lines = printed(capsys, row("pruned", **withheld, **fast))
    busy = ["too busy"] * 4
    assert ["pruned", "openvino", "4x128", "8.25 (7.90 to 8.61)", *busy, ""] in lines


@pytest.mark.parametrize(
    ("ratio", "words"),
    [((None, 4.0, 9.5), "4.00 to 9.50, too wide"), ((None, None, None), "too busy")],
)
def test_a_ratio_that_is_not_told_says_why(capsys, ratio, words):
    keys = dict(zip(("speedup", "speedup_low", "speedup_high"), ratio, strict=True))
    assert any(words in cells for cells in printed(capsys, row("pruned", **keys)))


def test_the_line_that_installs_an_extra_is_printed_whole(capsys):
    skipped = [{"runtime": "tensorrt", "reason": "run: pip install 'cofi-deploy[gpu]'"}]
    print_latency(BenchResult(rows=[], samples=[], skipped=skipped, notes=["see [gpu]"]))
    printed_text = capsys.readouterr().err
    assert "skipped tensorrt: run: pip install 'cofi-deploy[gpu]'" in printed_text
    assert "note: see [gpu]" in printed_text


def test_saturation_is_a_table_of_its_own_where_it_was_measured(capsys):
    assert not any("clients" in cells for cells in printed(capsys, row("dense")))
    found = {"saturated_sequences_per_s": 4321.0, "clients": 4, "saturated_batch_size": 16}
    ratio = {
        "saturated_speedup": 9.5,
        "saturated_speedup_low": 9.0,
        "saturated_speedup_high": 10.0,
    }
    lines = printed(
        capsys,
        row("dense", **{**found, "saturated_sequences_per_s": None}),
        row("pruned", **found, **ratio),
    )
    assert ["dense", "openvino", "128", "", "too busy", "4", "16"] in lines
    assert ["pruned", "openvino", "128", "9.50 (9.00 to 10.00)", "4,321", "4", "16"] in lines


def test_a_run_with_a_speedup_tells_what_was_measured_and_what_was_missed(capsys, tmp_path):
    sizes = {"encoder_parameters": 10, "parameters": 20, "metric": 0.8}
    latency = {
        "for": "onnxruntime-cpu@1x128",
        "speedup": 9.1,
        "speedup_low": 8.9,
        "speedup_high": 9.3,
        "busy": "this machine is too busy to measure",
        "is_met": False,
    }
    entry = {
        "directory": "model",
        "target_speedup": 10.0,
        "realized_sparsity": 0.93,
        "latency": latency,
        **sizes,
    }
    result = {"metric_name": "accuracy", "examples": 9, "teacher": sizes, "models": [entry]}
    document = {"task": {"name": "sst2"}, "result": result, "stages": {}, "precision": "fp32"}
    write_json(tmp_path / "run.json", document)
    print_run(tmp_path)
    told = capsys.readouterr().err
    assert "speedup asked" in told
    assert (
        "speedup of model in onnxruntime-cpu@1x128: measured 9.10 (8.90 to 9.30), which misses the "
        "target by more than 5 %; this machine is too busy to measure"
    ) in told
