"""The README's tables of the paper's structures: of paper_structures.json and of gpu.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, str, int, int]  # runtime, precision, batch size, length

_TITLES = {
    "torch": "PyTorch",
    "onnxruntime-cpu": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime CUDA",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
_BASELINE = "dense"
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def paper_tables(document: Mapping[str, Any]) -> str:
    """Speedups on this machine's processor beside the published ones."""
    machine = document["machine"]
    threads = "/".join(map(str, sorted({row["threads"] for row in document["rows"]})))
    where = f"{machine['cpu']}, {machine['cores']} cores, {threads} threads"
    return "\n".join([_lead(document), "", *_table(document), "", _conditions(document, where)])


def gpu_tables(document: Mapping[str, Any]) -> str:
    """The same on one GPU, and how fast training steps are there."""
    where = document["machine"]["gpu"] or document["machine"]["cpu"]
    lines = [_lead(document), "", *_table(document)]
    training = list(_training_lines(document["rows"]))
    if training:
        lines += ["", *training]
    skipped = [part for part in document["parts"] if part["state"] != "done"]
    if skipped:
        named = "; ".join(f"{part['part']} ({part['reason']})" for part in skipped)
        lines += ["", f"Not measured: {named}."]
    return "\n".join([*lines, "", _conditions(document, where)])


def _lead(document: Mapping[str, Any]) -> str:
    base = next(row["base_model"] for row in document["rows"])
    return (
        f"The paper's structures on {base}: median milliseconds of the dense model, and how many "
        "times faster each structure is (95 % interval; alone where it is too wide for one "
        "number). Published: PyTorch on a V100, batch 128."
    )


def _table(document: Mapping[str, Any]) -> list[str]:
    rows = [row for row in document["rows"] if "p50_ms" in row]
    columns = list(dict.fromkeys(map(_column, rows)))
    head = [_title(column) for column in columns]
    lines = [
        "| structure | encoder pruned | published | " + " | ".join(head) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {_column(row): row for row in rows if row["model"] == model}
        first = next(iter(own.values()))
        cells = [_cell(own[column]) if column in own else "" for column in columns]
        published = f"{first['published_speedup']:.1f}x" if "published_speedup" in first else ""
        pruned = f"{100 * first['realized_sparsity']:.1f} %"
        lines.append(f"| {model} | {pruned} | {published} | " + " | ".join(cells) + " |")
    return lines


def _column(row: Row) -> Column:
    return row["runtime"], row["precision"], row["batch_size"], row["seq_len"]


def _title(column: Column) -> str:
    runtime, precision, batch_size, seq_len = column
    return f"{_TITLES.get(runtime, runtime)} {precision}, {batch_size} x {seq_len}"


def _cell(row: Row) -> str:
    if row["model"] == _BASELINE:
        return "too busy to measure" if row["p50_ms"] is None else _milliseconds(row["p50_ms"])
    low, high = row.get("speedup_low"), row.get("speedup_high")
    if row.get("speedup") is None and low is not None and high is not None:
        return f"{low:.1f} to {high:.1f}"
    if row.get("speedup") is None:
        return "too noisy to compare"
    return f"{row['speedup']:.1f}x ({row['speedup_low']:.1f} to {row['speedup_high']:.1f})"


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _training_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each stage, one column for each precision."""
    trained = [row for row in rows if "stage" in row]
    precisions = list(dict.fromkeys(row["precision"] for row in trained))
    if not trained:
        return
    yield f"Training, sequences per second in batches of {trained[0]['batch_size']}:"
    yield ""
    yield "| step | " + " | ".join(precisions) + " |"
    yield "|---" * (1 + len(precisions)) + "|"
    names = {
        "prune": "pruning, at its beginning, when nothing is pruned yet",
        "finetune": "fine-tuning the structure at 95 %",
    }
    for stage in dict.fromkeys(row["stage"] for row in trained):
        own = {row["precision"]: row for row in trained if row["stage"] == stage}
        cells = [f"{own[p]['sequences_per_s']:,.0f}" if p in own else "" for p in precisions]
        yield f"| {names[stage]} | " + " | ".join(cells) + " |"


def _conditions(document: Mapping[str, Any], where: str) -> str:
    versions = document["versions"]
    known = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if name in versions)
    return f"{where}; {known}."
