"""Open an artifact in a process of its own: time to load, first inference, peak memory.

A process that has run other models has a warm allocator and their memory; this one has neither.
`own_process` says how it is asked.
"""

from __future__ import annotations

import importlib
import logging
import resource
import time
from dataclasses import asdict
from pathlib import Path

from cofi_deploy.serve import own_process
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.runner import availability, open_runner, runs_elsewhere

logger = logging.getLogger(__name__)

# Further runs, so that memory which a runtime takes only later is counted.
_FURTHER_RUNS = 3

# Runtimes whose module imports their library only when an artifact is opened.
_LIBRARIES = {"openvino": "openvino"}


def probe(artifact: Path, point: OperatingPoint) -> dict[str, float]:
    """``load_ms``, ``first_inference_ms``, ``peak_memory_mib`` and ``idle_memory_mib``.

    All of one fresh process. The peak is resident memory of the whole process, Python and the
    runtime's libraries included; ``idle_memory_mib`` is that peak before the artifact is opened,
    so that the difference is what the model costs. On a GPU both are memory of the
    host. The peak of a server is that of its processes; of one elsewhere nothing is measured.

    Raises:
        RunnerError: The process failed; carries the last line that it wrote.
    """
    if runs_elsewhere(point.runtime):
        return {}
    measured: dict[str, float] = own_process.ask(
        "cofi_deploy.serve.probe",
        {"artifact": str(artifact), "point": asdict(point)},
        f"{point} of {str(artifact)!r}",
    )
    return measured


def main() -> None:
    """Answer a request."""
    request = own_process.request()
    point = OperatingPoint(**request["point"])
    # The library is loaded first: no artifact pays for it, whatever it is imported by.
    availability(point.runtime)
    if point.runtime in _LIBRARIES:
        importlib.import_module(_LIBRARIES[point.runtime])
    idle = peak_memory_mib()
    with open_runner(
        Path(request["artifact"]), point.runtime, threads=point.threads, precision=point.precision
    ) as runner:
        inputs = random_inputs(runner.limits, point.batch_size, int(point.seq_len), seed=0)
        start = time.perf_counter_ns()
        runner.infer(inputs)
        first_ms = (time.perf_counter_ns() - start) / 1e6
        for _ in range(_FURTHER_RUNS):
            runner.infer(inputs)
        answer = {"load_ms": runner.load_ms, "first_inference_ms": first_ms}
        of_server = runner.peak_memory_mib()
        if of_server is not None:  # what this process had before says nothing about it
            answer["peak_memory_mib"] = of_server
        else:
            answer |= {"peak_memory_mib": peak_memory_mib(), "idle_memory_mib": idle}
    own_process.answer(answer)


def peak_memory_mib() -> float:
    """Largest resident memory that this process ever had."""
    # ru_maxrss of a new process starts with that of its parent at the fork; VmHWM does not.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
