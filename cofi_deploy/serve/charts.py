"""The report's pictures of latency: one strip for each model and operating point.

In: samples of `verify.json`. Out: SVG. Next files: `bars.py`, `curves.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cofi_deploy.serve import svg

Sample = Mapping[str, Any]

_RIGHT = svg.WIDTH - 14.0


def latency_strips(samples: Sequence[Sample], dense: str, judged: str) -> dict[str, str]:
    """A picture for each runtime, all on a common logarithmic axis.

    The line spans the 1st to the 99th percentile, the bar the 10th to the 90th, the tick is the
    median.

    Args:
        samples: Sorted durations of every model at every operating point.
        dense: Label of the baseline.
        judged: Label of the model that the report is about; other members are drawn lighter.

    Returns:
        Pictures by runtime; none without samples.
    """
    if not samples:
        return {}
    five = {id(item): _quantiles(item) for item in samples}
    everything = [value for values in five.values() for value in values]
    x = svg.scale(everything, 14.0, _RIGHT, log=True)
    pictures: dict[str, str] = {}
    for number, runtime in enumerate(dict.fromkeys(item["runtime"] for item in samples)):
        own = [(item, five[id(item)]) for item in samples if item["runtime"] == runtime]
        pictures[runtime] = _picture(f"latency-{number}", x, own, (dense, judged))
    return pictures


def _quantiles(sample: Sample) -> list[float]:
    return [float(value) for value in np.percentile(sample["sorted_ms"], [1, 10, 50, 90, 99])]


def _picture(
    name: str,
    x: svg.Scale,
    samples: Sequence[tuple[Sample, Sequence[float]]],
    models: tuple[str, str],
) -> str:
    dense, judged = models
    parts: list[str] = []
    words: list[str] = []
    y = 20.0
    place = ""
    for item, five in samples:
        here = f"{item['batch_size']} x {item['seq_len']}"
        if here != place:
            y += 12 if place else 0
            parts.append(svg.text(14, y, here, style="name"))
            place, y = here, y + 18
        colour = "var(--dense)" if item["model"] == dense else "var(--pruned)"
        parts += _strip(x, y, five, (item["model"], colour), item["model"] in {dense, judged})
        words.append(
            f"{here}, {item['model']}: median {five[2]:.3g} ms, 99 % within {five[4]:.3g} ms."
        )
        y += 26
    axis = svg.x_axis(x, 26, y - 8, "milliseconds for one batch, logarithmic")
    title = f"Latency distributions in {samples[0][0]['runtime']}"
    return svg.picture(name, title, " ".join(words), y + 34, [*axis, *parts])


def _strip(
    x: svg.Scale, y: float, five: Sequence[float], model: tuple[str, str], is_main: bool
) -> list[str]:
    name, colour = model
    low, p10, median, p90, high = (x(value) for value in five)
    label = f"{name} {svg.short(five[2])} ms"
    room = svg.text_width(label) + 12
    anchor, place, baseline = "start", high + 8, y + 4
    if high + room > x.end:
        anchor, place = "end", low - 8
        if low < room:  # the whisker takes the whole width: above its end
            place, baseline = x.end, y - 4
    lighter = "" if is_main else " lighter"
    return [
        svg.line(low, y, high, y, f"whisker{lighter}", colour),
        f'<rect class="box{lighter}" x="{p10:.1f}" y="{y - 6:.1f}" '
        f'width="{max(p90 - p10, 2):.1f}" height="12" fill="{colour}" rx="2"/>',
        svg.line(median, y - 9, median, y + 9, "median"),
        svg.text(place, baseline, label, anchor=anchor),
    ]
