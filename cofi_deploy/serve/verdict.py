"""Were the promises kept? Targets, what was measured against them, and one sentence.

In: rows of `verify.py`. Out: a `Verdict`, which becomes the exit code and the report's first line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.fault import Diagnosis
from cofi_deploy.serve.significance import PairedTest

Outcome = Literal["held", "missed", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What was promised; None means nothing.

    ``max_drop`` is in points of the metric: 1.5 allows 0.900 to become 0.885. ``min_speedup`` is
    dense over pruned, for every runtime and operating point that was measured.
    """

    max_drop: float | None = None
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        """Refuse targets that mean nothing."""
        if self.max_drop is not None and not -100 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop is {self.max_drop:g}, allowed: -100 to 100 points")
        if self.min_speedup is not None and not self.min_speedup > 0:
            raise UsageError(f"--min-speedup is {self.min_speedup:g}, allowed: above 0")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One promise, in one place.

    ``measured`` (None: no believable number) is a drop in points or a speedup, ``low`` and
    ``high`` its 95 % interval. ``no_fault`` is promised always; it stands here only when it is
    missed, with 0 faults asked and 1 measured.
    """

    claim: Literal["max_drop", "min_speedup", "no_fault"]
    runtime: str
    batch_size: int | None
    seq_len: int | str | None
    asked: float
    measured: float | None
    low: float | None
    high: float | None
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All claims and the sum of them.

    Without targets `ok` holds, and the sentence says so, unless a fault was diagnosed.
    """

    ok: bool
    sentence: str
    claims: tuple[Claim, ...]


def judge(
    targets: Targets,
    accuracy_rows: Sequence[Mapping[str, Any]],
    latency_rows: Sequence[Mapping[str, Any]],
    tests: Mapping[str, PairedTest | None],
    diagnoses: Sequence[Diagnosis] = (),
) -> Verdict:
    """Compare the pruned model's rows with the targets.

    A drop is judged by the metric itself, as leaderboards do, and its interval is told. A
    speedup is held only when its whole interval is: timing can be repeated until it is decided.

    Args:
        targets: What was promised.
        accuracy_rows: Of the pruned model, one for each runtime.
        latency_rows: Of the pruned model, one for each runtime and operating point.
        tests: Paired comparison with the dense model, by runtime.
        diagnoses: Faults that were found, of either model; each is a missed claim.
    """
    claims = [_fault_claim(diagnosis) for diagnosis in diagnoses]
    if targets.max_drop is not None:
        claims += [
            _drop_claim(targets.max_drop, row, tests.get(row["runtime"])) for row in accuracy_rows
        ]
    if targets.min_speedup is not None:
        claims += [_speed_claim(targets.min_speedup, row) for row in latency_rows]
    unmeasured = _unmeasured(targets, claims)
    ok = not unmeasured and all(claim.outcome == "held" for claim in claims)
    return Verdict(ok=ok, sentence=_sentence(claims, unmeasured), claims=tuple(claims))


def _fault_claim(diagnosis: Diagnosis) -> Claim:
    return Claim(
        claim="no_fault",
        runtime=diagnosis.runtime,
        batch_size=None,
        seq_len=None,
        asked=0.0,
        measured=1.0,
        low=None,
        high=None,
        outcome="missed",
        sentence=diagnosis.sentence,
    )


def _drop_claim(asked: float, row: Mapping[str, Any], test: PairedTest | None) -> Claim:
    # Rounded, so that 0.900 - 0.885 is a drop of 1.5 points and not of 1.5000000000000013.
    drop = round((row["metric_dense"] - row["metric"]) * 100, 6)
    low, high = (None, None) if test is None else (-test.high * 100, -test.low * 100)
    interval = "" if low is None else f" (95 % interval of the drop {low:.2f} to {high:.2f})"
    change = f"drops by {drop:.2f} points" if drop >= 0 else f"rises by {-drop:.2f} points"
    outcome: Outcome = "held" if drop <= asked else "missed"
    return Claim(
        claim="max_drop",
        runtime=row["runtime"],
        batch_size=None,
        seq_len=None,
        asked=asked,
        measured=drop,
        low=low,
        high=high,
        outcome=outcome,
        sentence=(
            f"{row['metric_name']} in {row['runtime']} {change}{interval}, allowed: {asked:g}"
        ),
    )


def _speed_claim(asked: float, row: Mapping[str, Any]) -> Claim:
    place = f"{row['runtime']} at {row['batch_size']}x{row['seq_len']}"
    measured, low, high = (row.get(key) for key in ("speedup", "speedup_low", "speedup_high"))
    outcome: Outcome = "undecided"
    if measured is None or low is None or high is None:
        why = row.get("noise", "the measurement is too noisy")
        sentence = f"no speedup of {place} can be told, {why}"
    else:
        outcome = _speed_outcome(asked, low, high)
        sentence = (
            f"{place} is {measured:.2f} times faster (95 % interval {low:.2f} to {high:.2f}), "
            f"asked: {asked:g}"
        )
        if outcome == "undecided":
            sentence += "; the interval holds the target: measure longer to decide"
    return Claim(
        claim="min_speedup",
        runtime=row["runtime"],
        batch_size=row["batch_size"],
        seq_len=row["seq_len"],
        asked=asked,
        measured=measured,
        low=low,
        high=high,
        outcome=outcome,
        sentence=sentence,
    )


def _speed_outcome(asked: float, low: float, high: float) -> Outcome:
    if low >= asked:
        return "held"
    return "missed" if high < asked else "undecided"


def _unmeasured(targets: Targets, claims: Sequence[Claim]) -> list[str]:
    """Targets that not one measurement speaks about: no runtime could be used."""
    asked = {"max_drop": targets.max_drop, "min_speedup": targets.min_speedup}
    seen = {claim.claim for claim in claims}
    return [name for name, value in asked.items() if value is not None and name not in seen]


def _sentence(claims: Sequence[Claim], unmeasured: Sequence[str]) -> str:
    if unmeasured and not any(claim.claim == "no_fault" for claim in claims):
        return f"Not shown: nothing was measured for {' and '.join(unmeasured)}."
    if not claims:
        return "No targets were set: the numbers below stand for themselves."
    failed = [claim for claim in claims if claim.outcome != "held"]
    if not failed:
        return _all_held(claims)
    words = {"missed": "Missed", "undecided": "Undecided"}
    first = min(failed, key=lambda claim: claim.outcome)  # missed before undecided
    more = f" ({len(failed)} of {len(claims)} claims do not hold)" if len(claims) > 1 else ""
    return f"{words[first.outcome]}: {first.sentence}{more}."


def _all_held(claims: Sequence[Claim]) -> str:
    """The narrowest of each kind."""
    parts: list[str] = []
    drops = [claim for claim in claims if claim.claim == "max_drop"]
    speeds = [claim for claim in claims if claim.claim == "min_speedup"]
    if drops:
        worst = max(drops, key=lambda claim: claim.measured or 0.0)
        lost = worst.measured or 0.0
        told = f"at most {lost:.2f} points lost" if lost > 0 else "nothing lost"
        parts.append(f"{told} (allowed: {worst.asked:g})")
    if speeds:
        worst = min(speeds, key=lambda claim: claim.measured or 0.0)
        parts.append(f"at least {worst.measured:.2f} times faster (asked: {worst.asked:g})")
    return f"Held: {' and '.join(parts)}."
