"""Accuracy against speedup: every member of a family, and which of them are worth having.

In: rows of `verify.json`. Out: SVG, one picture for each operating point of a family, or one for
all points of a single model. Next file: `charts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from cofi_deploy.serve import svg
from cofi_deploy.serve.triton_text_accuracy import is_of_texts

Row = Mapping[str, Any]

_LEFT, _RIGHT = 52.0, svg.WIDTH - 14.0
_TOP, _BOTTOM = 34.0, 250.0


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One member in one runtime at one operating point."""

    model: str
    runtime: str
    shape: str
    speedup: float
    speedup_low: float
    speedup_high: float
    metric: float
    metric_low: float
    metric_high: float
    dense: float
    is_front: bool = True

    @property
    def words(self) -> str:
        """For tooltips and screen readers."""
        told = (
            f"{self.model} in {self.runtime} at {self.shape}: {self.speedup:.2f} times faster "
            f"({self.speedup_low:.2f} to {self.speedup_high:.2f}), metric {self.metric:.4f}"
        )
        return told if self.is_front else f"{told}, another one is as fast and as accurate"


def accuracy_against_speedup(
    accuracy: Sequence[Row], latency: Sequence[Row], *, targets: Mapping[str, float]
) -> list[str]:
    """Metric over speedup, with the Pareto front of each runtime; dense is the point at 1.

    A single model has all its operating points in one picture; a family has one picture for each
    operating point, on common axes, so that only what can replace each other is compared.

    Args:
        accuracy: Rows of the members, one for each runtime.
        latency: Their latency rows; those without a believable speedup are left out.
        targets: ``max_drop`` in points and ``min_speedup``, drawn as the region that was asked.

    Returns:
        No picture when no speedup is known.
    """
    points = _points(accuracy, latency)
    if not points:
        return []
    axes = _Axes(points, targets, accuracy[0]["metric_name"])
    is_family = len({point.model for point in points}) > 1
    if not is_family:
        return [axes.picture(points, "", 0)]
    by_shape = {shape: [p for p in points if p.shape == shape] for shape in map(shape_of, latency)}
    shown = [(shape, inside) for shape, inside in by_shape.items() if inside]
    return [axes.picture(inside, shape, number) for number, (shape, inside) in enumerate(shown)]


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (speedup, metric) pairs no other pair beats in one and equals in the other."""
    return [
        not any(
            other[0] >= speedup and other[1] >= metric and other != (speedup, metric)
            for other in points
        )
        for speedup, metric in points
    ]


def _points(accuracy: Sequence[Row], latency: Sequence[Row]) -> list[_Point]:
    """Everything with a speedup and a metric, slowest first, the front of each place marked."""
    scored = {(row["model"], row["runtime"]): row for row in accuracy if not is_of_texts(row)}
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in latency:
        metric = scored.get((row["model"], row["runtime"]))
        if metric is None or not row.get("speedup"):
            continue
        place = (row["runtime"], shape_of(row))
        places.setdefault(place, []).append(_values(row, metric, place[1]))
    found: list[_Point] = []
    for members in places.values():
        pairs = [(1.0, members[0]["dense"]), *((m["speedup"], m["metric"]) for m in members)]
        fronts = on_front(pairs)[1:]
        found += [
            _Point(**values, is_front=is_front)
            for values, is_front in zip(members, fronts, strict=True)
        ]
    return sorted(found, key=lambda point: point.speedup)


def shape_of(row: Row) -> str:
    """``1x128``: what the pictures of a family are told apart by, in the order of latency rows."""
    return f"{row['batch_size']}x{row['seq_len']}"


def _values(row: Row, scored: Row, shape: str) -> dict[str, Any]:
    metric, dense = scored["metric"], scored["metric_dense"]
    low, high = scored.get("change_low"), scored.get("change_high")
    return {
        "model": row["model"],
        "runtime": row["runtime"],
        "shape": shape,
        **{key: row[key] for key in ("speedup", "speedup_low", "speedup_high")},
        "metric": metric,
        "metric_low": metric if low is None else dense + low,
        "metric_high": metric if high is None else dense + high,
        "dense": dense,
    }


class _Axes:
    """Axes, colours and target region that all pictures share."""

    def __init__(
        self, points: Sequence[_Point], targets: Mapping[str, float], metric_name: str
    ) -> None:
        self._dense = points[0].dense
        self._targets = targets
        self._metric_name = metric_name
        self._floor = self._dense - targets["max_drop"] / 100 if "max_drop" in targets else None
        speeds = [1.0, *(p.speedup_low for p in points), *(p.speedup_high for p in points)]
        asked = targets.get("min_speedup", 1.0)
        self._x = svg.scale([*speeds, asked], _LEFT, _RIGHT, log=max(speeds) > 20)
        metrics = [
            self._dense,
            *(m for p in points for m in (p.metric_low, p.metric, p.metric_high)),
        ]
        floor = [] if self._floor is None else [self._floor]
        self._y = svg.scale([*metrics, *floor], _BOTTOM, _TOP, pad=0.15)
        runtimes = dict.fromkeys(point.runtime for point in points)
        self._colours = {
            name: svg.PALETTE[at % len(svg.PALETTE)] for at, name in enumerate(runtimes)
        }
        self._is_family = len({point.model for point in points}) > 1

    def picture(self, points: Sequence[_Point], shape: str, number: int) -> str:
        """One picture of these points."""
        x, y, dense = self._x, self._y, self._dense
        parts = [
            *_asked_region(x, y, self._floor, self._targets.get("min_speedup")),
            *svg.x_axis(
                x, _TOP, _BOTTOM, "speedup, dense over pruned, in the same runtime and shape"
            ),
            *svg.y_axis(y, _LEFT, _RIGHT, self._metric_name),
        ]
        for runtime, colour in self._colours.items():
            parts += self._front([p for p in points if p.runtime == runtime and p.is_front], colour)
        parts.append(_marker(x(1.0), y(dense), "var(--dense)", "dense"))
        if shape:
            parts.append(svg.text(_RIGHT, _TOP - 10, f"at {shape}", anchor="end", style="name"))
        labels = _Labels(x.start, x.end)
        labels.place((x(1.0), y(dense)), "dense", "var(--ink)")
        for point in points:
            colour = self._colours[point.runtime]
            parts += self._drawn(point, colour)
            label = point.model if self._is_family else point.shape
            labels.place((x(point.speedup), y(point.metric)), label, colour)
        parts += labels.drawn()
        shown = [
            each for each in self._colours.items() if any(p.runtime == each[0] for p in points)
        ]
        parts += svg.legend(shown, _LEFT, _BOTTOM + 56)
        title = "Accuracy against speedup" + (f" at {shape}" if shape else "")
        words = " ".join(f"{point.words}." for point in points)
        return svg.picture(
            f"accuracy-speedup-{number}",
            title,
            f"Dense metric {dense:.4f}. {words}",
            _BOTTOM + 68,
            parts,
        )

    def _front(self, points: Sequence[_Point], colour: str) -> list[str]:
        """Stairs: the best metric that is to be had at least so much faster."""
        if not self._is_family:
            return []
        corners = [(1.0, self._dense)]
        for point in points:
            corners += [(corners[-1][0], point.metric), (point.speedup, point.metric)]
        placed = [(self._x(speed), self._y(metric)) for speed, metric in corners]
        return [svg.polyline(placed, colour, style="front")] if points else []

    def _drawn(self, point: _Point, colour: str) -> list[str]:
        x, y = self._x, self._y
        style = "bar" if point.is_front else "bar lighter"
        at, level = x(point.speedup), y(point.metric)
        return [
            svg.line(x(point.speedup_low), level, x(point.speedup_high), level, style, colour),
            svg.line(at, y(point.metric_low), at, y(point.metric_high), style, colour),
            _marker(at, level, colour, point.words, is_front=point.is_front),
        ]


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


class _Labels:
    """Labels of points that lie close together, each in the nearest lane that is free."""

    _LANE = 13.0
    _MAX_LANES = 8

    def __init__(self, left: float, right: float) -> None:
        self._left = left
        self._right = right
        self._points: list[tuple[tuple[float, float], str, str]] = []

    def place(self, point: tuple[float, float], label: str, colour: str) -> None:
        """Ask for a label at a point, in the point's colour."""
        self._points.append((point, label, colour))

    def drawn(self) -> list[str]:
        """Leaders, then labels: to the right of each point, just above or below, else further."""
        taken: list[tuple[float, float, float]] = []  # left, right, baseline
        leaders: list[str] = []
        texts: list[str] = []
        for (x, y), label, colour in self._points:
            half = svg.text_width(label) / 2
            # Beside the whisker, which would cross it.
            centre = min(max(x + half + 5, self._left + half), self._right - half)
            lanes = [
                at
                for lane in range(self._MAX_LANES)
                for at in (y - 5 - lane * self._LANE, y + 14 + lane * self._LANE)
                if _TOP + 10 <= at <= _BOTTOM - 3
            ]
            free = (at for at in lanes if not self._hits(taken, centre - half, centre + half, at))
            at = next(free, None)
            if at is None:
                continue
            taken.append((centre - half, centre + half, at))
            leaders.append(svg.line(x, y, x, at - 4, "leader", colour))
            texts.append(svg.text(centre, at, label, anchor="middle", style="tick", colour=colour))
        return [*leaders, *texts]

    def _hits(
        self, taken: Sequence[tuple[float, float, float]], left: float, right: float, at: float
    ) -> bool:
        return any(
            left < other_right + 4 and other_left < right + 4 and abs(at - other_at) < self._LANE
            for other_left, other_right, other_at in taken
        )


def _marker(x: float, y: float, colour: str, hint: str, *, is_front: bool = True) -> str:
    """A disc; hollow and lighter for what something else is at least as good as."""
    look = f'fill="{colour}"'
    if not is_front:
        look = f'class="lighter" fill="var(--paper)" stroke="{colour}"'
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {look}><title>{escape(hint)}</title></circle>'
    )
