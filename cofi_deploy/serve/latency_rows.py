"""One operating point as rows of a result file: percentiles, throughput, speedup, and doubts.

In: what `latency.py` measured. Out: one row for each subject, sentences, samples for drawing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cofi_deploy.serve.intervals import percentiles, ratio_of_medians, too_wide
from cofi_deploy.serve.latency import TASK_LENGTHS, OperatingPoint, Samples
from cofi_deploy.serve.runner import Runner
from cofi_deploy.serve.timed_inputs import Batch, length_keys, real_tokens

Row = dict[str, Any]

# Sorted durations kept in result files, evenly spaced: enough to draw a distribution from.
_KEPT_SAMPLES = 200

_NO_SPEEDUP: Mapping[str, None] = {"speedup": None, "speedup_low": None, "speedup_high": None}


@dataclass(frozen=True)
class Timed:
    """One operating point, measured for all subjects; the first is the baseline.

    ``device_ms`` has a runner on a GPU's own times beside those of the host.
    """

    point: OperatingPoint
    runners: Mapping[str, Runner]
    batches: Mapping[str, list[Batch]]
    samples: Samples
    device_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """Label of the subject that the others are compared with."""
        return next(iter(self.runners))


def latency_rows(timed: Timed, *, seed: int) -> dict[str, Row]:
    """A row for each subject, by label.

    Absolute times and rates are None where the machine was too busy; ``noise`` then says why. The
    ratio is judged for itself: interleaved rounds bear it where they bear no milliseconds.
    """
    rows: dict[str, Row] = {}
    for label, runner in timed.runners.items():
        row = _shape_keys(timed.point, runner) | _absolute_keys(timed, label, seed)
        row["rounds"] = len(timed.samples.ms[label])
        row["warmup_runs"] = timed.samples.warmup_runs.get(label, 0)
        if label in timed.device_ms:
            row["device_p50_ms"] = statistics.median(timed.device_ms[label])
        if timed.samples.load is not None:
            row |= timed.samples.load.keys()
        doubts = [] if (busy := _busy(timed)) is None else [busy]
        if busy is not None:
            row |= dict.fromkeys(_absolute_names(row))
        if label != timed.baseline:
            speedup, doubt = _speedup(timed, label, seed)
            row |= speedup
            doubts += [] if doubt is None else [doubt]
        if doubts:
            row["noise"] = "; ".join(doubts)
        rows[label] = row
    return rows


def notes_of(timed: Timed, rows: Mapping[str, Row]) -> list[str]:
    """Doubts as sentences for the reader: one of the machine, one of each ratio."""
    busy = _busy(timed)
    if busy is not None:
        told = "no times are given"
        if any(row.get("speedup") is not None for row in rows.values()):
            told += ", ratios are: the models ran in turn"
        return [f"{timed.point}: {busy} ({told})"]
    return [
        f"{label} in {timed.point}: {row['noise']}" for label, row in rows.items() if "noise" in row
    ]


def kept_samples(timed: Timed, label: str) -> Row:
    """Durations as they were measured, busy or not, to draw a distribution from."""
    durations = timed.samples.ms[label]
    count = min(_KEPT_SAMPLES, len(durations))
    kept = np.quantile(durations, np.linspace(0, 1, count))
    return {
        "model": label,
        "runtime": timed.runners[label].runtime,
        "batch_size": timed.point.batch_size,
        "seq_len": timed.point.seq_len,
        "rounds": len(durations),
        "too_busy": _busy(timed) is not None,
        "sorted_ms": [round(float(value), 4) for value in kept],
    }


def _shape_keys(point: OperatingPoint, runner: Runner) -> Row:
    return {
        "runtime": runner.runtime,
        "precision": runner.precision,
        "device": runner.device,
        "threads": runner.threads,
        "batch_size": point.batch_size,
        "seq_len": point.seq_len,
    }


def _absolute_keys(timed: Timed, label: str, seed: int) -> Row:
    """Milliseconds and rates; what is fed at the task's lengths is described too."""
    mean_s = float(timed.samples.ms[label].mean()) / 1e3
    keys: Row = percentiles(timed.samples, label, seed=seed)
    keys["sequences_per_s"] = timed.point.batch_size / mean_s
    if timed.point.seq_len == TASK_LENGTHS:
        batches = timed.batches[label]
        keys["tokens_per_s"] = real_tokens(batches) / len(batches) / mean_s
        keys |= length_keys(batches)
    return keys


def _absolute_names(row: Row) -> list[str]:
    return [name for name in row if name.endswith(("_ms", "_per_s")) and name != "switches_per_s"]


def _busy(timed: Timed) -> str | None:
    load = timed.samples.load
    threads = max(runner.threads for runner in timed.runners.values())
    return None if load is None else load.too_busy(threads)


def _speedup(timed: Timed, label: str, seed: int) -> tuple[Row, str | None]:
    """The ratio with its interval, and why it is not told.

    A wide interval stays in the row, without the ratio; one that was measured on a machine that
    mostly did something else does not.
    """
    load = timed.samples.load
    if load is not None and load.is_too_busy_to_compare():
        return dict(_NO_SPEEDUP), None
    ratio = ratio_of_medians(timed.samples, timed.baseline, label, seed=seed)
    doubt = too_wide(ratio)
    value = ratio.value if doubt is None else None
    return {"speedup": value, "speedup_low": ratio.low, "speedup_high": ratio.high}, doubt
