"""Where the time of one inference goes: part by part, against its operations.

In: an artifact and an operating point. Out: `Profile`, whose parts add up to the measured time of
an unprofiled inference. Profilers are the least travelled part of a runtime, so `profiles.py` runs
this module as a process of its own. Next files: `parts.py`, `profile_explanation.py`.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from cofi_deploy.arch import Arch
from cofi_deploy.errors import UsageError
from cofi_deploy.exports import read_manifest
from cofi_deploy.kinds import TaskKind, is_per_token
from cofi_deploy.parts import PARTS, Part, Place, Run
from cofi_deploy.serve import own_process
from cofi_deploy.serve.inputs import Tensors, random_inputs
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.profile_peak import peak_gflops
from cofi_deploy.serve.runner import Runner, RunnerSettings, open_runner

# A CUDA provider reports when kernels were launched, not how long they took.
_MODULES = {
    "onnxruntime-cpu": "cofi_deploy.serve.profile_onnxruntime",
    "openvino": "cofi_deploy.serve.profile_openvino",
    "tensorrt": "cofi_deploy.serve.profile_tensorrt",
    "tensorrt-rtx": "cofi_deploy.serve.profile_tensorrt",
}
PROFILED_RUNTIMES = tuple(_MODULES)

_WARMUP = 3
_MIN_RUNS = 3
_UNFOLDED = Place(None, "overhead")


class ProfilerModule(Protocol):
    """What a module named in `_MODULES` offers."""

    def profiled_runs(
        self, artifact: Path, settings: RunnerSettings, inputs: Tensors, *, warmup: int, runs: int
    ) -> list[Run]:
        """Milliseconds by place of each of ``runs`` inferences after ``warmup`` others."""


@dataclass(frozen=True, kw_only=True)
class ProfilePart:
    """Median milliseconds and operations of a part; operations are counted as `Arch.flops` does."""

    layer: int | None
    part: Part
    ms: float
    flops: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One model at one operating point.

    Attributes:
        wall_ms: Median of unprofiled inferences; the parts add up to it.
        peak_gflops: What square products reach in this runtime, precision and thread count.
        unfolded_share: Of the time, what was measured but belongs to no part that is known; it is
            in ``overhead``.
        scale: Below 1, the profiled operations took longer than the whole unprofiled inference
            and every part was multiplied by it.
        parts: Every kept sublayer, even where the runtime reported no time for it.
    """

    model: str
    runtime: str
    precision: str
    device: str
    threads: int
    batch_size: int
    seq_len: int
    wall_ms: float
    peak_gflops: float | None
    unfolded_share: float
    scale: float
    parts: tuple[ProfilePart, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON object; ``parts`` a list of objects."""
        parts = [dict(vars(part)) for part in self.parts]
        return {**vars(self), "parts": parts}


def profile(
    artifact: Path,
    point: OperatingPoint,
    *,
    label: str = "model",
    max_runs: int = 20,
    max_seconds: float = 2.0,
) -> Profile:
    """Profile an artifact on random ids of one length.

    Args:
        artifact: An export for ``point.runtime``.
        point: Runtime, batch and length; precision and threads as in `open_runner`.
        label: Name of the model.
        max_runs: Profiled inferences, and as many unprofiled ones, at the most.
        max_seconds: Of each of the two, but three inferences are run in any case.

    Raises:
        UsageError: A runtime without a profiler, or a point without a length in tokens.
        ArtifactError: The artifact is missing, corrupt, or of another version.
        RunnerError: The runtime does not take the artifact, the precision or the length.
    """
    length = check_profiled(point)
    manifest = read_manifest(artifact)
    flops = _flops(manifest.arch, manifest.kind, point.batch_size, length)
    with open_runner(
        artifact, point.runtime, threads=point.threads, precision=point.precision
    ) as runner:
        inputs = random_inputs(runner.limits, point.batch_size, length, seed=0)
        call = runner.bind(inputs)
        first_ms = min(_time_ms(call) for _ in range(_WARMUP))
        count = max(_MIN_RUNS, min(max_runs, int(max_seconds * 1e3 / max(first_ms, 1e-6))))
        # Half before and half after the profile, so that a drift of the machine hits both.
        wall = [_time_ms(call) for _ in range(count)]
        runs = _profiler(point.runtime).profiled_runs(
            artifact, _settings(runner), inputs, warmup=_WARMUP, runs=count
        )
        wall += [_time_ms(call) for _ in range(count)]
        wall_ms = statistics.median(wall)
        parts, unfolded_ms, scale = parts_of(runs, wall_ms, flops)
        return Profile(
            model=label,
            runtime=runner.runtime,
            precision=runner.precision,
            device=runner.device,
            threads=runner.threads,
            batch_size=point.batch_size,
            seq_len=length,
            wall_ms=wall_ms,
            peak_gflops=peak_gflops(runner.runtime, runner.precision, runner.threads),
            unfolded_share=unfolded_ms / wall_ms,
            scale=scale,
            parts=parts,
        )


def parts_of(
    runs: Sequence[Run], wall_ms: float, flops: Mapping[Place, int]
) -> tuple[tuple[ProfilePart, ...], float, float]:
    """Median milliseconds of every part, together ``wall_ms``.

    Args:
        runs: Milliseconds by place of each profiled inference.
        wall_ms: Of an unprofiled inference.
        flops: Operations of every place that must appear.

    Returns:
        The parts, the milliseconds that had no place, and the factor that made the parts fit.
    """
    places: set[Place | None] = {*flops, *(place for run in runs for place in run)}
    medians = {place: statistics.median(run.get(place, 0.0) for run in runs) for place in places}
    measured = sum(medians.values())
    scale = min(1.0, wall_ms / measured) if measured > 0 else 1.0
    medians = {place: ms * scale for place, ms in medians.items()}
    unfolded_ms = medians.pop(None, 0.0)
    known = {place: ms for place, ms in medians.items() if place is not None}
    # What the operations leave of the wall: calls, copies, scheduling, waiting.
    known[_UNFOLDED] = max(0.0, round(wall_ms - sum(known.values()), 9))
    parts = tuple(
        ProfilePart(layer=place.layer, part=place.part, ms=ms, flops=flops.get(place, 0))
        for place, ms in sorted(known.items(), key=lambda item: _order(item[0]))
    )
    return parts, unfolded_ms, scale


def check_profiled(point: OperatingPoint) -> int:
    """The length in tokens of a point that can be profiled.

    Raises:
        UsageError: A runtime without a profiler, or a point without a length in tokens.
    """
    if point.runtime not in _MODULES:
        raise UsageError(
            f"runtime {point.runtime!r} has no profile by layer, allowed: "
            f"{', '.join(PROFILED_RUNTIMES)}; its latency is measured by: cofi-deploy bench"
        )
    if not isinstance(point.seq_len, int):
        raise UsageError(
            f"{point} has no one length to count operations at, allowed: BATCHxLENGTH such as 1x128"
        )
    return point.seq_len


def main() -> None:
    """Answer a request: profiles of several artifacts at one point, in their order."""
    request = own_process.request()
    point = OperatingPoint(**request["point"])
    own_process.answer(
        [
            profile(Path(artifact), point, label=label).to_json()
            for label, artifact in request["artifacts"]
        ]
    )


def _order(place: Place) -> tuple[int, int, int]:
    """As the data flows: embedding and its LayerNorm, the layers, the head, the rest."""
    rank = PARTS.index(place.part)
    if place.layer is not None:
        return (1, place.layer, rank)
    return (2 if place.part in {"head", "overhead"} else 0, 0, rank)


def _profiler(runtime: str) -> ProfilerModule:
    return cast(ProfilerModule, importlib.import_module(_MODULES[runtime]))


def _settings(runner: Runner) -> RunnerSettings:
    return RunnerSettings(
        runtime=runner.runtime, threads=runner.threads, precision=runner.precision
    )


def _flops(arch: Arch, kind: TaskKind, batch: int, length: int) -> dict[Place, int]:
    """Operations of every kept sublayer, as exported graphs compute them."""
    found: dict[Place, int] = {}
    counts = arch.flops_by_sublayer(batch, length, first_token_only=not is_per_token(kind))
    for index, counted in enumerate(counts):
        if counted.attention:
            found[Place(index, "attention")] = counted.attention
        if counted.ffn:
            found[Place(index, "ffn")] = counted.ffn
    return found


def _time_ms(call: Callable[[], None]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


if __name__ == "__main__":
    main()
