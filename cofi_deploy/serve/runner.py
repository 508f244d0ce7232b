"""`Runner`: one way to open an artifact and ask it, whatever runtime it is for.

A runtime is one module with two functions, listed in `_MODULES` and imported only when asked for:
`unavailable(runtime)` says why it cannot be used here (None: it can), and
`open_session(artifact, settings)` opens an artifact as a `Session`. Checks, timing of the opening
and translation of errors are here, once. Next files: `inputs.py`, `runner_torch.py`.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import numpy.typing as npt

from cofi_deploy.errors import (
    CofiDeployError,
    EnvironmentProblem,
    RunnerError,
    UsageError,
    did_you_mean,
)
from cofi_deploy.exports import SessionChoice
from cofi_deploy.serve.inputs import InputLimits, Tensors, check_inputs

_MODULES = {
    "torch": "cofi_deploy.serve.runner_torch",
    "onnxruntime-cpu": "cofi_deploy.serve.runner_onnxruntime",
    "onnxruntime-cuda": "cofi_deploy.serve.runner_onnxruntime",
    "openvino": "cofi_deploy.serve.runner_openvino",
    "tensorrt": "cofi_deploy.serve.runner_tensorrt",
    "tensorrt-rtx": "cofi_deploy.serve.runner_tensorrt",
    "triton": "cofi_deploy.serve.runner_triton",
}
RUNTIMES = tuple(_MODULES)


class Runner(Protocol):
    """An opened artifact. Close it, or use it as a context manager."""

    @property
    def runtime(self) -> str:
        """One of `RUNTIMES`."""

    @property
    def precision(self) -> str:
        """What it computes in: ``fp32``, ``bf16``, ``fp16`` or ``int8``."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""

    @property
    def threads(self) -> int:
        """Threads of one inference; on a GPU, of the host side."""

    @property
    def limits(self) -> InputLimits:
        """What its inputs may be."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of its inputs."""

    @property
    def load_ms(self) -> float:
        """Milliseconds from the artifact on disk to a session that is ready."""

    def infer(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Named outputs (float32) of one batch, as new arrays on the host.

        Raises:
            RunnerError: Inputs that the model cannot read, or the runtime's own error.
        """

    def bind(self, inputs: Tensors) -> Callable[[], None]:
        """The same as `infer`, checked now and run at each call: what is timed.

        A call includes everything that a server does for each request behind its own checks:
        host copies, the computation, and on a GPU the wait for its end.

        Raises:
            RunnerError: As `infer`.
        """

    def peak_memory_mib(self) -> float | None:
        """Largest memory of the processes that it started; None: it computes in this one."""

    def device_ms(self) -> float | None:
        """Milliseconds of the last call by a GPU's own clock; None: the host's clock is all."""

    def close(self) -> None:
        """Let go of the runtime's memory."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """How an artifact is opened; ``precision`` None means that of the artifact.

    ``streams`` threads may call `Session.run` at the same time. Where the caller named no threads,
    ``threads`` are the physical cores, and an artifact that was tuned may say fewer.
    """

    runtime: str
    threads: int
    precision: str | None
    streams: int = 1
    threads_are_named: bool = True

    def threads_of(self, choice: SessionChoice | None) -> int:
        """Those to use: what the caller named, else what the artifact was tuned to."""
        if self.threads_are_named or choice is None or choice.threads is None:
            return self.threads
        return min(choice.threads, os.cpu_count() or 1)  # it may be a smaller machine


class Session(Protocol):
    """What the module of a runtime opens."""

    @property
    def limits(self) -> InputLimits:
        """What its inputs may be; ``limits.names`` are the inputs of the graph."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs; called by up to ``streams`` threads at once."""

    def close(self) -> None:
        """Let go of the runtime's memory."""


class RuntimeModule(Protocol):
    """What a module named in `_MODULES` offers."""

    def unavailable(self, runtime: str) -> str | None:
        """Why the runtime cannot be used on this machine; None when it can."""

    def open_session(self, artifact: Path, settings: RunnerSettings) -> Session:
        """Open an artifact for one of the module's runtimes."""


def open_runner(
    artifact: Path,
    runtime: str,
    *,
    threads: int | None = None,
    precision: str | None = None,
    streams: int = 1,
) -> Runner:
    """Open an artifact in a runtime.

    Args:
        artifact: A model directory for ``torch``, an export directory for the others.
        runtime: One of `RUNTIMES`.
        threads: Of one inference; None means the physical cores that this process may use.
        precision: None means what the artifact is made for.
        streams: How many threads may ask at the same time.

    Raises:
        UsageError: The runtime is unknown, or ``threads`` is below 1.
        EnvironmentProblem: The runtime cannot be used on this machine; says why.
        ArtifactError: The artifact is missing, corrupt, or of another version.
        RunnerError: The runtime does not take the artifact or the precision.
    """
    module = _module(runtime)
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, allowed: 1 and up")
    reason = module.unavailable(runtime)
    if reason is not None:
        raise EnvironmentProblem(f"runtime {runtime!r} cannot be used here: {reason}")
    settings = RunnerSettings(
        runtime=runtime,
        threads=threads or physical_cores(),
        precision=precision,
        streams=streams,
        threads_are_named=threads is not None,
    )
    start = time.perf_counter_ns()
    try:
        session = module.open_session(artifact, settings)
    except CofiDeployError:
        raise
    except Exception as error:
        raise RunnerError(
            f"{runtime} could not open {str(artifact)!r}: {_first_line(error)}; export it again"
        ) from error
    load_ms = (time.perf_counter_ns() - start) / 1e6
    return _CheckedRunner(settings, session, load_ms)


def availability(runtime: str) -> str | None:
    """Why a runtime cannot be used on this machine; None when it can.

    Raises:
        UsageError: The runtime is unknown.
    """
    return _module(runtime).unavailable(runtime)


def runs_elsewhere(runtime: str) -> bool:
    """Whether a runtime is a server that somebody else started: no process of ours to look into."""
    answer = getattr(_module(runtime), "runs_elsewhere", None)
    return answer is not None and answer()


def physical_cores() -> int:
    """Physical cores that this process may use; hyper-threads do not help matrix products."""
    import psutil  # noqa: PLC0415 - a caller that names its threads needs it not

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


class _CheckedRunner:
    """A session with its inputs checked and its errors in our words."""

    def __init__(self, settings: RunnerSettings, session: Session, load_ms: float) -> None:
        self._session: Session | None = session
        self.runtime = settings.runtime
        # A server's threads are what its repository says, whatever is asked for here; those of a
        # tuned artifact what it was tuned to, unless asked for.
        self.threads: int = getattr(session, "threads", settings.threads)
        self.precision = session.precision
        self.device = session.device
        self.limits = session.limits
        self.load_ms = load_ms

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.limits.names

    def infer(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        session = self._open()
        check_inputs(inputs, self.limits)
        try:
            return session.run(inputs)
        except CofiDeployError:
            raise
        except Exception as error:
            shape = inputs[self.limits.names[0]].shape
            raise RunnerError(
                f"{self.runtime} failed on inputs of shape {shape}: {_first_line(error)}"
            ) from error

    def bind(self, inputs: Tensors) -> Callable[[], None]:
        # Runs once, so that the runtime's own errors surface here and not while timing.
        self.infer(inputs)
        session = self._open()

        def call() -> None:
            session.run(inputs)

        return call

    def peak_memory_mib(self) -> float | None:
        measure = getattr(self._open(), "peak_memory_mib", None)
        return None if measure is None else measure()

    def device_ms(self) -> float | None:
        return getattr(self._open(), "device_ms", None)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> Session:
        if self._session is None:
            raise RunnerError(f"this {self.runtime} runner is closed; open the artifact again")
        return self._session


def _module(runtime: str) -> RuntimeModule:
    if runtime not in _MODULES:
        raise UsageError(f"runtime is {runtime!r}, {did_you_mean(runtime, RUNTIMES)}")
    return cast(RuntimeModule, importlib.import_module(_MODULES[runtime]))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
