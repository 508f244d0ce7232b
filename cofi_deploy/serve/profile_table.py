"""Profiles for a terminal: a part in each line, its efficiency and its distance to the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

Profile = Mapping[str, Any]


def render(
    profiles: Sequence[Profile], explanations: Sequence[Mapping[str, Any]]
) -> RenderableType:
    """A table for each profile, then a sentence for each pair of models."""
    sentences = (
        f"{each['model']} in {each['runtime']} at {each['batch_size']}x{each['seq_len']}: "
        f"{each['sentence']}"
        for each in explanations
    )
    return Group(*map(_table, profiles), *sentences)


def _table(profile: Profile) -> Table:
    peak = profile["peak_gflops"]
    table = Table(title=_title(profile), caption="; ".join(_remarks(profile)))
    for name in ("layer", "part"):
        table.add_column(name)
    for name in ("ms", "share", "MFLOP", "GFLOP/s", "of peak", "ms above floor"):
        table.add_column(name, justify="right")
    for part in profile["parts"]:
        layer = "" if part["layer"] is None else str(part["layer"])
        share = f"{part['ms'] / profile['wall_ms']:.1%}"
        table.add_row(layer, part["part"], f"{part['ms']:.3f}", share, *_work(part, peak))
    return table


def _title(profile: Profile) -> str:
    return (
        f"{profile['model']}: {profile['wall_ms']:.2f} ms in {profile['runtime']} "
        f"{profile['precision']} at {profile['batch_size']}x{profile['seq_len']}, "
        f"threads {profile['threads']}"
    )


def _remarks(profile: Profile) -> Iterator[str]:
    peak = profile["peak_gflops"]
    yield "no peak was measured" if peak is None else f"peak {peak:,.0f} GFLOP/s"
    yield f"no part is known for {profile['unfolded_share']:.1%} of the time"
    if profile["scale"] < 1:
        yield (
            f"profiled operations took longer than the whole inference without a profiler; they "
            f"are multiplied by {profile['scale']:.2f}"
        )


def _work(part: Mapping[str, Any], peak: float | None) -> tuple[str, str, str, str]:
    """Operations, speed, share of the peak and milliseconds beyond the time at the peak."""
    if not part["flops"]:
        return "", "", "", ""
    work = f"{part['flops'] / 1e6:,.1f}"
    if not part["ms"]:
        return work, "", "", ""
    speed = part["flops"] / part["ms"] / 1e6
    if peak is None:
        return work, f"{speed:,.1f}", "", ""
    return work, f"{speed:,.1f}", f"{speed / peak:.0%}", f"{part['ms'] - _floor_ms(part, peak):.3f}"


def _floor_ms(part: Mapping[str, Any], peak: float) -> float:
    return float(part["flops"] / peak / 1e6)
