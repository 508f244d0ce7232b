"""What `export --tune` tried, as a table for people on standard error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]


def print_tuning(tuning: Mapping[str, Any]) -> None:
    """Fastest first; what may not be kept says why."""
    console = Console(stderr=True)
    console.print(tuning_table(tuning))
    console.print(f"kept for {tuning['for']}: {tuning['kept']}", highlight=False, markup=False)


def tuning_table(tuning: Mapping[str, Any]) -> Table:
    """A row for each candidate."""
    table = Table(title=f"tried for {tuning['for']}, fastest first")
    for name in (
        "candidate",
        "p50 ms",
        "times default",
        "agreement",
        "logit difference",
        "why not",
    ):
        table.add_column(name, justify="left" if name in {"candidate", "why not"} else "right")
    for row in tuning["rows"]:
        is_kept = row["candidate"] == tuning["kept"]
        why = "kept" if is_kept else row["refused"] or "not faster, or less simple"
        table.add_row(row["candidate"], *_cells(row), why)
    return table


def _cells(row: Row) -> tuple[str, str, str, str]:
    if "p50_ms" in row:
        low, high = row["ratio_to_default_low"], row["ratio_to_default_high"]
        times = f"{row['p50_ms']:.2f}", f"{row['ratio_to_default']:.2f} ({low:.2f} to {high:.2f})"
    else:
        times = "", ""
    return (*times, _answers(row), _number(row.get("max_abs_logit_diff"), ".1e"))


def _answers(row: Row) -> str:
    """Agreement and, where the text has labels, the metric beside PyTorch's."""
    agreement = _number(row.get("agreement"), ".3f")
    if "metric" not in row:
        return agreement
    return f"{agreement}, {row['metric_name']} {row['metric']:.3f} of {row['metric_pytorch']:.3f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
