"""Stacked bars: where parameters are, part by part.

In: sizes of `verify.json`. Out: SVG. Next file: `report.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cofi_deploy.serve import svg

# As people write them; other names stay as they are.
PART_NAMES = {"ffn": "FFN", "layernorm": "LayerNorm", "layer_norm": "LayerNorm"}

_LEFT, _RIGHT = 14.0, svg.WIDTH - 90.0
_ROW = 40.0


def size_bars(sizes: Sequence[Mapping[str, Any]]) -> str | None:
    """Parameters by part, one bar for each model; None without sizes."""
    bars = [(item["model"], item["parameters_by_part"]) for item in sizes]
    return _stacked("sizes", "Parameters by part", bars, "million parameters", 1e6)


def part_name(part: str) -> str:
    """A part as it is written in prose."""
    return PART_NAMES.get(part, part)


def _stacked(
    name: str,
    title: str,
    bars: Sequence[tuple[str, Mapping[str, float]]],
    unit: str,
    divisor: float,
) -> str | None:
    """Bars on a common axis from zero; the total stands behind each."""
    totals = [sum(values.values()) / divisor for _, values in bars]
    if not bars or max(totals) <= 0:
        return None
    kept = dict.fromkeys(part for _, values in bars for part, value in values.items() if value > 0)
    colours = {part: svg.PALETTE[at % len(svg.PALETTE)] for at, part in enumerate(kept)}
    x = svg.Scale(low=0.0, high=max(totals), start=_LEFT, end=_RIGHT)
    bottom = 20 + _ROW * len(bars)
    parts = svg.x_axis(x, 12, bottom - 4, unit)
    words: list[str] = []
    for at, ((label, values), total) in enumerate(zip(bars, totals, strict=True)):
        y = 22 + _ROW * at
        parts += [
            svg.text(_LEFT, y, label, style="name"),
            *_bar(x, y + 5, values, colours, divisor),
            svg.text(x(total) + 6, y + 17, svg.short(total)),
        ]
        told = ", ".join(
            f"{part_name(part)} {svg.short(value / divisor)}"
            for part, value in values.items()
            if value > 0
        )
        words.append(f"{label}: {told}.")
    legend = [(part_name(part), colour) for part, colour in colours.items()]
    parts += svg.legend(legend, _LEFT, bottom + 52)
    height = bottom + 60 + svg.legend_height(legend, _LEFT)
    return svg.picture(name, title, f"In {unit}. {' '.join(words)}", height, parts)


def _bar(
    x: svg.Scale, y: float, values: Mapping[str, float], colours: Mapping[str, str], divisor: float
) -> list[str]:
    drawn: list[str] = []
    begin = 0.0
    for part, colour in colours.items():
        value = values.get(part, 0.0) / divisor
        if value <= 0:
            continue
        width = x(begin + value) - x(begin)
        hint = escape(f"{part_name(part)}: {svg.short(value)}")
        drawn.append(
            f'<rect x="{x(begin):.2f}" y="{y:.1f}" width="{width:.2f}" height="16" '
            f'fill="{colour}"><title>{hint}</title></rect>'
        )
        begin += value
    return drawn
