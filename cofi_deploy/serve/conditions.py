"""What a measurement was made under: processors, quota, clock, GPU, and the work of others.

In: counters that the kernel keeps, read before and after a measurement. Out: a dictionary of plain
strings and numbers for result files, and `Load`, which says whether the machine was too busy.
Knows no runtime. Next file: `machine_state.py`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Share of the allowed processors that other work may take while we measure. On a quiet machine it
# is below 0.02 (kernel, timers, a monitor); ten percent already shows in a p99.
BUSY_LIMIT = 0.10
# From here on not even the ratio is told. Below, its own interval judges it: one busy neighbour on
# two cores disturbs both models alike, and only widens the interval.
BUSY_LIMIT_OF_RATIO = 0.75
# Involuntary context switches each second and thread. The scheduler's slice is some milliseconds,
# so that a thread with a rival loses its processor a hundred times a second or more.
SWITCH_LIMIT = 50.0

# The kernel counts in ticks of 10 ms: what it says of a shorter time is chance.
MIN_WINDOW_S = 0.5

_STAT = Path("/proc/stat")
_BUSY = ("user", "nice", "system", "irq", "softirq")
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Seconds and counts since some fixed time in the past.

    Attributes:
        at_s: Wall clock.
        own_s: Processor time of this process and those that it started: a server that it asks is
            part of what is measured.
        busy_s: Processor time of everybody on the processors that this process may use; None
            where the kernel does not tell.
        stolen_s: Time for which a hypervisor kept those processors from us; None as above.
        switches: How often a thread of this process lost its processor without giving it up.
    """

    at_s: float
    own_s: float
    busy_s: float | None
    stolen_s: float | None
    switches: int


@dataclass(frozen=True, kw_only=True)
class Load:
    """What went on during a measurement; processors are counted in cores that were busy on average.

    ``others_cores`` and ``stolen_cores`` are None where the kernel does not tell.
    """

    window_s: float
    cores: int
    own_cores: float
    others_cores: float | None
    stolen_cores: float | None
    switches_per_s: float

    def keys(self) -> dict[str, float | None]:
        """What a result row says of it."""
        return {
            "own_cores": self.own_cores,
            "others_cores": self.others_cores,
            "others_share": self.others_share,
            "switches_per_s": self.switches_per_s,
        }

    @property
    def others_share(self) -> float | None:
        """Share of the allowed processors that others used, a hypervisor's theft included."""
        if self.others_cores is None:
            return None
        return (self.others_cores + (self.stolen_cores or 0.0)) / self.cores

    def too_busy(self, threads: int) -> str | None:
        """Why absolute times should not be believed, in a sentence; None when they can be.

        A window of less than half a second is not judged.

        Args:
            threads: That each inference used.
        """
        if self.window_s < MIN_WINDOW_S:
            return None
        found = [*self._causes(), *self._lost_processors(threads)]
        if not found:
            return None
        return (
            f"this machine is too busy to measure: {' and '.join(found)}; "
            "stop other work and measure again"
        )

    def is_too_busy_to_compare(self) -> bool:
        """Whether not even the ratio of two models can be told."""
        share = self.others_share
        return self.window_s >= MIN_WINDOW_S and share is not None and share > BUSY_LIMIT_OF_RATIO

    def _causes(self) -> list[str]:
        found = []
        for what, cores in (
            ("other processes used", self.others_cores),
            ("the hypervisor kept back", self.stolen_cores),
        ):
            if cores is not None and cores > BUSY_LIMIT * self.cores:
                found.append(f"{what} {cores:.1f} of {self.cores} cores")
        return found

    def _lost_processors(self, threads: int) -> list[str]:
        """Evidence of its own only where the kernel does not say what others use."""
        if self.others_cores is not None or self.switches_per_s <= SWITCH_LIMIT * threads:
            return []
        return [
            f"threads lost their processor {self.switches_per_s:.0f} times a second "
            f"(allowed: {SWITCH_LIMIT * threads:.0f})"
        ]


def read_counters(stat: Path = _STAT) -> Counters:
    """The counters of now."""
    busy_s, stolen_s = _processor_times(stat, allowed_cpus())
    return Counters(
        at_s=time.perf_counter(),
        own_s=time.process_time() + _descendants_s(),
        busy_s=busy_s,
        stolen_s=stolen_s,
        switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
    )


def load_between(before: Counters, after: Counters, *, cores: int | None = None) -> Load:
    """What went on between two readings.

    Args:
        before: Read first.
        after: Read later.
        cores: Processors that ``busy_s`` is of; None means those that this process may use.
    """
    window = max(after.at_s - before.at_s, 1e-9)
    own = (after.own_s - before.own_s) / window
    others = None
    if before.busy_s is not None and after.busy_s is not None:
        # Ticks are coarser than our own clock, so that the difference may fall just below zero.
        others = max(0.0, (after.busy_s - before.busy_s) / window - own)
    stolen = None
    if before.stolen_s is not None and after.stolen_s is not None:
        stolen = max(0.0, (after.stolen_s - before.stolen_s) / window)
    return Load(
        window_s=window,
        cores=cores or len(allowed_cpus()),
        own_cores=own,
        others_cores=others,
        stolen_cores=stolen,
        switches_per_s=(after.switches - before.switches) / window,
    )


def load_while_idle(
    seconds: float,
    *,
    read: Callable[[], Counters] = read_counters,
    sleep: Callable[[float], None] = time.sleep,
) -> Load:
    """What others do while this process sleeps."""
    before = read()
    sleep(seconds)
    return load_between(before, read())


def allowed_cpus() -> list[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _descendants_s() -> float:
    """Processor time of the processes below this one, those that have ended included."""
    ended = os.times()
    total = ended.children_user + ended.children_system
    try:
        import psutil  # noqa: PLC0415 - `make bench-gpu` runs without it, and starts no children
    except ModuleNotFoundError:
        return total
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends while we look
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def _processor_times(stat: Path, cpus: list[int]) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of some processors; None for both where the file does not tell.

    Source:
        proc_stat(5): the fields of a `cpu` line, in ticks.
    """
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    wanted = {f"cpu{number}" for number in cpus}
    found = [line.split() for line in lines if line.split(" ", 1)[0] in wanted]
    if len(found) != len(wanted) or any(len(words) <= len(_FIELDS) for words in found):
        return None, None
    ticks = {
        field: sum(int(words[1 + place]) for words in found) for place, field in enumerate(_FIELDS)
    }
    if not any(ticks.values()):  # a sandbox that has the file but fills in zeros
        return None, None
    per_s = os.sysconf("SC_CLK_TCK")
    return sum(ticks[field] for field in _BUSY) / per_s, ticks["steal"] / per_s
