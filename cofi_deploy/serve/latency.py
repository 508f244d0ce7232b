"""Time several subjects in turn.

In: callables. Out: one duration per subject and round, and what else went on meanwhile. Knows no
runtime; `bench.py` builds the callables. Next file: `intervals.py`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.conditions import Counters, Load, load_between, read_counters

Durations = npt.NDArray[np.float64]  # milliseconds, one per round

TASK_LENGTHS = "task"
MAX_ROUNDS = 2000

# Warm-up ends when two successive windows of runs agree.
_WARMUP_WINDOW = 5
_WARMUP_TOLERANCE = 0.1
_WARMUP_MAX_RUNS = 100
_WARMUP_SHARE = 0.25  # of max_seconds, for each subject

# Each of several inputs is timed this often at the least: noise shows only in repetition.
_MIN_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Where a latency is measured.

    ``seq_len`` is a number of tokens, or ``"task"``: batches of the task's own texts, each padded
    to its longest. ``precision`` None means that of the artifact.
    """

    batch_size: int
    seq_len: int | Literal["task"]
    runtime: str = ""
    precision: str | None = None
    threads: int | None = None

    def __str__(self) -> str:
        shape = f"{self.batch_size}x{self.seq_len}"
        return f"{self.runtime}@{shape}" if self.runtime else shape

    @classmethod
    def parse(cls, text: str) -> OperatingPoint:
        """Read ``1x128``, ``32xtask`` or ``onnxruntime-cpu@1x128``.

        Raises:
            UsageError: Anything else.
        """
        runtime, _, shape = text.rpartition("@")
        batch, _, length = shape.partition("x")
        is_length = length == TASK_LENGTHS or (length.isdecimal() and int(length) > 0)
        if not (batch.isdecimal() and int(batch) > 0 and is_length):
            raise UsageError(
                f"operating point is {text!r}, allowed: BATCHxLENGTH such as 1x128, or 1xtask for "
                "the lengths of the task's texts; with a runtime: onnxruntime-cpu@1x128"
            )
        seq_len: int | Literal["task"] = "task" if length == TASK_LENGTHS else int(length)
        return cls(batch_size=int(batch), seq_len=seq_len, runtime=runtime)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What `time_interleaved` measured.

    ``ms[name][i]`` is the duration of the subject's run in round ``i``; ``variants`` is the
    number of different inputs, taken in turn, so that rounds ``i`` and ``i + variants`` compare.
    ``load`` is what this process and others used of the machine meanwhile, warm-up excluded.
    """

    ms: Mapping[str, Durations]
    variants: int = 1
    warmup_runs: Mapping[str, int] = field(default_factory=dict)
    load: Load | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to measure, and with which source of randomness.

    Args:
        min_repeats: Rounds at the least, whatever they take.
        max_seconds: No round starts later than this after the first, once there are
            ``min_repeats``.
        seed: Of the order within rounds and of the bootstrap.
        settle_ms: Run each subject untimed before each timed run, once and until this time is
            over: for subjects of several runtimes, whose threads spin for a while after their work
            and keep the next one's from the cores. A server has one runtime. 0: not at all.
    """

    min_repeats: int = 30
    max_seconds: float = 10.0
    seed: int = 0
    settle_ms: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a schedule without a median."""
        if self.min_repeats < 2 or self.max_seconds < 0:
            raise UsageError(
                f"got min_repeats {self.min_repeats} and max_seconds {self.max_seconds}, "
                "allowed: 2 and up, 0 and up"
            )


def time_interleaved(
    subjects: Mapping[str, Callable[[], None]],
    schedule: Schedule,
    *,
    variants: int = 1,
    before_round: Callable[[int], None] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    counters: Callable[[], Counters] = read_counters,
) -> Samples:
    """Run every subject once a round, in random order, so that drift hits all of them alike.

    Garbage collection is off while a subject runs.

    Args:
        subjects: What is timed, by name.
        schedule: How many rounds.
        variants: Number of inputs that ``before_round`` switches between; rounds come in
            multiples of it, three at the least.
        before_round: Called, untimed, with the number of the coming round.
        clock: Nanoseconds, increasing.
        counters: Read before the first round and after the last.

    Raises:
        UsageError: No subjects.
    """
    if not subjects:
        raise UsageError("nothing to time: got 0 subjects, allowed: 1 and up")
    prepare = before_round or _do_nothing
    rng = np.random.default_rng(schedule.seed)
    names = list(subjects)
    prepare(0)
    warmup = {name: _warm_up(subjects[name], schedule, clock) for name in names}
    durations: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        before = counters()
        start = clock()
        done = 0
        while _goes_on(done, variants, (clock() - start) / 1e9, schedule):
            prepare(done)
            for index in rng.permutation(len(names)):
                subject = subjects[names[index]]
                _settle(subject, schedule.settle_ms, clock)
                durations[names[index]].append(_time_ms(subject, clock))
            done += 1
        load = load_between(before, counters())
    ms = {name: np.asarray(values) for name, values in durations.items()}
    return Samples(ms=ms, variants=variants, warmup_runs=warmup, load=load)


def _goes_on(done: int, variants: int, elapsed_s: float, schedule: Schedule) -> bool:
    passes = _MIN_PASSES if variants > 1 else 1
    if done < max(schedule.min_repeats, passes * variants) or done % variants:
        return True
    return done < MAX_ROUNDS and elapsed_s < schedule.max_seconds


def _settle(subject: Callable[[], None], least_ms: float, clock: Callable[[], int]) -> None:
    start = clock()
    while (clock() - start) / 1e6 < least_ms:
        subject()


def _warm_up(subject: Callable[[], None], schedule: Schedule, clock: Callable[[], int]) -> int:
    """Run until two windows of runs have the same median; returns the number of runs."""
    runs: list[float] = []
    limit_ms = schedule.max_seconds * _WARMUP_SHARE * 1e3
    while len(runs) < _WARMUP_MAX_RUNS:
        runs.append(_time_ms(subject, clock))
        if len(runs) >= 2 and sum(runs) > limit_ms:
            break
        if len(runs) >= 2 * _WARMUP_WINDOW and _is_stable(runs):
            break
    return len(runs)


def _is_stable(runs: list[float]) -> bool:
    last = statistics.median(runs[-_WARMUP_WINDOW:])
    before = statistics.median(runs[-2 * _WARMUP_WINDOW : -_WARMUP_WINDOW])
    return abs(last - before) <= _WARMUP_TOLERANCE * before


def _time_ms(subject: Callable[[], None], clock: Callable[[], int]) -> float:
    start = clock()
    subject()
    return (clock() - start) / 1e6


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _do_nothing(_: int) -> None:
    """No preparation between rounds."""
