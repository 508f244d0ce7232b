"""Throughput at saturation: as many concurrent callers, and as large batches, as still help.

In: subjects and an operating point. Out: sequences per second of each at its own best setting, and
their ratio with its interval. Callers are closed loops: each asks again as soon as it is answered.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cofi_deploy.serve.conditions import allowed_cpus, load_between, read_counters
from cofi_deploy.serve.inputs import InputLimits
from cofi_deploy.serve.intervals import ratio_of_medians, too_wide
from cofi_deploy.serve.latency import OperatingPoint, Samples, Schedule
from cofi_deploy.serve.runner import Runner, open_runner
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.timed_inputs import Batch

# What a subject is fed at a point, by its label.
InputsOf = Callable[[str, OperatingPoint, InputLimits], list[Batch]]

# More clients or a larger batch must gain this much to be kept.
_MIN_GAIN = 1.05
_MAX_BATCH = 64
_CLIENTS_PER_CORE = 4

# A window's share of the seconds of an operating point, and how many windows are measured.
_WINDOW_SHARE = 0.03
_WINDOWS_OF_STEP = 2
_WINDOWS_OF_RESULT = 12

_SPEEDUP_KEYS = ("saturated_speedup", "saturated_speedup_low", "saturated_speedup_high")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Concurrent clients, and sequences in each of their requests."""

    clients: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """Row keys by label, and sentences for the reader."""

    keys: Mapping[str, Mapping[str, Any]]
    notes: list[str]


def saturate(
    subjects: Sequence[Subject],
    point: OperatingPoint,
    inputs_of: InputsOf,
    schedule: Schedule,
    max_clients: int | None = None,
) -> Saturated:
    """Find each subject's best setting, then measure all of them in turn, in short windows.

    Keys: ``saturated_sequences_per_s``, ``clients``, ``saturated_batch_size`` and, for all but the
    first subject, ``saturated_speedup`` with ``_low`` and ``_high``.

    Args:
        subjects: The first is the baseline.
        point: Runtime, precision, threads, length, and the batch size to begin with.
        inputs_of: Inputs of a subject at another batch size.
        schedule: A window lasts 3 % of its seconds.
        max_clients: None means four for each processor that this process may use.

    Raises:
        RunnerError: A runtime failed on an artifact.
    """
    window_s = _WINDOW_SHARE * schedule.max_seconds
    most = max_clients or _CLIENTS_PER_CORE * len(allowed_cpus())
    start = Setting(clients=1, batch_size=point.batch_size)

    def rate(subject: Subject, setting: Setting) -> float:
        with _clients(subject, point, inputs_of, setting) as clients:
            return float(np.median([clients.rate(window_s) for _ in range(_WINDOWS_OF_STEP)]))

    best = {subject.label: climb(start, partial(rate, subject), most) for subject in subjects}
    with contextlib.ExitStack() as stack:
        clients = {
            subject.label: stack.enter_context(
                _clients(subject, point, inputs_of, best[subject.label])
            )
            for subject in subjects
        }
        return _compare(clients, point, window_s, schedule.seed)


def climb(start: Setting, rate: Callable[[Setting], float], max_clients: int) -> Setting:
    """Double the clients while each step gains 5 %, then the batch; the best setting seen.

    Args:
        start: Where to begin.
        rate: Sequences per second at a setting.
        max_clients: At the most; batches grow to 64.
    """
    best, best_rate = start, rate(start)
    for grow in (_twice_the_clients, _twice_the_batch):
        while (larger := grow(best)).clients <= max_clients and larger.batch_size <= max(
            _MAX_BATCH, start.batch_size
        ):
            found = rate(larger)
            if found < _MIN_GAIN * best_rate:
                break
            best, best_rate = larger, found
    return best


class Clients:
    """Threads that ask one session in closed loops."""

    def __init__(self, runner: Runner, batches: Sequence[Batch], setting: Setting) -> None:
        """Take an open runner; its inputs are run once."""
        self.setting = setting
        self.threads = runner.threads
        self._calls = [
            runner.bind({name: batch[name] for name in runner.input_names}) for batch in batches
        ]
        self._pool = ThreadPoolExecutor(setting.clients)

    def rate(self, seconds: float) -> float:
        """Sequences per second over a window, each client's last request completed.

        Rates of the clients are added, each over its own time: at the end of a window some wait
        for their last answer while others have stopped.
        """
        barrier = threading.Barrier(self.setting.clients)
        rates = [
            self._pool.submit(self._loop, first, seconds, barrier)
            for first in range(self.setting.clients)
        ]
        return sum(rate.result() for rate in rates)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _loop(self, first: int, seconds: float, barrier: threading.Barrier) -> float:
        """Requests of one client, beginning with another batch than the others do."""
        barrier.wait()
        start = time.perf_counter()
        done = 0
        while True:
            self._calls[(first + done) % len(self._calls)]()
            done += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return done * self.setting.batch_size / elapsed


@contextlib.contextmanager
def _clients(
    subject: Subject, point: OperatingPoint, inputs_of: InputsOf, setting: Setting
) -> Iterator[Clients]:
    """Clients of a fresh session, after one request of each."""
    with open_runner(
        subject.artifacts[point.runtime],
        point.runtime,
        threads=point.threads,
        precision=point.precision,
        streams=setting.clients,
    ) as runner:
        grown = replace(point, batch_size=setting.batch_size)
        clients = Clients(runner, inputs_of(subject.label, grown, runner.limits), setting)
        try:
            clients.rate(0.0)
            yield clients
        finally:
            clients.close()


def _compare(
    clients: Mapping[str, Clients], point: OperatingPoint, window_s: float, seed: int
) -> Saturated:
    rng = np.random.default_rng(seed)
    rates: dict[str, list[float]] = {label: [] for label in clients}
    before = read_counters()
    for _ in range(_WINDOWS_OF_RESULT):
        for label in rng.permutation(list(clients)):
            rates[label].append(clients[label].rate(window_s))
    load = load_between(before, read_counters())
    busy = load.too_busy(max(one.threads for one in clients.values()))
    samples = Samples(ms={label: 1e3 / np.asarray(values) for label, values in rates.items()})
    baseline = next(iter(clients))
    keys: dict[str, dict[str, Any]] = {}
    notes = [] if busy is None else [f"saturated {point}: {busy}"]
    for label, one in clients.items():
        keys[label] = {
            "saturated_sequences_per_s": None if busy else float(np.median(rates[label])),
            "clients": one.setting.clients,
            "saturated_batch_size": one.setting.batch_size,
        }
        if label == baseline:
            continue
        if load.is_too_busy_to_compare():
            keys[label] |= dict.fromkeys(_SPEEDUP_KEYS)
            continue
        ratio = ratio_of_medians(samples, baseline, label, seed=seed)
        doubt = too_wide(ratio)
        value = ratio.value if doubt is None else None
        keys[label] |= dict(zip(_SPEEDUP_KEYS, (value, ratio.low, ratio.high), strict=True))
        notes += [] if doubt is None else [f"{label} in saturated {point}: {doubt}"]
    return Saturated(keys=keys, notes=notes)


def _twice_the_clients(setting: Setting) -> Setting:
    return replace(setting, clients=2 * setting.clients)


def _twice_the_batch(setting: Setting) -> Setting:
    return replace(setting, batch_size=2 * setting.batch_size)
