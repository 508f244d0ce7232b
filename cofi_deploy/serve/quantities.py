"""One number of a result file before and after: better, worse, or the same within its noise.

In: two rows measured in the same place. Out: a `Judgement` for each quantity. Whether a change is
real is asked of intervals, whether it matters of tolerances; "worse" needs both. All rules are
symmetric: exchange the rows, and better becomes worse. Next file: `comparison.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from cofi_deploy.errors import UsageError

Row = Mapping[str, Any]
Verdict = Literal["worse", "vanished", "better", "new", "not comparable", "same"]
Rule = Literal["share", "interval", "ratio", "numerics"]

_Z = 1.96  # of a 95 % interval
# Below this, logits differ by the order of additions in fp32 and by nothing else.
_LOGIT_FLOOR = 1e-3
_LOGIT_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """The changes that are accepted although they are real.

    Attributes:
        max_metric_drop: In points, of `metric` and `agreement`.
        max_slowdown: A fraction: 0.1 lets 10 ms become 11 ms and a speedup of 11 become 10.
        max_growth: A fraction, of bytes and parameters.
    """

    max_metric_drop: float = 0.5
    max_slowdown: float = 0.1
    max_growth: float = 0.02

    def __post_init__(self) -> None:
        """Refuse tolerances that mean nothing."""
        for name, value in vars(self).items():
            if not 0 <= value <= 100:
                unit = "points" if name == "max_metric_drop" else "as a fraction"
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} is {value:g}, allowed: 0 to 100 {unit}")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A key of result rows and how it is judged.

    Attributes:
        name: The key.
        rule: Which function below decides.
        higher_is_better: False for times and sizes.
        tolerance: The field of `Tolerances` that applies.
        scale: Times that tolerance: tails and single measurements are noisier than medians.
        needs_same_place: Comparable only between equal machines and versions.
    """

    name: str
    rule: Rule
    higher_is_better: bool = False
    tolerance: str = "max_slowdown"
    scale: float = 1.0
    needs_same_place: bool = False


QUANTITIES = (
    Quantity(name="metric", rule="share", higher_is_better=True, tolerance="max_metric_drop"),
    Quantity(name="agreement", rule="share", higher_is_better=True, tolerance="max_metric_drop"),
    Quantity(name="max_abs_logit_diff", rule="numerics"),
    Quantity(name="speedup", rule="interval", higher_is_better=True),
    Quantity(name="p50_ms", rule="ratio", needs_same_place=True),
    Quantity(name="p90_ms", rule="ratio", scale=2, needs_same_place=True),
    Quantity(name="p99_ms", rule="ratio", scale=3, needs_same_place=True),
    Quantity(name="sequences_per_s", rule="ratio", higher_is_better=True, needs_same_place=True),
    Quantity(name="load_ms", rule="ratio", scale=5, needs_same_place=True),
    Quantity(
        name="peak_memory_mib",
        rule="ratio",
        tolerance="max_growth",
        scale=5,
        needs_same_place=True,
    ),
    Quantity(name="size_bytes", rule="ratio", tolerance="max_growth"),
    Quantity(name="parameters", rule="ratio", tolerance="max_growth"),
)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A paired test that a result file has: pruned minus dense on the same examples."""

    runtime: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of one quantity.

    ``change`` is candidate minus baseline for shares (a fraction) and candidate over baseline
    else; ``low`` and ``high`` bound the 95 % interval of a share's change.
    """

    verdict: Verdict
    reason: str = ""
    change: float | None = None
    low: float | None = None
    high: float | None = None


def judge(
    quantity: Quantity,
    rows: tuple[Row, Row],
    tolerances: Tolerances,
    *,
    elsewhere: str = "",
    paired: tuple[Sequence[Paired], Sequence[Paired]] = ((), ()),
) -> Judgement | None:
    """Compare one quantity of two matched rows, baseline first; None where neither has it.

    Args:
        quantity: What is compared.
        rows: Measured in the same place: model, runtime, shape.
        tolerances: Changes that are accepted.
        elsewhere: Why times of the two files do not compare; empty where they do.
        paired: Paired tests of the two files.
    """
    name = quantity.name
    has = [_is_number(row.get(name)) for row in rows]
    if not any(has):
        return None
    if not all(has):
        return _one_sided(name, rows, has)
    before, after = (_as_float(row[name]) for row in rows)
    if before == after or (math.isnan(before) and math.isnan(after)):
        return Judgement(verdict="same", reason="equal")
    if not (math.isfinite(before) and math.isfinite(after)):
        return _not_finite(before, after)
    obstacle = elsewhere or next((str(row["noise"]) for row in rows if row.get("noise")), "")
    if quantity.needs_same_place and obstacle:
        return Judgement(verdict="not comparable", reason=obstacle)
    return _judge_change(quantity, rows, tolerances, paired)


