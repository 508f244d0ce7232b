"""What a Triton server did and used while it was under load.

In: a running server. Out: the difference between two looks at it: requests, batches that formed,
time in the queue and in the model, processor time; and its memory. Next: `triton_serving.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tritonclient.grpc import InferenceServerClient

SHARED_MEMORY = Path("/dev/shm")


@dataclass(kw_only=True)
class Usage:
    """What a model did between two looks.

    Attributes:
        requests: Answered, each with one row or more.
        batches: How often each number of rows was run at once.
        queue_ns: Time of all requests in the queue.
        compute_ns: Time of all requests in the model.
        server_cpu_s: Processor time of all processes of the server, all models together.
        seconds: Between the two looks.
        memory_mib: Of the server at the second look; the largest, where several are pooled.
    """

    requests: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    queue_ns: int = 0
    compute_ns: int = 0
    server_cpu_s: float = 0.0
    seconds: float = 0.0
    memory_mib: float = 0.0

    @property
    def mean_batch_size(self) -> float:
        """Rows of an average execution."""
        rows = sum(size * count for size, count in self.batches.items())
        return rows / max(1, self.batches.total())

    @property
    def queue_ms(self) -> float:
        """Mean time of a request in the queue."""
        return 1e-6 * self.queue_ns / max(1, self.requests)

    @property
    def compute_ms(self) -> float:
        """Mean time of a request in the model."""
        return 1e-6 * self.compute_ns / max(1, self.requests)

    def add(self, other: Usage) -> None:
        """Pool with a repeat of the same load."""
        self.requests += other.requests
        self.batches += other.batches
        self.queue_ns += other.queue_ns
        self.compute_ns += other.compute_ns
        self.server_cpu_s += other.server_cpu_s
        self.seconds += other.seconds
        self.memory_mib = max(self.memory_mib, other.memory_mib)


@contextlib.contextmanager
def usage(url: str, pid: int, model: str) -> Iterator[Callable[[], Usage]]:
    """Yield a function that says what ``model`` has done since.

    Args:
        url: host:port of gRPC.
        pid: The server's process.
        model: Name on the server; of the encoder, even when its ensemble is asked.
    """
    before, cpu, began = _statistics(url, model), cpu_seconds(pid), time.perf_counter()

    def used() -> Usage:
        seen = _difference(before, _statistics(url, model))
        seen.server_cpu_s = cpu_seconds(pid) - cpu
        seen.seconds = time.perf_counter() - began
        seen.memory_mib = memory_mib(pid)
        return seen

    yield used


def processes(pid: int) -> list[psutil.Process]:
    """The server and all its children that are alive."""
    try:
        server = psutil.Process(pid)
        return [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """Processor time that the server and its children have used so far."""
    total = 0.0
    for process in processes(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_mib(pid: int) -> float:
    """Memory of the server and its children; what they share is counted once (PSS)."""
    total = 0
    for process in processes(pid):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def shared_memory_mib(prefix: str) -> float:
    """What lies in /dev/shm under names that begin so."""
    sizes = [path.stat().st_blocks * 512 for path in SHARED_MEMORY.glob(f"{prefix}*")]
    return sum(sizes) / 2**20


def stubs(pid: int, model: str) -> Sequence[psutil.Process]:
    """Processes that run the Python code of a model."""
    found = []
    for process in processes(pid)[1:]:
        with contextlib.suppress(psutil.Error):
            if any(f"/{model}/" in argument for argument in process.cmdline()):
                found.append(process)
    return found


def _statistics(url: str, model: str) -> Any:
    with InferenceServerClient(url) as server:
        versions = server.get_inference_statistics(model).model_stats
        return max(versions, key=lambda stats: int(stats.version))


def _difference(before: Any, after: Any) -> Usage:
    batches: Counter[int] = Counter()
    for item in after.batch_stats:
        batches[int(item.batch_size)] += int(item.compute_infer.count)
    for item in before.batch_stats:
        batches[int(item.batch_size)] -= int(item.compute_infer.count)
    first, last = before.inference_stats, after.inference_stats
    steps = ("compute_input", "compute_infer", "compute_output")
    return Usage(
        requests=last.success.count - first.success.count,
        batches=+batches,
        queue_ns=last.queue.ns - first.queue.ns,
        compute_ns=sum(getattr(last, step).ns - getattr(first, step).ns for step in steps),
    )
