"""`inspect A B`: two models side by side, layer by layer and part by part.

In: two descriptions of `inspect_model.py`. Out: their terminal form.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Description = Mapping[str, Any]


def render_pair(first: Description, second: Description) -> RenderableType:
    """Both models for a terminal: sizes, layers and parts, each with the second over the first."""
    return Group(
        _sizes(first, second),
        _layers(first, second),
        _parts(first, second),
    )


def _sizes(first: Description, second: Description) -> Table:
    """Names above the columns that all tables share."""
    table = Table(title="Two models", title_justify="left")
    table.add_column("")
    table.add_column(Text(f"A: {first['model']}"), justify="right", overflow="fold")
    table.add_column(Text(f"B: {second['model']}"), justify="right", overflow="fold")
    table.add_column("B / A", justify="right")
    for name, key in (
        ("layers", None),
        ("hidden", "hidden"),
        ("parameters", "parameters"),
        ("prunable parameters", "prunable_parameters"),
        (f"FLOPs at {first['batch_size']}x{first['seq_len']}", "flops"),
        ("bytes of weights", "size_bytes"),
    ):
        values = [len(one["layers"]) if key is None else one[key] for one in (first, second)]
        table.add_row(name, *(f"{value:,}" for value in values), _ratio(*values))
    sparsities = (f"{one['realized_sparsity']:.4f}" for one in (first, second))
    table.add_row("sparsity", *sparsities, "")
    return table


def _layers(first: Description, second: Description) -> Table:
    table = Table(title="Layers", title_justify="left")
    names = ("layer", "heads A", "heads B", "FFN A", "FFN B", "MFLOP A", "MFLOP B", "B / A")
    for name in names:
        table.add_column(name, justify="right")
    pairs = zip_longest(first["layers"], second["layers"])
    for index, layers in enumerate(pairs):
        flops = [layer["flops"] if layer else 0 for layer in layers]
        table.add_row(
            str(index),
            *(_kept(layer, "heads") for layer in layers),
            *(_kept(layer, "ffn") for layer in layers),
            *(f"{value / 1e6:,.1f}" for value in flops),
            _ratio(*flops),
        )
    return table


def _kept(layer: Mapping[str, int] | None, name: str) -> str:
    """A sublayer that was pruned away is gone; one that the dense model never had is a dash."""
    if layer is None:
        return "-"
    return str(layer[name]) if layer[name] else "gone"


def _parts(first: Description, second: Description) -> Table:
    table = Table(title="Parameters by part", title_justify="left")
    for name in ("part", "A", "B", "B / A"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part, count in first["parameters_by_part"].items():
        other = second["parameters_by_part"][part]
        table.add_row(part, f"{count:,}", f"{other:,}", _ratio(count, other))
    return table


def _ratio(first: int, second: int) -> str:
    return f"{second / first:.3f}" if first else ""
