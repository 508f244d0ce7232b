"""Latency of any number of models, interleaved, in any number of runtimes and shapes.

In: subjects and operating points. Out: one row per subject, runtime and point, and the raw
samples. The first subject is the baseline of every speedup. Next file: `verify.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cofi_deploy.serve.latency import (
    TASK_LENGTHS,
    OperatingPoint,
    Samples,
    Schedule,
    noise,
    percentiles,
    ratio_of_medians,
    time_interleaved,
)
from cofi_deploy.serve.probe import probe
from cofi_deploy.serve.runner import Runner, availability, open_runner
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.timed_inputs import Batch, batches_for
from cofi_deploy.tasks import EncodedSplit

logger = logging.getLogger(__name__)

# By label and runtime: the same texts in the ids of an artifact whose vocabulary was cut.
OwnEncodings = Mapping[tuple[str, str], EncodedSplit]

# Sorted durations kept in result files, evenly spaced: enough to draw a distribution from.
_KEPT_SAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured, and how long.

    Attributes:
        runtimes: In this order; one that cannot be used here is skipped with its reason.
        points: A point without a runtime is measured in all of them.
        threads: Of one inference; None means the physical cores.
        precision: None means that of each artifact.
        schedule: Rounds, seconds and seed of each operating point.
        fresh_process: Also measure load, first inference and peak memory in a new process.
    """

    runtimes: tuple[str, ...]
    points: tuple[OperatingPoint, ...]
    threads: int | None = None
    precision: str | None = None
    schedule: Schedule = field(default_factory=Schedule)
    fresh_process: bool = True


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Rows, samples for drawing, what was skipped and why, and sentences for the reader."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    notes: list[str]


def bench(
    subjects: Sequence[Subject],
    settings: BenchSettings,
    encoded: EncodedSplit | None = None,
    own_encodings: OwnEncodings | None = None,
) -> BenchResult:
    """Time all subjects at every operating point.

    Args:
        subjects: The first is the baseline.
        settings: Runtimes, points and schedule.
        encoded: Where token ids are taken from; without it they are random, and points with the
            task's lengths are skipped.
        own_encodings: The same texts for artifacts whose vocabulary was cut.

    Raises:
        UsageError: A runtime is unknown.
        RunnerError: A runtime failed on an artifact.
    """
    result = BenchResult(rows=[], samples=[], skipped=[], notes=[])
    usable, skipped = usable_runtimes(subjects, settings.runtimes)
    result.skipped.extend(skipped)
    shared = {subject.label: subject.row() for subject in subjects}
    for runtime in usable:
        with contextlib.ExitStack() as stack:
            runners = {
                subject.label: stack.enter_context(_open(subject, runtime, settings))
                for subject in subjects
            }
            for point in _points_of(runtime, settings, encoded, result.notes):
                logger.info("timing %s", point)
                batches = {
                    label: batches_for(
                        point,
                        runner.limits,
                        (own_encodings or {}).get((label, runtime), encoded),
                        seed=settings.schedule.seed,
                    )
                    for label, runner in runners.items()
                }
                samples = _time(runners, batches, settings)
                timed = _Timed(point=point, runners=runners, samples=samples)
                _add_rows(result, timed, settings, shared)
        if settings.fresh_process:
            _add_probes(result, subjects, runtime, settings)
    return result


def usable_runtimes(
    subjects: Sequence[Subject], runtimes: Sequence[str]
) -> tuple[list[str], list[dict[str, str]]]:
    """Runtimes that work here and have an artifact of every subject; the others with a reason.

    Raises:
        UsageError: A runtime is unknown.
    """
    usable: list[str] = []
    skipped: list[dict[str, str]] = []
    for runtime in dict.fromkeys(runtimes):
        reason = availability(runtime)
        lacking = [subject.label for subject in subjects if runtime not in subject.artifacts]
        if reason is None and lacking:
            reason = f"no artifact of {', '.join(lacking)} for it; run: cofi-deploy export"
        broken = [each.unusable[runtime] for each in subjects if runtime in each.unusable]
        reason = reason or next(iter(broken), None)
        if reason is None:
            usable.append(runtime)
        else:
            skipped.append({"runtime": runtime, "reason": reason})
    return usable, skipped


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """One operating point, measured for all subjects."""

    point: OperatingPoint
    runners: Mapping[str, Runner]
    samples: Samples


