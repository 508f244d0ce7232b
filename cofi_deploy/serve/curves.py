"""Training curves from a run's ``metrics.jsonl``: losses, sparsity, multipliers, metric, layers.

Keys that a line lacks are no problem: a stage logs what it knows. Each stage counts its steps from
the beginning; the pictures count through.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    dashed: str = ""  # a key that is what was asked for, not what came out


_PANELS = (
    _Panel(
        name="loss",
        title="Loss",
        keys=(
            ("loss", "total", "var(--series-1)"),
            ("loss_prediction", "prediction", "var(--series-2)"),
            ("loss_layer", "layer", "var(--series-3)"),
            ("loss_label", "label", "var(--series-4)"),
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
        dashed="target_sparsity",
    ),
    _Panel(
        name="speedup",
        title="Speedup, as the latency table foretells it",
        keys=(
            ("target_speedup", "target", "var(--dense)"),
            ("expected_speedup", "expected", "var(--series-1)"),
            ("realized_speedup", "realized", "var(--series-3)"),
        ),
        dashed="target_speedup",
    ),
    _Panel(
        name="multipliers",
        title="Multipliers of the budget's constraint, and their penalty",
        keys=(
            ("lambda_linear", "linear", "var(--series-1)"),
            ("lambda_quadratic", "quadratic", "var(--series-3)"),
            ("loss_lagrangian", "penalty", "var(--series-2)"),
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
    """A picture for each group of keys that was logged, and one of the layers that were matched."""
    timeline = _Timeline(steps, _places(steps), _stages(steps, _places(steps)))
    pictures = [*(_curves(panel, timeline) for panel in _PANELS), _layer_mapping(timeline)]
    return [picture for picture in pictures if picture is not None]


class _Timeline(NamedTuple):
    """Logged steps, where each lies when steps are counted through, and where stages begin."""

    steps: Sequence[Step]
    places: Sequence[float]
    stages: Sequence[tuple[float, str]]


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


def _curves(panel: _Panel, timeline: _Timeline) -> str | None:
    series = {
        key: (label, colour, pieces)
        for key, label, colour in panel.keys
        if sum(map(len, pieces := _pieces(timeline, key))) >= 2
    }
    if not series:
        return None
    x = svg.scale(timeline.places, _LEFT, _RIGHT, pad=0.0)
    values = [value for *_, pieces in series.values() for piece in pieces for _, value in piece]
    y = svg.scale(values, _BOTTOM, _TOP)
    parts = [
        *svg.y_axis(y, _LEFT, _RIGHT, ""),
        *svg.x_axis(x, _TOP, _BOTTOM, "optimizer step, all stages"),
        svg.text(_LEFT, 14, panel.title, style="name"),
        *_stage_marks(x, timeline.stages),
    ]
    for key, (_, colour, pieces) in series.items():
        for piece in pieces:
            placed = [(x(place), y(value)) for place, value in piece]
            is_asked = key == panel.dashed
            drawn = svg.polyline(placed, colour, dashed=is_asked)
            parts.append(drawn if len(piece) > 1 else svg.dots(placed, colour))
    entries = [(label, colour) for label, colour, _ in series.values()]
    parts += svg.legend(entries, _LEFT, _BOTTOM + 56)
    last = ", ".join(f"{label} {pieces[-1][-1][1]:.4g}" for label, _, pieces in series.values())
    height = _BOTTOM + 68 + svg.legend_height(entries, _LEFT)
    return svg.picture(f"curve-{panel.name}", panel.title, f"Ends at {last}.", height, parts)


def _layer_mapping(timeline: _Timeline) -> str | None:
    """Which student layer learnt from which teacher layer, at every logged step."""
    matched: dict[int, list[tuple[float, float]]] = {}
    for step, place in zip(timeline.steps, timeline.places, strict=True):
        for teacher, student in _mapping(step):
            matched.setdefault(teacher, []).append((place, student))
    if sum(map(len, matched.values())) < 2:
        return None
    title = "Student layer that each teacher layer is matched to"
    teachers = sorted(matched)
    count = max(int(student) for points in matched.values() for _, student in points)
    x = svg.scale(timeline.places, _LEFT, _RIGHT, pad=0.0)
    y = svg.Scale(low=0.5, high=count + 0.5, start=_BOTTOM, end=_TOP)
    parts = [
        *(svg.line(_LEFT, y(layer), _RIGHT, y(layer), "grid") for layer in range(1, count + 1)),
        *(
            svg.text(_LEFT - 6, y(layer) + 4, str(layer), anchor="end", style="tick")
            for layer in range(1, count + 1)
        ),
        *svg.x_axis(x, _TOP, _BOTTOM, "optimizer step, all stages"),
        svg.text(_LEFT, 14, title, style="name"),
        *_stage_marks(x, timeline.stages),
    ]
    entries: list[tuple[str, str]] = []
    for at, teacher in enumerate(teachers):
        colour = svg.PALETTE[at % len(svg.PALETTE)]
        # Side by side within a row: several teacher layers may share a student layer.
        shift = 4.0 * (at - (len(teachers) - 1) / 2)
        points = _thinned(matched[teacher])
        parts.append(svg.dots([(x(place), y(layer) - shift) for place, layer in points], colour))
        entries.append((f"teacher layer {teacher}", colour))
    parts += svg.legend(entries, _LEFT, _BOTTOM + 56)
    ends = ", ".join(f"teacher {each} to student {matched[each][-1][1]:g}" for each in teachers)
    height = _BOTTOM + 68 + svg.legend_height(entries, _LEFT)
    return svg.picture("curve-layers", title, f"Ends with {ends}.", height, parts)


def _mapping(step: Step) -> list[tuple[int, int]]:
    """Pairs of teacher and student layer, both counted from 1."""
    matched = step.get("matched_layers")
    if not isinstance(matched, list) or not all(isinstance(layer, int) for layer in matched):
        return []
    teachers = step.get("teacher_layers")
    if not isinstance(teachers, list) or len(teachers) != len(matched):
        teachers = range(1, len(matched) + 1)  # of an older run: the first, the second, ...
    return [(int(teacher), layer + 1) for teacher, layer in zip(teachers, matched, strict=True)]


def _stage_marks(x: svg.Scale, stages: Sequence[tuple[float, str]]) -> list[str]:
    parts: list[str] = []
    free_from = 0.0
    for place, name in stages:
        parts.append(svg.line(x(place), _TOP - 12, x(place), _BOTTOM, "stage"))
        width = svg.text_width(name)
        left = min(x(place) + 4, svg.WIDTH - width)  # the last name begins further left
        if left >= free_from:  # names of short stages would overlap
            parts.append(svg.text(left, _TOP - 6, name, style="tick"))
            free_from = left + 4 + width
    return parts


def _pieces(timeline: _Timeline, key: str) -> list[list[tuple[float, float]]]:
    """The curve of one key, in pieces: none reaches over a stage that did not log it."""
    pieces: list[list[tuple[float, float]]] = []
    stage: object = None
    for step, place in zip(timeline.steps, timeline.places, strict=True):
        value = _number(step.get(key))
        if value is None:
            continue
        if not pieces or step.get("stage") != stage:
            pieces.append([])
            stage = step.get("stage")
        pieces[-1].append((place, value))
    stride = -(-sum(map(len, pieces)) // _MAX_POINTS)
    return [_thinned(piece, stride) for piece in pieces]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _thinned(
    points: list[tuple[float, float]], stride: int | None = None
) -> list[tuple[float, float]]:
    """Every n-th point, and the last."""
    stride = stride or -(-len(points) // _MAX_POINTS)
    return [*points[:-1:stride], points[-1]]
