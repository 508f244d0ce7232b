"""Fixed masks whose speedup was measured, not only foretold.

Comes in: gates, a target, the table, and a stopwatch that the caller brings: `train` knows no
runtime. Goes out: masks, and what was measured of their structure. What takes how long depends on
the structure alone, so all of this is settled before the cut model is fine-tuned.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cofi_deploy.arch import Arch
from cofi_deploy.errors import BudgetError
from cofi_deploy.masks import Masks
from cofi_deploy.targets import Target
from cofi_deploy.train.alignment import aligned_masks
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.latency_table import TOLERANCE, LatencyCost, LatencyTable

logger = logging.getLogger(__name__)

_ROUNDS = 4
_CLOSE = 0.02  # of the speedup; closer than this a correction would follow the noise


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeedup:
    """A structure beside the dense model, timed in turn; low and high are the 95 % interval.

    Attributes:
        speedup: Dense over pruned; None where the machine was too busy to tell even that.
        low: Of the interval.
        high: Of the interval.
        p50_ms: Of the structure.
        dense_p50_ms: Of the dense model.
        busy: Why the milliseconds, or all of it, should not be believed; None when they can be.
    """

    speedup: float | None
    low: float
    high: float
    p50_ms: float
    dense_p50_ms: float
    busy: str | None = None


Stopwatch = Callable[[Arch], MeasuredSpeedup]


@dataclass(frozen=True, kw_only=True)
class SpeedupBudget:
    """What a run with a speedup as its budget is given."""

    table: LatencyTable
    stopwatch: Stopwatch


@dataclass(frozen=True)
class _Round:
    masks: Masks
    foretold: float
    measured: MeasuredSpeedup

    def missed(self, target: Target) -> float:
        """Distance from the target, a fraction of it; of what was foretold where that is all."""
        return abs((self.measured.speedup or self.foretold) / target.value - 1.0)


def measured_masks(
    gates: HardConcreteGates, target: Target, budget: SpeedupBudget, dense: Arch, *, align: int = 1
) -> tuple[Masks, dict[str, Any]]:
    """Project, measure, correct the table by what was measured, and again until it is close.

    What is told of the masks that came closest is measured once more: the smallest of several
    noisy misses looks better than it is.

    Args:
        gates: What training learnt.
        target: A speedup.
        budget: Table and stopwatch.
        dense: Of the model that is cut.
        align: What hidden size and FFN widths are multiples of.

    Returns:
        The masks that came closest, and what run.json says of their latency.

    Raises:
        BudgetError: No masks of these families have that speedup, as the table foretells it.
    """
    cost = LatencyCost(budget.table, dense.dense)
    rounds: list[_Round] = []
    for _ in range(_ROUNDS):
        try:
            masks = aligned_masks(gates, target.share, align, cost)
        except BudgetError:
            if not rounds:
                raise
            break  # corrected beyond what the masks can do: the best so far is the answer
        foretold = cost.total / cost.kept(masks)
        measured = budget.stopwatch(masks.arch(dense))
        rounds.append(_Round(masks, foretold, measured))
        logger.info("speedup foretold %.2f, measured %s", foretold, measured.speedup)
        if measured.speedup is None or rounds[-1].missed(target) <= _CLOSE:
            break
        cost = cost.corrected(foretold / measured.speedup)
    best = min(rounds, key=lambda each: each.missed(target))
    told = dataclasses.replace(best, measured=budget.stopwatch(best.masks.arch(dense)))
    return best.masks, _facts(told, rounds, target, budget.table)


def _facts(
    told: _Round, rounds: list[_Round], target: Target, table: LatencyTable
) -> dict[str, Any]:
    measured = dataclasses.asdict(told.measured)
    is_met = told.measured.speedup is not None and told.missed(target) <= TOLERANCE
    return {
        "for": table.point,
        "threads": table.threads,
        "speedup": measured["speedup"],
        "speedup_low": measured["low"],
        "speedup_high": measured["high"],
        "p50_ms": measured["p50_ms"],
        "dense_p50_ms": measured["dense_p50_ms"],
        "busy": measured["busy"],
        "is_met": is_met,
        "rounds": [
            {"foretold": each.foretold, "speedup": each.measured.speedup} for each in rounds
        ],
    }
