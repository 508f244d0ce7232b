"""Latency of any number of models, interleaved, in any number of runtimes and shapes.

In: subjects and operating points. Out: one row per subject, runtime and point, and the raw
samples. The first subject is the baseline of every speedup. Next files: `latency_rows.py`,
`saturation.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cofi_deploy.serve.conditions import Load, load_while_idle
from cofi_deploy.serve.inputs import InputLimits
from cofi_deploy.serve.latency import (
    TASK_LENGTHS,
    OperatingPoint,
    Samples,
    Schedule,
    time_interleaved,
)
from cofi_deploy.serve.latency_rows import Timed, kept_samples, latency_rows, notes_of
from cofi_deploy.serve.machine_state import Conditions, conditions, gpu_state
from cofi_deploy.serve.probe import probe
from cofi_deploy.serve.runner import Runner, availability, open_runner
from cofi_deploy.serve.saturation import InputsOf, saturate
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.timed_inputs import Batch, batches_for, longest
from cofi_deploy.tasks import EncodedSplit

logger = logging.getLogger(__name__)

# By label and runtime: the same texts in the ids of an artifact whose vocabulary was cut.
OwnEncodings = Mapping[tuple[str, str], EncodedSplit]

# What others do is looked at for this share of the time of an operating point, a second at most.
_IDLE_SHARE = 0.1


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
        saturate: Also measure the throughput of as many concurrent callers as help, once for
            each runtime and length.
    """

    runtimes: tuple[str, ...]
    points: tuple[OperatingPoint, ...]
    threads: int | None = None
    precision: str | None = None
    schedule: Schedule = field(default_factory=Schedule)
    fresh_process: bool = True
    saturate: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Rows, samples for drawing, what was skipped and why, and sentences for the reader.

    ``conditions`` is what the machine was like: see `machine_state.conditions`.
    """

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    notes: list[str]
    conditions: Conditions = field(default_factory=dict)

    def document_keys(self) -> dict[str, Any]:
        """What a result file holds beside its rows."""
        return {
            "conditions": self.conditions,
            "skipped": self.skipped,
            "notes": self.notes,
            "latency_samples": self.samples,
        }


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
    idle, gpu_before = _before(settings.schedule), gpu_state()
    shared = {subject.label: subject.row() for subject in subjects}
    inputs_of = partial(_inputs_of, encoded, own_encodings or {}, settings.schedule.seed)
    for runtime in usable:
        with contextlib.ExitStack() as stack:
            runners = {
                subject.label: stack.enter_context(_open(subject, runtime, settings))
                for subject in subjects
            }
            batches = {
                point: {
                    label: inputs_of(label, point, runner.limits)
                    for label, runner in runners.items()
                }
                for point in _points_of(runtime, settings, encoded, result.notes)
            }
            for point, inputs in batches.items():
                logger.info("timing %s", point)
                samples, device_ms = _time(runners, inputs, settings)
                timed = Timed(point, runners, inputs, samples, device_ms)
                _add_rows(result, timed, settings, shared)
        rows = [row for row in result.rows if row["runtime"] == runtime]
        if settings.saturate:
            result.notes.extend(_add_saturation(rows, subjects, inputs_of, settings))
        if settings.fresh_process:
            _add_probes(rows, subjects, batches, settings)
    return replace(result, conditions=conditions(idle=idle, gpu_before=gpu_before))


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


def _before(schedule: Schedule) -> Load | None:
    """What others do before we begin; a schedule without time has none for this either."""
    seconds = min(1.0, _IDLE_SHARE * schedule.max_seconds)
    return load_while_idle(seconds) if seconds > 0 else None


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


def _inputs_of(
    encoded: EncodedSplit | None,
    own: OwnEncodings,
    seed: int,
    label: str,
    point: OperatingPoint,
    limits: InputLimits,
) -> list[Batch]:
    """The same texts for all subjects, in the ids that each artifact knows."""
    return batches_for(point, limits, own.get((label, point.runtime), encoded), seed=seed)


def _time(
    runners: Mapping[str, Runner], batches: Mapping[str, list[Batch]], settings: BenchSettings
) -> tuple[Samples, dict[str, list[float]]]:
    """Time all runners in turn; the batches of a round hold the same texts for each of them.

    Returns:
        The host's times, and of every runner on a GPU the device's own, warm-up excluded.
    """
    turn = _Turn()
    device_ms: dict[str, list[float]] = {label: [] for label in runners}

    def subject(label: str) -> Callable[[], None]:
        runner = runners[label]
        calls = [
            runner.bind({name: batch[name] for name in runner.input_names})
            for batch in batches[label]
        ]

        def call() -> None:
            calls[turn.number % len(calls)]()
            spent = runner.device_ms()
            if spent is not None:
                device_ms[label].append(spent)

        return call

    samples = time_interleaved(
        {label: subject(label) for label in runners},
        settings.schedule,
        variants=min(map(len, batches.values())),
        before_round=turn.begin,
    )
    # Warm-up comes first, so what was timed is at the end.
    return samples, {
        label: spent[-len(samples.ms[label]) :] for label, spent in device_ms.items() if spent
    }


class _Turn:
    """The number of the round, so that all subjects of a round read the same batch."""

    number = 0

    def begin(self, number: int) -> None:
        self.number = number


def _add_rows(
    result: BenchResult,
    timed: Timed,
    settings: BenchSettings,
    shared: Mapping[str, Mapping[str, Any]],
) -> None:
    rows = latency_rows(timed, seed=settings.schedule.seed)
    for label, row in rows.items():
        result.rows.append({**shared[label], **row})
        result.samples.append(kept_samples(timed, label))
    result.notes.extend(notes_of(timed, rows))


def _add_saturation(
    rows: Sequence[dict[str, Any]],
    subjects: Sequence[Subject],
    inputs_of: InputsOf,
    settings: BenchSettings,
) -> list[str]:
    """Extend the first rows of each length by the throughput of many clients; returns notes."""
    notes: list[str] = []
    for seq_len in dict.fromkeys(row["seq_len"] for row in rows):
        first = next(row for row in rows if row["seq_len"] == seq_len)
        point = OperatingPoint(
            batch_size=first["batch_size"],
            seq_len=seq_len,
            runtime=first["runtime"],
            precision=settings.precision,
            threads=settings.threads,
        )
        logger.info("saturating %s", point)
        found = saturate(subjects, point, inputs_of, settings.schedule)
        for row in _rows_at(rows, point):
            row.update(found.keys[row["model"]])
        notes += found.notes
    return notes


def _add_probes(
    rows: Sequence[dict[str, Any]],
    subjects: Sequence[Subject],
    batches: Mapping[OperatingPoint, Mapping[str, list[Batch]]],
    settings: BenchSettings,
) -> None:
    """Extend rows by what a fresh process shows; at task lengths, of the longest batch."""
    artifacts = {subject.label: subject.artifacts for subject in subjects}
    for point, inputs in batches.items():
        for row in _rows_at(rows, point):
            probed = replace(
                point,
                seq_len=longest(inputs[row["model"]]),
                precision=settings.precision,
                threads=row["threads"],
            )
            row.update(probe(artifacts[row["model"]][point.runtime], probed))


def _rows_at(rows: Sequence[dict[str, Any]], point: OperatingPoint) -> list[dict[str, Any]]:
    shape = (point.batch_size, point.seq_len)
    return [row for row in rows if (row["batch_size"], row["seq_len"]) == shape]
