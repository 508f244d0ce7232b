"""Percentiles and ratios of durations, each with its 95 % bootstrap interval.

In: `Samples` of `latency.py`. Out: numbers, and the sentence that says why a ratio is not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cofi_deploy.serve.latency import Durations, Samples

PERCENTILES = (50, 90, 99)

# An interval that is wider than this factor from end to end tells no ratio.
WIDTH_LIMIT = 1.5

_RESAMPLES = 2000
_PORTION = 100
_NORMAL = 1.959964  # 97.5 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


def percentiles(samples: Samples, name: str, *, seed: int) -> dict[str, float | None]:
    """``p50_ms``, ``p90_ms`` and ``p99_ms`` with ``_low_ms`` and ``_high_ms`` of each.

    ``p90_high_ms`` and ``p99_high_ms`` are None where so few runs were timed (below 36 and 368)
    that even the slowest of them may lie below the true percentile.
    """
    durations = samples.ms[name]
    drawn = np.concatenate(
        [
            np.percentile(durations[places], PERCENTILES, axis=1)
            for places in _resamples(len(durations), samples.variants, seed)
        ],
        axis=1,
    )  # (percentiles, resamples)
    values = np.percentile(durations, PERCENTILES)
    keys: dict[str, float | None] = {}
    for percentile, value, resampled in zip(PERCENTILES, values, drawn, strict=True):
        got = _interval(float(value), resampled, len(durations), samples.variants)
        bounded = len(durations) >= runs_for_upper_bound(percentile)
        keys[f"p{percentile}_ms"] = got.value
        keys[f"p{percentile}_low_ms"] = got.low
        keys[f"p{percentile}_high_ms"] = got.high if bounded else None
    return keys


def runs_for_upper_bound(percentile: float) -> int:
    """Runs from which on the slowest bounds a percentile from above, with 97.5 % confidence.

    Source:
        All of n independent runs stay below the percentile q with probability q^n.
    """
    return int(np.ceil(np.log(0.025) / np.log(percentile / 100)))


def ratio_of_medians(samples: Samples, numerator: str, denominator: str, *, seed: int) -> Interval:
    """How many times longer one subject takes than another, with a bootstrap interval.

    Rounds are drawn as pairs, because what disturbs a round disturbs both subjects, and in blocks
    of the cube root of their number, because disturbances last longer than one round. Where
    several inputs are timed in turn, what is drawn is a pass over all of them: texts are not
    random from round to round.

    Source:
        Circular block bootstrap: Politis and Romano 1992; percentile interval, expanded for a
        small number of blocks after Hesterberg 2015, "What Teachers Should Know About the
        Bootstrap", section 4.
    """
    above, below = samples.ms[numerator], samples.ms[denominator]
    ratios = np.concatenate(
        [
            np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1)
            for drawn in _resamples(len(above), samples.variants, seed)
        ]
    )
    value = float(np.median(above) / np.median(below))
    return _interval(value, ratios, len(above), samples.variants)


def too_wide(interval: Interval) -> str | None:
    """Why a ratio is not told, in a sentence with its interval; None when it is narrow enough."""
    if interval.high <= WIDTH_LIMIT * interval.low:
        return None
    return (
        f"the 95 % interval of the speedup is {interval.low:.2f} to {interval.high:.2f}, allowed: "
        f"a factor of {WIDTH_LIMIT:g} from end to end; measure longer with --max-seconds"
    )


def _interval(value: float, resampled: Durations, rounds: int, variants: int) -> Interval:
    """The middle 95 % of resampled values, expanded on a logarithmic scale."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    units, block = _units(rounds, variants)
    blocks = max(2, units // block)
    # Student's t for the blocks, and the variance that a resample of few blocks lacks.
    factor = _student(blocks - 1) / _NORMAL * (blocks / (blocks - 1)) ** 0.5
    return Interval(
        value=value,
        low=value * float(low / value) ** factor,
        high=value * float(high / value) ** factor,
    )


def _student(freedom: int) -> float:
    """97.5 % of Student's t; scipy is not in every place where `make bench-gpu` runs.

    Source:
        Abramowitz and Stegun 1964, 26.7.5: within 1 % from 3 degrees of freedom on.
    """
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (at + 1) for at, term in enumerate(terms)))


def _units(rounds: int, variants: int) -> tuple[int, int]:
    """What is drawn: passes over all inputs, and how many of them make a block."""
    units = rounds // variants
    return units, max(1, round(units ** (1 / 3)))


def _resamples(rounds: int, variants: int, seed: int) -> Iterator[npt.NDArray[np.intp]]:
    """Places of the rounds drawn, (resamples, rounds), in portions that fit a cache."""
    rng = np.random.default_rng(seed)
    units, block = _units(rounds, variants)
    blocks = -(-units // block)
    for _ in range(_RESAMPLES // _PORTION):
        starts = rng.integers(0, units, (_PORTION, blocks))
        drawn = starts[:, :, None] + np.arange(block)  # (portion, blocks, block)
        passes = drawn.reshape(_PORTION, -1)[:, :units] % units  # (portion, units)
        places = passes[:, :, None] * variants + np.arange(variants)
        yield places.reshape(_PORTION, -1)  # (portion, rounds)