def _judge_change(
    quantity: Quantity,
    rows: tuple[Row, Row],
    tolerances: Tolerances,
    paired: tuple[Sequence[Paired], Sequence[Paired]],
) -> Judgement:
    """Two different finite numbers of one place, by the rule of their quantity."""
    allowed = getattr(tolerances, quantity.tolerance) * quantity.scale
    if quantity.rule == "share":
        return _judge_share(quantity, rows, allowed / 100, paired)
    if quantity.rule == "numerics":
        return _judge_numerics(*(float(row[quantity.name]) for row in rows))
    return _judge_ratio(quantity, rows, allowed)


def _one_sided(name: str, rows: tuple[Row, Row], has: Sequence[bool]) -> Judgement:
    """A null is a measurement that could not be told; an absent key one that nobody made."""
    side, lacking = ("candidate", rows[1]) if has[0] else ("baseline", rows[0])
    if name in lacking:
        reason = str(lacking.get("noise") or f"the {side} has no number")
        return Judgement(verdict="not comparable", reason=reason)
    verdict: Verdict = "vanished" if has[0] else "new"
    return Judgement(verdict=verdict, reason=f"the {side} does not have it")


def _not_finite(before: float, after: float) -> Judgement:
    """NaN and infinities come of broken models."""
    if math.isfinite(before):
        return Judgement(verdict="worse", reason=f"became {after}")
    if math.isfinite(after):
        return Judgement(verdict="better", reason=f"was {before}")
    return Judgement(verdict="not comparable", reason=f"was {before}, became {after}")


def _judge_share(
    quantity: Quantity,
    rows: tuple[Row, Row],
    allowed: float,
    paired: tuple[Sequence[Paired], Sequence[Paired]],
) -> Judgement:
    before, after = (float(row[quantity.name]) for row in rows)
    # Rounded, so that 0.900 - 0.885 is 1.5 points and not 1.5000000000000013.
    change = round(after - before, 12)
    sizes = _sizes(rows)
    if sizes is None:
        return Judgement(
            verdict="not comparable",
            reason="no number of examples, so no interval of the change can be told",
            change=change,
        )
    interval = _paired_interval(rows, paired) if quantity.name == "metric" else None
    how = "paired"
    if interval is None:
        name = str(rows[0].get("metric_name", ""))
        interval = _independent_interval((before, after), sizes, name)
        how = f"of {sizes[0]:,} and {sizes[1]:,} examples"
    low, high = interval
    reason = (
        f"{before:.4f} became {after:.4f}: {change * 100:+.2f} points "
        f"(95 % interval {how}: {low * 100:+.2f} to {high * 100:+.2f}), tolerated: "
        f"{allowed * 100:g}"
    )
    verdict: Verdict = "same"
    if change < -allowed and high < 0:
        verdict = "worse"
    elif change > allowed and low > 0:
        verdict = "better"
    return Judgement(verdict=verdict, reason=reason, change=change, low=low, high=high)


def _sizes(rows: tuple[Row, Row]) -> tuple[int, int] | None:
    """Examples that each side was scored on; None where one does not say."""
    sizes = [row.get("examples") for row in rows]
    found = [size for size in sizes if isinstance(size, int) and 0 < size < 2**53]
    return (found[0], found[1]) if len(found) == 2 else None


def _paired_interval(
    rows: tuple[Row, Row], paired: tuple[Sequence[Paired], Sequence[Paired]]
) -> tuple[float, float] | None:
    """Change of the metric through the dense model that both files measured alike.

    Both drops are on the same examples, so their errors are rarely opposed: adding the two
    variances as if they were independent makes the interval too wide rather than too narrow.
    """
    first, second = rows
    if any(first.get(key) != second.get(key) for key in ("metric_dense", "examples", "seed")):
        return None
    tests = [_paired_of(row, known) for row, known in zip(rows, paired, strict=True)]
    if tests[0] is None or tests[1] is None:
        return None
    half = math.hypot(
        *(max(test.high - test.difference, test.difference - test.low) for test in tests if test)
    )
    change = tests[1].difference - tests[0].difference
    return change - half, change + half


