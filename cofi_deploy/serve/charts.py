"""The report's pictures of a result: accuracy against speedup, and latency distributions.

In: rows and samples of `verify.json`. Out: SVG. Next file: `curves.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from cofi_deploy.serve import svg

Row = Mapping[str, Any]

_LEFT, _RIGHT = 52.0, svg.WIDTH - 14.0
_PALETTE = ("var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)")


def accuracy_against_speedup(
    accuracy: Sequence[Row], latency: Sequence[Row], *, targets: Mapping[str, float]
) -> str | None:
    """Metric over speedup: the pruned model at every operating point, the dense one at 1.

    Args:
        accuracy: Rows of the pruned model, one for each runtime.
        latency: Its latency rows; those without a believable speedup are left out.
        targets: ``max_drop`` in points and ``min_speedup``, drawn as the region that was asked.

    Returns:
        None when no speedup is known.
    """
    metrics = {row["runtime"]: row for row in accuracy}
    points = [row for row in latency if row.get("speedup") and row["runtime"] in metrics]
    if not points:
        return None
    dense = next(iter(metrics.values()))["metric_dense"]
    values = [dense, *(row["metric"] for row in metrics.values())]
    floor = dense - targets["max_drop"] / 100 if "max_drop" in targets else None
    speeds = [
        1.0,
        *(row["speedup_high"] for row in points),
        *(row["speedup_low"] for row in points),
    ]
    top, bottom = 34.0, 250.0
    x = svg.scale([*speeds, targets.get("min_speedup", 1.0)], _LEFT, _RIGHT, log=max(speeds) > 20)
    y = svg.scale([*values, *([floor] if floor is not None else [])], bottom, top, pad=0.15)
    runtimes = list(dict.fromkeys(row["runtime"] for row in points))
    colours = {name: _PALETTE[at % len(_PALETTE)] for at, name in enumerate(runtimes)}
    parts = [
        *_asked_region(x, y, floor, targets.get("min_speedup")),
        *svg.x_axis(x, top, bottom, "speedup, dense over pruned, in the same runtime and shape"),
        *svg.y_axis(y, _LEFT, _RIGHT, metrics[runtimes[0]]["metric_name"]),
        _marker(x(1.0), y(dense), "var(--dense)", "dense"),
        svg.text(x(1.0) + 8, y(dense) - 7, "dense"),
    ]
    labels = _Labels(x.start, x.end)
    for row in sorted(points, key=lambda row: row["speedup"]):
        metric, colour = metrics[row["runtime"]]["metric"], colours[row["runtime"]]
        parts += _point(x, y, row, metric, colour)
        labels.place((x(row["speedup"]), y(metric)), _shape(row), colour)
    parts += labels.drawn(middle=(top + bottom) / 2)
    parts += svg.legend(list(colours.items()), _LEFT, bottom + 56)
    return svg.picture(
        "accuracy-speedup",
        "Accuracy against speedup",
        _in_words(points, metrics, dense),
        bottom + 68,
        parts,
    )


def latency_strips(samples: Sequence[Mapping[str, Any]], dense: str) -> str | None:
    """One strip for each model and operating point, on a common logarithmic axis.

    The line spans the 1st to the 99th percentile, the bar the 10th to the 90th, the tick is the
    median. None when there are no samples.
    """
    if not samples:
        return None
    quantiles = [np.percentile(item["sorted_ms"], [1, 10, 50, 90, 99]) for item in samples]
    x = svg.scale([float(value) for five in quantiles for value in five], 14.0, _RIGHT, log=True)
    parts: list[str] = []
    words: list[str] = []
    y = 20.0
    place = ""
    for item, five in zip(samples, quantiles, strict=True):
        here = f"{item['runtime']}, {item['batch_size']} x {item['seq_len']}"
        if here != place:
            y += 12 if place else 0
            parts.append(svg.text(14, y, here, style="name"))
            place, y = here, y + 18
        colour = "var(--dense)" if item["model"] == dense else "var(--pruned)"
        parts += _strip(x, y, five, colour, item["model"])
        words.append(
            f"{here}, {item['model']}: median {five[2]:.3g} ms, 99 % within {five[4]:.3g} ms."
        )
        y += 26
    axis = svg.x_axis(x, 26, y - 8, "milliseconds for one batch, logarithmic")
    return svg.picture("latency", "Latency distributions", " ".join(words), y + 34, [*axis, *parts])


def _asked_region(
    x: svg.Scale, y: svg.Scale, floor: float | None, min_speedup: float | None
) -> list[str]:
    """The corner of the picture in which both targets are met."""
    if floor is None and min_speedup is None:
        return []
    left = x.start if min_speedup is None else x(min_speedup)
    bottom = y.start if floor is None else y(floor)
    return [
        f'<rect class="asked" x="{left:.1f}" y="{y.end:.1f}" width="{x.end - left:.1f}" '
        f'height="{bottom - y.end:.1f}"/>',
        svg.text(x.end - 6, y.end + 15, "asked for", anchor="end", style="tick"),
    ]


def _point(x: svg.Scale, y: svg.Scale, row: Row, metric: float, colour: str) -> list[str]:
    label = _shape(row)
    hint = (
        f"{row['runtime']} {label}: {row['speedup']:.2f} times faster "
        f"({row['speedup_low']:.2f} to {row['speedup_high']:.2f}), metric {metric:.4f}"
    )
    return [
        svg.line(
            x(row["speedup_low"]), y(metric), x(row["speedup_high"]), y(metric), "bar", colour
        ),
        _marker(x(row["speedup"]), y(metric), colour, hint),
    ]


def _shape(row: Row) -> str:
    return f"{row['batch_size']}x{row['seq_len']}"


class _Labels:
    """Labels of points that lie close together, each in the nearest lane that is free."""

    _LANE = 13.0
    _MAX_LANES = 12

    def __init__(self, left: float, right: float) -> None:
        self._left = left
        self._right = right
        self._points: list[tuple[tuple[float, float], str, str]] = []

    def place(self, point: tuple[float, float], label: str, colour: str) -> None:
        """Ask for a label at a point, in the point's colour."""
        self._points.append((point, label, colour))

    def drawn(self, *, middle: float) -> list[str]:
        """Leaders, then labels: upward from points below ``middle``, else downward."""
        taken: list[tuple[float, float, float]] = []  # left, right, baseline
        leaders: list[str] = []
        texts: list[str] = []
        for (x, y), label, colour in self._points:
            half = svg.text_width(label) / 2
            centre = min(max(x, self._left + half), self._right - half)
            step = -self._LANE if y > middle else self._LANE
            lanes = (
                y + (-12 if y > middle else 20) + lane * step for lane in range(self._MAX_LANES)
            )
            free = (at for at in lanes if not self._hits(taken, centre - half, centre + half, at))
            at = next(free, None)
            if at is None:
                continue
            taken.append((centre - half, centre + half, at))
            leaders.append(svg.line(x, y, x, at + 3 if y > middle else at - 10, "leader", colour))
            texts.append(svg.text(centre, at, label, anchor="middle", style="tick", colour=colour))
        return [*leaders, *texts]

    def _hits(
        self, taken: Sequence[tuple[float, float, float]], left: float, right: float, at: float
    ) -> bool:
        return any(
            left < other_right + 4 and other_left < right + 4 and abs(at - other_at) < self._LANE
            for other_left, other_right, other_at in taken
        )


