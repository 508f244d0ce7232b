"""Tables of ablations.json and family.json for docs/recipes.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def ablations_table(document: Mapping[str, Any]) -> str:
    """One line for each condition, with its difference from the first on the same seeds."""
    rows: Sequence[Row] = document["rows"]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    base = {row["seed"]: row for row in rows if row["condition"] == conditions[0]}
    lines = [
        "| condition | seeds | selection | against the first line | development set "
        "| sublayers left | hidden size | times dense at 1x128, 32x128 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for condition in conditions:
        own = [row for row in rows if row["condition"] == condition]
        gains = [
            100.0 * (row["metric_selection"] - base[row["seed"]]["metric_selection"])
            for row in own
            if row["seed"] in base
        ]
        gain = "" if condition == conditions[0] or not gains else f"{statistics.mean(gains):+.1f}"
        lines.append(
            f"| {condition} | {len(own)} | {_mean(own, 'metric_selection')} | {gain} "
            f"| {_mean(own, 'metric')} | {_whole(own, 'sublayers')} | {_whole(own, 'hidden')} "
            f"| {_speedups(own)} |"
        )
    return "\n".join([*lines, "", _conditions(document)])


def family_table(document: Mapping[str, Any]) -> str:
    """Members of the family beside the models that had a run of their own."""
    rows: Sequence[Row] = document["rows"]
    lines = [
        "| sparsity | in the family: selection / development | alone: selection / development |",
        "|---|---|---|",
    ]
    for target in sorted({row["target_sparsity"] for row in rows}):
        own = [row for row in rows if row["target_sparsity"] == target]
        cells = [
            f"{_mean(part, 'metric_selection')} / {_mean(part, 'metric')}" if part else ""
            for part in (
                [row for row in own if row["run"] == "family"],
                [row for row in own if row["run"] != "family"],
            )
        ]
        lines.append(f"| {100 * target:g} % | " + " | ".join(cells) + " |")
    shares = list(document["time_of_family"].values())
    if shares:
        took = f"{100 * statistics.mean(shares):.0f} %"
        lines += ["", f"The family took {took} of the processor time of the four runs."]
    return "\n".join([*lines, "", _conditions(document)])


def _mean(rows: Sequence[Row], key: str) -> str:
    return f"{statistics.mean(row[key] for row in rows):.3f}"


def _whole(rows: Sequence[Row], key: str) -> str:
    return f"{statistics.mean(row[key] for row in rows):.0f}"


def _speedups(rows: Sequence[Row]) -> str:
    """Of the first seed that was timed."""
    timed = [row["latency"] for row in rows if "latency" in row]
    if not timed:
        return ""
    cells = [each.get("speedup") for each in timed[0].values()]
    return ", ".join("too noisy" if each is None else f"{each:.1f}x" for each in cells)


def _conditions(document: Mapping[str, Any]) -> str:
    row, settings = document["rows"][0], document["base_settings"]
    dense = statistics.mean(each["metric_dense"] for each in document["rows"])
    return (
        f"{row['task']}, {settings['train_limit']:,} training rows, {row['precision']}, "
        f"{settings['warmup_epochs']:g} + {settings['prune_epochs']:g} epochs of pruning and "
        f"{settings['finetune_epochs']:g} of fine-tuning; {row['metric_name']}; the dense model "
        f"has {dense:.3f} on the {row['examples']:,} development examples. Selection: the slice "
        "of the training data on which checkpoints are chosen."
    )