def _open(subject: Subject, runtime: str, settings: BenchSettings) -> Runner:
    return open_runner(
        subject.artifacts[runtime],
        runtime,
        threads=settings.threads,
        precision=settings.precision,
    )


def _points_of(
    runtime: str, settings: BenchSettings, encoded: EncodedSplit | None, notes: list[str]
) -> list[OperatingPoint]:
    wanted = [point for point in settings.points if point.runtime in {"", runtime}]
    points = [replace(point, runtime=runtime) for point in wanted]
    if encoded is not None:
        return points
    notes.extend(
        f"{point} was skipped: there are no texts to take lengths from; name a task"
        for point in points
        if point.seq_len == TASK_LENGTHS
    )
    return [point for point in points if point.seq_len != TASK_LENGTHS]


def _time(
    runners: Mapping[str, Runner], batches: Mapping[str, list[Batch]], settings: BenchSettings
) -> Samples:
    """Time all runners in turn; the batches of a round hold the same texts for each of them."""
    turn = _Turn()

    def subject(label: str) -> Callable[[], None]:
        runner = runners[label]
        calls = [
            runner.bind({name: batch[name] for name in runner.input_names})
            for batch in batches[label]
        ]

        def call() -> None:
            calls[turn.number % len(calls)]()

        return call

    return time_interleaved(
        {label: subject(label) for label in runners},
        settings.schedule,
        variants=min(map(len, batches.values())),
        before_round=turn.begin,
    )


class _Turn:
    """The number of the round, so that all subjects of a round read the same batch."""

    number = 0

    def begin(self, number: int) -> None:
        self.number = number


def _add_rows(
    result: BenchResult,
    timed: _Timed,
    settings: BenchSettings,
    shared: Mapping[str, Mapping[str, Any]],
) -> None:
    baseline = next(iter(timed.runners))
    for label, runner in timed.runners.items():
        durations = timed.samples.ms[label]
        disturbed = noise(timed.samples, label)
        row = {
            **shared[label],
            **_shape_keys(timed.point, runner),
            **percentiles(durations),
            "sequences_per_s": timed.point.batch_size * 1e3 / float(durations.mean()),
        }
        if disturbed:
            row["noise"] = disturbed
            result.notes.append(f"{label} in {timed.point}: {disturbed}")
        if label != baseline:
            believable = not disturbed and noise(timed.samples, baseline) is None
            row |= _speedup(timed.samples, baseline, label, settings, believable=believable)
        result.rows.append(row)
        result.samples.append(_kept_samples(timed, label, runner))


def _speedup(
    samples: Samples, baseline: str, label: str, settings: BenchSettings, *, believable: bool
) -> dict[str, float | None]:
    """Null where one of the two is too noisy: a number would be believed."""
    if not believable:
        return {"speedup": None, "speedup_low": None, "speedup_high": None}
    ratio = ratio_of_medians(samples, baseline, label, seed=settings.schedule.seed)
    return {"speedup": ratio.value, "speedup_low": ratio.low, "speedup_high": ratio.high}


def _shape_keys(point: OperatingPoint, runner: Runner) -> dict[str, Any]:
    return {
        "runtime": runner.runtime,
        "precision": runner.precision,
        "device": runner.device,
        "threads": runner.threads,
        "batch_size": point.batch_size,
        "seq_len": point.seq_len,
    }


def _kept_samples(timed: _Timed, label: str, runner: Runner) -> dict[str, Any]:
    durations = timed.samples.ms[label]
    count = min(_KEPT_SAMPLES, len(durations))
    kept = np.quantile(durations, np.linspace(0, 1, count))
    return {
        "model": label,
        "runtime": runner.runtime,
        "batch_size": timed.point.batch_size,
        "seq_len": timed.point.seq_len,
        "rounds": len(durations),
        "sorted_ms": [round(float(value), 4) for value in kept],
    }


def _add_probes(
    result: BenchResult, subjects: Sequence[Subject], runtime: str, settings: BenchSettings
) -> None:
    """Extend the runtime's rows by what a fresh process shows; task lengths have no one shape."""
    artifacts = {subject.label: subject.artifacts[runtime] for subject in subjects}
    for row in result.rows:
        if row["runtime"] != runtime or row["seq_len"] == TASK_LENGTHS:
            continue
        point = OperatingPoint(
            batch_size=row["batch_size"],
            seq_len=row["seq_len"],
            runtime=runtime,
            precision=settings.precision,
            threads=row["threads"],
        )
        row.update(probe(artifacts[row["model"]], point))
