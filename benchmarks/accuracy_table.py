"""The README's table of accuracy.json: what each sparsity costs on each task, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def accuracy_table(document: Mapping[str, Any]) -> str:
    """One line for each task and recipe: the dense teacher, then each sparsity."""
    rows: Sequence[Row] = document["rows"]
    targets = sorted({row["target_sparsity"] for row in rows})
    lines = [
        "Metric on the development sets; over several seeds mean ± standard deviation:",
        "",
        "| task | metric | seeds | dense | "
        + " | ".join(f"{100 * target:g} %" for target in targets)
        + " |",
        "|---" * (4 + len(targets)) + "|",
    ]
    for task, recipe in dict.fromkeys((row["task"], row["recipe"]) for row in rows):
        own = [row for row in rows if (row["task"], row["recipe"]) == (task, recipe)]
        dense = {row["seed"]: row["metric_dense"] for row in own}
        cells = [
            _cell([row["metric"] for row in own if row["target_sparsity"] == target])
            for target in targets
        ]
        limit = own[0]["train_limit"]
        rows_used = f", {limit:,} training rows" if limit else ""
        lead = f"| {task} ({recipe}{rows_used}) | {own[0]['metric_name']} | {len(dense)} "
        lines.append(f"{lead}| {_cell(list(dense.values()))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"
