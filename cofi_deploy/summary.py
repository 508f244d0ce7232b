"""Tables that commands print for people, on standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cofi_deploy.artifacts import read_json
from cofi_deploy.serve.bench import BenchResult
from cofi_deploy.serve.verify import VerifyResult
from cofi_deploy.targets import Target, speedup_told

Row = Mapping[str, Any]

# Columns behind the ratio, and those that a terminal of 80 characters has room for.
_TIMES = {
    "p50 ms": ("p50_ms", ".2f"),
    "p90 ms": ("p90_ms", ".2f"),
    "p99 ms": ("p99_ms", ".2f"),
    "sequences/s": ("sequences_per_s", ",.0f"),
    "tokens/s": ("tokens_per_s", ",.0f"),
}
_NARROW_TIMES = ("p50 ms",)
_WIDE = 120


def print_run(run: Path) -> None:
    """What a training run came to: metric, budget, sizes, speed of training."""
    document = read_json(run / "run.json")
    result = document["result"]
    table = Table(
        title=f"{document['task']['name']}: {result['metric_name']} on "
        f"{result['examples']} development examples"
    )
    asked = Target.of(result["models"][0]).kind
    budget = [f"{asked} asked", "realised" if asked == "sparsity" else "sparsity"]
    for name in ("model", result["metric_name"], *budget, "encoder", "all parameters"):
        table.add_column(name, justify="left" if name == "model" else "right")
    teacher = result["teacher"]
    table.add_row("dense teacher", f"{teacher['metric']:.4f}", "", "", *_parameters(teacher))
    for entry in result["models"]:
        table.add_row(
            entry["directory"],
            f"{entry['metric']:.4f}",
            f"{Target.of(entry).value:g}",
            f"{entry['realized_sparsity']:.4f}",
            *_parameters(entry),
        )
    console = Console(stderr=True, markup=False)
    console.print(table)
    for entry in result["models"]:
        if "latency" in entry:
            told = f"speedup of {entry['directory']} in {entry['latency']['for']}"
            line = f"{told}: {speedup_told(entry['latency'])}"
            console.print(line, highlight=False, soft_wrap=True)
    console.print(f"models are in {run}", highlight=False, soft_wrap=True)
    speeds = ", ".join(
        f"{name} {values['samples_per_s']:.0f}"
        for name, values in document["stages"].items()
        if values
    )
    console.print(f"samples per second ({document['precision']}): {speeds}", highlight=False)
    console.print("next: cofi-deploy export --format onnx, cofi-deploy verify", highlight=False)


def print_verification(result: VerifyResult) -> None:
    """Accuracy, latency and verdict of `verify`, and where the report lies."""
    console = Console(stderr=True, markup=False)
    rows = result.document["rows"]
    console.print(_accuracy_table([row for row in rows if "metric" in row]))
    for table in _latency_tables([row for row in rows if "p50_ms" in row], console.width):
        console.print(table)
    for skipped in result.document["skipped"]:
        console.print(f"skipped {skipped['runtime']}: {skipped['reason']}", highlight=False)
    for note in result.document["notes"]:
        console.print(f"note: {note}", highlight=False)
    console.print(result.verdict.sentence, highlight=False)
    console.print(f"{result.result_file}\n{result.report_file}", highlight=False, soft_wrap=True)


def print_latency(result: BenchResult) -> None:
    """Latency rows of `bench`."""
    console = Console(stderr=True, markup=False)
    for table in _latency_tables([row for row in result.rows if "p50_ms" in row], console.width):
        console.print(table)
    for skipped in result.skipped:
        console.print(f"skipped {skipped['runtime']}: {skipped['reason']}", highlight=False)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False)


def _parameters(entry: Row) -> tuple[str, str]:
    return f"{entry['encoder_parameters']:,}", f"{entry['parameters']:,}"


def _accuracy_table(rows: Sequence[Row]) -> Table:
    metric = rows[0]["metric_name"] if rows else "metric"
    table = _table("accuracy", "model", "runtime", metric, "agreement", "max logit difference")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['runtime']}, {row['requests']}" if "requests" in row else row["runtime"],
            f"{row['metric']:.4f}",
            _optional(row.get("agreement"), ".4f"),
            _optional(row.get("max_abs_logit_diff"), ".1e"),
        )
    return table


def _latency_tables(rows: Sequence[Row], width: int) -> list[Table]:
    """The ratio first: it is what the measurement can bear. Saturation only where it was asked.

    A narrow terminal leaves out what the result file and the report have beside it.
    """
    times = [name for name in _TIMES if width >= _WIDE or name in _NARROW_TIMES]
    table = _table("latency", "model", "runtime", "batch x length", "times faster (95 %)", *times)
    for row in rows:
        table.add_row(
            row["model"],
            row["runtime"],
            f"{row['batch_size']}x{row['seq_len']}",
            _ratio(row, "speedup"),
            *(_time(row, name) for name in times),
        )
    saturated = [row for row in rows if "saturated_sequences_per_s" in row]
    return [table, _saturation_table(saturated)] if saturated else [table]


def _time(row: Row, name: str) -> str:
    key, form = _TIMES[name]
    if key == "tokens_per_s" and key not in row:  # only at the task's own lengths
        return ""
    return _withheld(row.get(key), form)


def _saturation_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "at saturation",
        "model",
        "runtime",
        "length",
        "times more (95 %)",
        "sequences/s",
        "clients",
        "batch",
    )
    for row in rows:
        table.add_row(
            row["model"],
            row["runtime"],
            str(row["seq_len"]),
            _ratio(row, "saturated_speedup"),
            _withheld(row["saturated_sequences_per_s"], ",.0f"),
            str(row["clients"]),
            str(row["saturated_batch_size"]),
        )
    return table


def _ratio(row: Row, key: str) -> str:
    """A ratio and its interval; the interval alone where it is too wide for one number."""
    if key not in row:
        return ""
    value, low, high = (row.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    if low is None or high is None:
        return "too busy"
    interval = f"{low:.2f} to {high:.2f}"
    return f"{interval}, too wide" if value is None else f"{value:.2f} ({interval})"


def _withheld(value: float | None, form: str) -> str:
    return "too busy" if value is None else format(value, form)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right")
    return table


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
