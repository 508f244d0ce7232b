"""Training curves from a run's ``metrics.jsonl``: losses, sparsity, metric over steps.

Keys that a line lacks are no problem: a stage logs what it knows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.serve import svg

logger = logging.getLogger(__name__)

Step = Mapping[str, Any]

_LEFT, _RIGHT = 52.0, svg.WIDTH - 14.0
_TOP, _BOTTOM = 44.0, 190.0

# More points than pixels make a file large and a curve no better.
_MAX_POINTS = 240


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One picture: which keys, under which names and in which colours."""

    name: str
    title: str
    keys: tuple[tuple[str, str, str], ...]  # key, label, colour


_PANELS = (
    _Panel(
        name="loss",
        title="Loss",
        keys=(
            ("loss", "total", "var(--series-1)"),
            ("loss_prediction", "prediction", "var(--series-2)"),
            ("loss_layer", "layer", "var(--series-3)"),
        ),
    ),
    _Panel(
        name="sparsity",
        title="Sparsity of the encoder",
        keys=(
            ("target_sparsity", "target", "var(--dense)"),
            ("expected_sparsity", "expected", "var(--series-1)"),
            ("realized_sparsity", "realized", "var(--series-3)"),
        ),
    ),
    _Panel(name="metric", title="Metric", keys=(("metric", "held-out metric", "var(--series-1)"),)),
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Steps of a ``metrics.jsonl``; a line that a crash cut short is left out.

    A missing file gives no steps: curves are an extra, and old runs may have none.
    """
    if not path.is_file():
        logger.warning("no training curves: %s does not exist", path)
        return []
    steps: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            step = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(step, dict):
            steps.append(step)
    return steps


def training_curves(steps: Sequence[Step]) -> list[str]:
    """A picture for each group of keys that was logged."""
    places = _places(steps)
    stages = _stages(steps, places)
    pictures = (_curves(panel, steps, places, stages) for panel in _PANELS)
    return [picture for picture in pictures if picture is not None]


def _places(steps: Sequence[Step]) -> list[float]:
    """Steps counted through all stages, each of which counts from the beginning again."""
    places: list[float] = []
    offset, before, stage = 0.0, 0.0, None
    for step in steps:
        number = _number(step.get("step")) or 0.0
        if step.get("stage") != stage:
            offset, before, stage = offset + before, 0.0, step.get("stage")
        before = max(before, number)
        places.append(offset + number)
    return places


def _stages(steps: Sequence[Step], places: Sequence[float]) -> list[tuple[float, str]]:
    """Where each stage begins, in order."""
    found: list[tuple[float, str]] = []
    for step, place in zip(steps, places, strict=True):
        name = str(step.get("stage", ""))
        if name and (not found or found[-1][1] != name):
            found.append((place, name))
    return found


def _curves(
    panel: _Panel,
    steps: Sequence[Step],
    places: Sequence[float],
    stages: Sequence[tuple[float, str]],
) -> str | None:
    series = [
        (label, colour, _thinned(points))
        for key, label, colour in panel.keys
        if len(points := _points(steps, places, key)) >= 2
    ]
    if not series:
        return None
    x = svg.scale(places, _LEFT, _RIGHT, pad=0.0)
    y = svg.scale([value for _, _, points in series for _, value in points], _BOTTOM, _TOP)
    parts = [
        *svg.y_axis(y, _LEFT, _RIGHT, ""),
        *svg.x_axis(x, _TOP, _BOTTOM, "optimizer step, all stages"),
        svg.text(_LEFT, 14, panel.title, style="name"),
        *_stage_marks(x, stages),
    ]
    for _, colour, points in series:
        parts.append(svg.polyline([(x(place), y(value)) for place, value in points], colour))
    parts += svg.legend([(label, colour) for label, colour, _ in series], _LEFT, _BOTTOM + 56)
    last = ", ".join(f"{label} {points[-1][1]:.4g}" for label, _, points in series)
    return svg.picture(f"curve-{panel.name}", panel.title, f"Ends at {last}.", _BOTTOM + 68, parts)


def _stage_marks(x: svg.Scale, stages: Sequence[tuple[float, str]]) -> list[str]:
    parts: list[str] = []
    free_from = 0.0
    for place, name in stages:
        parts.append(svg.line(x(place), _TOP - 12, x(place), _BOTTOM, "stage"))
        if x(place) >= free_from:  # names of short stages would overlap
            parts.append(svg.text(x(place) + 4, _TOP - 6, name, style="tick"))
            free_from = x(place) + 8 + svg.text_width(name)
    return parts


def _points(steps: Sequence[Step], places: Sequence[float], key: str) -> list[tuple[float, float]]:
    pairs = [(place, _number(step.get(key))) for step, place in zip(steps, places, strict=True)]
    return [(place, value) for place, value in pairs if value is not None]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every n-th point, and the last."""
    stride = -(-len(points) // _MAX_POINTS)
    return [*points[:-1:stride], points[-1]]