def _paired_of(row: Row, known: Sequence[Paired]) -> Paired | None:
    """The test of a row, known by its runtime and by the difference that it found."""
    dense = row.get("metric_dense")
    if not _is_number(dense):
        return None
    difference = float(row["metric"]) - _as_float(dense)
    matching = (
        test
        for test in known
        if test.runtime == row.get("runtime") and abs(test.difference - difference) < 1e-6
    )
    return next(matching, None)


def _independent_interval(
    values: tuple[float, float], sizes: tuple[int, int], metric_name: str
) -> tuple[float, float]:
    """95 % interval of the second value minus the first, as if of different examples.

    Source:
        Shares: Agresti and Caffo, The American Statistician 54 (2000): one right and one wrong
        answer added to each side. A mean of scores in [0, 1], such as F1 of answers, varies less
        than such a share. Correlations: variance (1 - r^2) / n, that of the phi coefficient of
        balanced classes, and more than Pearson's.
    """
    if metric_name.startswith(("matthews", "pearson", "spearman")) or not all(
        0 <= value <= 1 for value in values
    ):
        centres = values
        variances = [
            max(1 - value * value, 0.0) / size for value, size in zip(values, sizes, strict=True)
        ]
    else:
        first, second = (
            (value * size + 1) / (size + 2) for value, size in zip(values, sizes, strict=True)
        )
        centres = (first, second)
        variances = [
            share * (1 - share) / (size + 2) for share, size in zip(centres, sizes, strict=True)
        ]
    half = _Z * math.sqrt(sum(variances))
    change = centres[1] - centres[0]
    return change - half, change + half


def _judge_numerics(before: float, after: float) -> Judgement:
    """A logit difference matters when it is above rounding, and doubled."""
    reason = f"{before:.3g} became {after:.3g}, tolerated: {_LOGIT_FLOOR:g}, or doubling"
    first, second = max(abs(before), _LOGIT_FLOOR), max(abs(after), _LOGIT_FLOOR)
    verdict: Verdict = "same"
    if second > _LOGIT_FACTOR * first:
        verdict = "worse"
    elif first > _LOGIT_FACTOR * second:
        verdict = "better"
    return Judgement(verdict=verdict, reason=reason)


def _judge_ratio(quantity: Quantity, rows: tuple[Row, Row], allowed: float) -> Judgement:
    before, after = (float(row[quantity.name]) for row in rows)
    if not (before > 0 and after > 0):
        return Judgement(
            verdict="not comparable", reason=f"{before:g} became {after:g}, expected above 0"
        )
    bounds = [_bounds(row, quantity.name) for row in rows]
    if quantity.rule == "interval" and None in bounds:
        return Judgement(verdict="not comparable", reason="no interval on both sides")
    told = [
        f"{value:,.6g}" + (f" ({bound[0]:.4g} to {bound[1]:.4g})" if bound else "")
        for value, bound in zip((before, after), bounds, strict=True)
    ]
    reason = f"{told[0]} became {told[1]}, tolerated: {allowed:.3g} as a fraction"
    rose = after > before * (1 + allowed)
    fell = before > after * (1 + allowed)
    if bounds[0] and bounds[1]:
        rose = rose and bounds[1][0] > bounds[0][1]
        fell = fell and bounds[1][1] < bounds[0][0]
    verdict: Verdict = "same"
    if rose or fell:
        verdict = "better" if rose == quantity.higher_is_better else "worse"
    change = after / before if math.isfinite(after / before) else None
    return Judgement(verdict=verdict, reason=reason, change=change)


def _bounds(row: Row, name: str) -> tuple[float, float] | None:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if not (_is_number(low) and _is_number(high)):
        return None
    bounds = _as_float(low), _as_float(high)
    return bounds if all(map(math.isfinite, bounds)) and bounds[0] <= bounds[1] else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    """Whole numbers of JSON have no largest one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