def _marker(x: float, y: float, colour: str, hint: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">'
        f"<title>{escape(hint)}</title></circle>"
    )


def _strip(x: svg.Scale, y: float, five: Sequence[float], colour: str, model: str) -> list[str]:
    low, p10, median, p90, high = (x(float(value)) for value in five)
    label = f"{model} {svg.short(float(five[2]))} ms"
    is_right = high + svg.text_width(label) + 12 > x.end
    anchor, place = ("end", low - 8) if is_right else ("start", high + 8)
    return [
        svg.line(low, y, high, y, "whisker", colour),
        f'<rect x="{p10:.1f}" y="{y - 6:.1f}" width="{max(p90 - p10, 2):.1f}" height="12" '
        f'fill="{colour}" rx="2"/>',
        svg.line(median, y - 9, median, y + 9, "median"),
        svg.text(place, y + 4, label, anchor=anchor),
    ]


def _in_words(points: Sequence[Row], metrics: Mapping[str, Row], dense: float) -> str:
    sentences = [
        f"{row['runtime']} at {row['batch_size']}x{row['seq_len']}: {row['speedup']:.2f} times "
        f"faster, metric {metrics[row['runtime']]['metric']:.4f}."
        for row in points
    ]
    return f"Dense metric {dense:.4f}. " + " ".join(sentences)
