"""The README's tables of artifacts, from what `export.py` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Shape = tuple[int, int]


def export_tables(document: Mapping[str, Any]) -> str:
    """A table for each model, folded away under its name, and under the last the machine."""
    rows: Sequence[Row] = document["rows"]
    models = dict.fromkeys(row["model"] for row in rows)
    parts = [_table(model, [row for row in rows if row["model"] == model]) for model in models]
    return "\n\n".join([*parts, _conditions(document)])


def _table(model: str, rows: Sequence[Row]) -> str:
    shapes = list(dict.fromkeys((row["batch_size"], row["seq_len"]) for row in rows))
    heads = [f"{batch} x {length}, ms (times PyTorch)" for batch, length in shapes]
    scored = next((row for row in rows if "metric" in row), None)
    metric = [] if scored is None else [scored["metric_name"], "agreement"]
    names = ["artifact", "MB", *metric, *heads]
    head = f"<details><summary><b>{model}</b></summary>"
    lines = [head, "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = {
            (row["batch_size"], row["seq_len"]): row for row in rows if row["variant"] == variant
        }
        any_row = next(iter(own.values()))
        name = f"{variant}: {any_row['kept']}" if "kept" in any_row else variant
        cells = [name, f"{any_row['size_bytes'] / 1e6:.1f}"]
        if metric:
            cells += [_number(any_row.get("metric")), _number(any_row.get("agreement"))]
        cells += [_latency(own.get(shape)) for shape in shapes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_fastest(rows, shapes), "", "</details>"])


def _latency(row: Row | None) -> str:
    if row is None:
        return ""
    if "noise" in row:
        return f"too busy ({row['times_pytorch']:.1f}x)"
    return (
        f"{row['p50_ms']:.2f} ({row['times_pytorch']:.1f}x, "
        f"{row['times_pytorch_low']:.1f} to {row['times_pytorch_high']:.1f})"
    )


def _fastest(rows: Sequence[Row], shapes: Sequence[Shape]) -> list[str]:
    """For each shape, how far the fastest is from its floor and what lies between.

    What the floor is over PyTorch's time is the most that any runtime could reach in this
    precision, on a machine whose square products are this fast.
    """
    lines = [""]
    for shape in shapes:
        here = [row for row in rows if (row["batch_size"], row["seq_len"]) == shape]
        timed = [row for row in here if row.get("floor_ms") and "noise" not in row]
        if not timed:
            continue
        best = min(timed, key=lambda row: row["p50_ms"])
        at_most = best["p50_ms"] * best["times_pytorch"] / best["floor_ms"]
        filled = sorted(best["parts_ms"].items(), key=lambda item: -item[1])[:3]
        told = ", ".join(f"{name} {ms:.2f}" for name, ms in filled)
        lines.append(
            f"{shape[0]} x {shape[1]}: {best['variant']} is fastest. Its operations alone would "
            f"take {best['floor_ms']:.2f} ms ({at_most:.1f}x). Most time: {told} ms."
        )
    return lines if len(lines) > 1 else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _conditions(document: Mapping[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    threads = {row["threads"] for row in document["rows"]}
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {'/'.join(map(str, sorted(threads)))} "
        f"threads; torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, openvino "
        f"{versions['openvino']}. Medians, all artifacts of a model in turn with PyTorch eager, "
        "fp32, on the same cut model, each timed run after 10 ms of untimed ones of the same "
        "artifact. Intervals are of 95 %."
    )
