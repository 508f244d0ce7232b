"""Why a pruned model is 7 times faster and not 12: which parts did not shrink as their work did.

In: profiles of dense and pruned at one operating point, as JSON. Out: an explanation for each
pair. Parts with operations are compared with the time that they would take at the dense model's
efficiency; what has none (LayerNorm, embedding, head, overhead) with its share of the speedup
that operations promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cofi_deploy.parts import PARTS

Profile = Mapping[str, Any]
PartRow = dict[str, Any]

# Within this of what operations promise, there is nothing to explain.
_TOLERANCE = 0.05
# A reason that holds less than this of the lost time is not told.
_WORTH_TELLING = 0.15
_MAX_REASONS = 2


@dataclass(frozen=True, kw_only=True)
class _Reason:
    """Milliseconds that were not gained, and why, in words."""

    lost_ms: float
    words: str


def explanations_for(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """An explanation of each model against the first one of its runtime and shape."""
    baselines: dict[tuple[Any, ...], Profile] = {}
    found: list[dict[str, Any]] = []
    for profile in profiles:
        at = tuple(profile[key] for key in ("runtime", "batch_size", "seq_len"))
        if at in baselines:
            found.append(explain(baselines[at], profile))
        else:
            baselines[at] = profile
    return found


def explain(dense: Profile, pruned: Profile) -> dict[str, Any]:
    """Compare two profiles of one runtime and shape.

    Returns:
        ``speedup`` and ``flops_ratio``, dense over pruned (None where the pruned model has none
        left), ``at_dense_efficiency_ms``, one sentence, and for each part its milliseconds, the
        two ratios and the milliseconds at the dense model's efficiency.
    """
    parts = [_compare(part, dense, pruned) for part in PARTS]
    parts = [row for row in parts if row["dense_ms"] or row["pruned_ms"]]
    dense_flops, pruned_flops = _sum(dense, "flops"), _sum(pruned, "flops")
    speedup = dense["wall_ms"] / pruned["wall_ms"]
    flops_ratio = _ratio(dense_flops, pruned_flops)
    return {
        "model": pruned["model"],
        "runtime": pruned["runtime"],
        "batch_size": pruned["batch_size"],
        "seq_len": pruned["seq_len"],
        "speedup": speedup,
        "flops_ratio": flops_ratio,
        "at_dense_efficiency_ms": sum(row["at_dense_efficiency_ms"] for row in parts),
        "sentence": _sentence(dense, pruned, parts, speedup, flops_ratio),
        "parts": parts,
    }


def _compare(part: str, dense: Profile, pruned: Profile) -> PartRow:
    dense_ms, pruned_ms = _sum(dense, "ms", part), _sum(pruned, "ms", part)
    dense_flops, pruned_flops = _sum(dense, "flops", part), _sum(pruned, "flops", part)
    # Without operations there is no efficiency to keep: such a part takes what it takes.
    kept = dense_ms * pruned_flops / dense_flops if dense_flops else pruned_ms
    return {
        "part": part,
        "dense_ms": dense_ms,
        "pruned_ms": pruned_ms,
        "speedup": _ratio(dense_ms, pruned_ms),
        "flops_ratio": _ratio(dense_flops, pruned_flops),
        "at_dense_efficiency_ms": kept,
    }


def _sentence(
    dense: Profile,
    pruned: Profile,
    parts: Sequence[PartRow],
    speedup: float,
    flops_ratio: float | None,
) -> str:
    if flops_ratio is None:
        return f"{speedup:.1f}x: no operations are left in the layers, all else takes the time"
    if speedup >= flops_ratio * (1 - _TOLERANCE):
        return f"{speedup:.1f}x: as much as the operations promise ({flops_ratio:.1f}x)"
    reasons = sorted(
        _reasons(dense, pruned, parts, flops_ratio), key=lambda reason: -reason.lost_ms
    )
    lost = pruned["wall_ms"] - dense["wall_ms"] / flops_ratio
    told = [
        reason.words
        for index, reason in enumerate(reasons[:_MAX_REASONS])
        if index == 0 or reason.lost_ms > _WORTH_TELLING * lost
    ]
    return f"{speedup:.1f}x and not {flops_ratio:.1f}x: {'; '.join(told)}"


def _reasons(
    dense: Profile, pruned: Profile, parts: Sequence[PartRow], flops_ratio: float
) -> Iterator[_Reason]:
    """Together, what the pruned model takes beyond dense time over ``flops_ratio``."""
    rest = [row for row in parts if row["flops_ratio"] is None and not _has_flops(dense, row)]
    yield _of_rest(rest, pruned["wall_ms"], flops_ratio)
    for row in parts:
        if _has_flops(dense, row):
            lost_ms = row["pruned_ms"] - row["at_dense_efficiency_ms"]
            yield _Reason(lost_ms=lost_ms, words=_of_part(row, dense, pruned))


def _of_rest(rest: Sequence[PartRow], wall_ms: float, flops_ratio: float) -> _Reason:
    dense_ms = sum(row["dense_ms"] for row in rest)
    pruned_ms = sum(row["pruned_ms"] for row in rest)
    largest = sorted(rest, key=lambda row: -row["pruned_ms"])[:2]
    names = " and ".join(_name(row["part"]) for row in largest)
    share = sum(row["pruned_ms"] for row in largest) / wall_ms
    speedup = _ratio(sum(row["dense_ms"] for row in largest), share * wall_ms)
    gained = "new" if speedup is None else f"only {speedup:.1f}x faster"
    words = f"{names} take {share:.0%} of the pruned time and are {gained}"
    return _Reason(lost_ms=pruned_ms - dense_ms / flops_ratio, words=words)


def _of_part(row: PartRow, dense: Profile, pruned: Profile) -> str:
    """The part's efficiency against dense, and that of the layer that loses most by it."""
    part = row["part"]
    words = f"{_name(part)} runs at {_efficiency(row):.0%} of its dense efficiency"
    layers = [
        (each["ms"] - kept, each["layer"], kept / each["ms"])
        for each in pruned["parts"]
        if each["part"] == part and each["ms"] > 0
        for kept in [_kept_ms(dense, each)]
        if kept is not None
    ]
    if len(layers) < 2:
        return words
    _, layer, efficiency = max(layers)
    return f"{words} (layer {layer}: {efficiency:.0%})"


def _efficiency(row: PartRow) -> float:
    """Dense time scaled by operations over pruned time; 1 where nothing takes no time."""
    if not row["pruned_ms"]:
        return 1.0
    return float(row["at_dense_efficiency_ms"] / row["pruned_ms"])


def _kept_ms(dense: Profile, pruned_part: Mapping[str, Any]) -> float | None:
    """Milliseconds of a pruned sublayer at the efficiency of the same sublayer of dense."""
    place = (pruned_part["layer"], pruned_part["part"])
    for each in dense["parts"]:
        if (each["layer"], each["part"]) == place and each["flops"]:
            return float(each["ms"] * pruned_part["flops"] / each["flops"])
    return None


def _has_flops(dense: Profile, row: PartRow) -> bool:
    return _sum(dense, "flops", row["part"]) > 0


def _sum(profile: Profile, key: str, part: str | None = None) -> float:
    return float(sum(each[key] for each in profile["parts"] if part in {None, each["part"]}))


def _ratio(above: float, below: float) -> float | None:
    """None where one of them is zero: the part is gone, or was never there."""
    return above / below if above and below else None


def _name(part: str) -> str:
    return {"layer_norm": "LayerNorm", "ffn": "FFN"}.get(part, part)
