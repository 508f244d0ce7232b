"""Which of several timed candidates is kept, and the rows that say why.

In: durations measured in turn. Out: a name, and numbers for `export.json`. Rule: of all that are
not surely slower than the fastest by more than 2 %, the simplest; the order of the candidates is
from the simplest on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cofi_deploy.serve.intervals import ratio_of_medians
from cofi_deploy.serve.latency import Samples

# A gain below this is not worth a setting that somebody has to know of.
TIE = 1.02
_SEED = 0


def choose(samples: Samples, allowed: Sequence[str]) -> str:
    """The simplest of the fastest.

    Args:
        samples: Of one round, in which all were timed in turn.
        allowed: Names that may be kept, simplest first.
    """
    fastest = min(allowed, key=lambda name: float(np.median(samples.ms[name])))
    for name in allowed:
        if name == fastest or not is_slower(samples, name, fastest):
            return name
    return fastest


def is_slower(samples: Samples, name: str, than: str) -> bool:
    """Whether one takes longer than another by more than a tie, beyond the 95 % interval."""
    return ratio_of_medians(samples, name, than, seed=_SEED).low > TIE


def timed_row(samples: Samples, name: str, default: str) -> dict[str, Any]:
    """``p50_ms``, and how many times faster than the default with its 95 % interval."""
    row: dict[str, Any] = {
        "p50_ms": float(np.median(samples.ms[name])),
        "rounds": len(samples.ms[name]),
    }
    ratio = ratio_of_medians(samples, default, name, seed=_SEED)
    return row | {
        "ratio_to_default": ratio.value,
        "ratio_to_default_low": ratio.low,
        "ratio_to_default_high": ratio.high,
    }


def fastest_first(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By the ratio to the default, since rounds may differ in their milliseconds; untimed last."""
    return [dict(row) for row in sorted(rows, key=lambda row: -row.get("ratio_to_default", 0.0))]
