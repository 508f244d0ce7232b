"""Scales, axes and shapes for the report's charts: strings of SVG that follow the page's colours.

Colours are CSS custom properties of the page (``--ink``, ``--grid``, ``--dense``, ``--pruned``,
...), so one picture serves light, dark and print. Next files: `pareto.py`, `charts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# A chart is drawn this wide and shrinks with the page: text of 12 stays readable on a phone.
WIDTH = 480
FONT = 12
PALETTE = tuple(f"var(--series-{number})" for number in range(1, 7))
_CHARACTER = 6.4  # average width of a character at FONT
_LEGEND_LINE = 18.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values to pixels, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixels of a value."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-12))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range, about ``count`` of them."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, count)


def scale(
    values: Sequence[float], start: float, end: float, *, log: bool = False, pad: float = 0.06
) -> Scale:
    """A scale that shows all ``values`` with some room around them; log needs values above 0."""
    low, high = min(values), max(values)
    if log:
        room = max(math.log(high / low) * pad, 0.05)
        return Scale(
            low=low / math.exp(room), high=high * math.exp(room), start=start, end=end, log=True
        )
    room = (high - low) * pad or abs(high) * pad or 0.5
    return Scale(low=low - room, high=high + room, start=start, end=end)


def picture(name: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    """An SVG of `WIDTH` x ``height`` with its title and description for screen readers."""
    ids = f"{name}-title {name}-desc"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
            f'aria-labelledby="{ids}" viewBox="0 0 {WIDTH} {height:g}">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-desc">{escape(description)}</desc>',
            *parts,
            "</svg>",
        ]
    )


def x_axis(axis: Scale, top: float, bottom: float, label: str) -> list[str]:
    """Grid lines, tick labels below, and the axis' name."""
    parts: list[str] = []
    for tick in axis.ticks():
        parts.append(line(axis(tick), top, axis(tick), bottom, "grid"))
        parts.append(text(axis(tick), bottom + 16, short(tick), anchor="middle", style="tick"))
    middle = (axis.start + axis.end) / 2
    parts.append(text(middle, bottom + 34, label, anchor="middle", style="name"))
    return parts


def y_axis(axis: Scale, left: float, right: float, label: str, *, ticks: int = 5) -> list[str]:
    """Grid lines, tick labels on the left, and the axis' name above."""
    parts: list[str] = []
    for tick in axis.ticks(ticks):
        parts.append(line(left, axis(tick), right, axis(tick), "grid"))
        parts.append(text(left - 6, axis(tick) + 4, short(tick), anchor="end", style="tick"))
    return [*parts, text(left, axis.end - 10, label, style="name")] if label else parts


def legend(entries: Sequence[tuple[str, str]], left: float, top: float) -> list[str]:
    """Colour samples with their names, in as many lines as they need."""
    parts: list[str] = []
    for (label, colour), (x, row) in zip(entries, _flow(entries, left), strict=True):
        y = top + row * _LEGEND_LINE
        parts.append(f'<rect x="{x:.1f}" y="{y - 8:.1f}" width="12" height="8" fill="{colour}"/>')
        parts.append(text(x + 16, y, label, style="tick"))
    return parts


def legend_height(entries: Sequence[tuple[str, str]], left: float) -> float:
    """Pixels below the first line of a legend."""
    return _LEGEND_LINE * max((row for _, row in _flow(entries, left)), default=0)


def _flow(entries: Sequence[tuple[str, str]], left: float) -> list[tuple[float, int]]:
    """Where each entry of a legend stands: pixels from the left, and which line."""
    places: list[tuple[float, int]] = []
    x, row = left, 0
    for label, _ in entries:
        width = 32 + text_width(label)
        if x > left and x + width - 16 > WIDTH:
            x, row = left, row + 1
        places.append((x, row))
        x += width
    return places


def line(x1: float, y1: float, x2: float, y2: float, style: str, colour: str = "") -> str:
    """A straight line of a class of the page's style sheet."""
    stroke = f' stroke="{colour}"' if colour else ""
    return (
        f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{stroke}/>'
    )


def polyline(
    points: Sequence[tuple[float, float]],
    colour: str,
    *,
    dashed: bool = False,
    style: str = "curve",
) -> str:
    """A curve through points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline class="{style}" points="{joined}" stroke="{colour}"{dash}/>'


def dots(points: Sequence[tuple[float, float]], colour: str) -> str:
    """Many small marks as one shape."""
    drawn = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path class="dots" d="{drawn}" stroke="{colour}"/>'


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    style: str = "value",
    colour: str = "",
) -> str:
    """A line of text; ``colour`` overrides that of its class."""
    fill = f' style="fill:{colour}"' if colour else ""
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>'
        f"{escape(content)}</text>"
    )


def text_width(content: str) -> float:
    """About how wide a text is, in pixels."""
    return len(content) * _CHARACTER


def short(value: float) -> str:
    """A number with the digits that a reader needs: 1200, 91.2, 0.905, 0.00012."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _ticks(low: float, high: float, count: int) -> list[float]:
    span = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(span))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= span)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = high / low > 50
    factors = (1,) if high / low > 1000 else (1, 3) if wide else (1, 2, 5)
    found = [factor * 10.0**power for power in powers for factor in factors]
    inside = [tick for tick in found if low <= tick <= high]
    return inside if len(inside) >= 2 else _ticks(low, high, 4)
