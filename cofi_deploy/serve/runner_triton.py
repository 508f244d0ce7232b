"""A live Triton server: an export of format ``triton``, asked with token ids over gRPC.

Every open artifact has a server of its own, as it has a session of its own in other runtimes: dense
and pruned share no process, no queue and no memory, and the one that waits for its turn has nothing
to do, for it neither polls its repository nor spins. A call that is timed is what a client sees:
writing the request, the way to the server and back, its queue and batcher, the model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve.exported import check_precision
from cofi_deploy.serve.inputs import InputLimits, Tensors
from cofi_deploy.serve.runner import RunnerSettings, physical_cores
from cofi_deploy.serve.triton_command import has_gpu
from cofi_deploy.serve.triton_environment import (
    find_environment,
    prepare_environment,
    unsupported_reason,
)
from cofi_deploy.serve.triton_launchers import find_tritonserver
from cofi_deploy.serve.triton_service import TritonService, open_service, server_url
from cofi_deploy.triton_repository import ModelConfig

logger = logging.getLogger(__name__)

# Threads of one inference, in the words of each backend.
_THREAD_PARAMETERS = ("intra_op_thread_count", "INFERENCE_NUM_THREADS")


def unavailable(runtime: str) -> str | None:
    """No client, or no server that could be started without installing one."""
    if not _has_client():
        return "the package 'tritonclient' is not installed; run: pip install 'cofi-deploy[triton]'"
    if server_url() is not None or find_tritonserver() or find_environment():
        return None
    reason = unsupported_reason()
    if reason is not None:
        return (
            f"tritonserver is not on PATH, and {reason}; name a server that runs elsewhere with "
            "--triton-url"
        )
    return (
        "no Triton server is here yet; `cofi-deploy serve` installs one, about 340 MB, and so does "
        "`cofi-deploy verify --runtime triton`"
    )


def prepare(say: Callable[[str], None]) -> None:
    """Install the server that pip ships, where there is none yet.

    Args:
        say: Called with a line for a person before anything that takes long.

    Raises:
        EnvironmentProblem: It cannot be installed here.
    """
    if _has_client() and server_url() is None and find_tritonserver() is None:
        prepare_environment(say)


def runs_elsewhere() -> bool:
    """Whether somebody else started the server, so that no new process can be looked at."""
    return server_url() is not None


def open_session(artifact: Path, settings: RunnerSettings) -> TritonSession:
    """Start a server on an export, or connect to the one that `running_server` names.

    Raises:
        CofiDeployError: See `open_service`; nothing is left running.
        RunnerError: Another precision than the export's.
    """
    service = open_service(artifact)
    try:
        precision = service.manifest.precision
        check_precision(settings.runtime, settings.precision, (precision,))
        session = TritonSession(service)
    except BaseException:  # Ctrl-C, too, must leave no server behind
        service.close()
        raise
    if session.threads != settings.threads:
        _tell_threads(artifact, session.threads)
    return session


class TritonSession:
    """An open service, as `Session` describes it."""

    def __init__(self, service: TritonService) -> None:
        """Take over an open service."""
        self._service: TritonService | None = service
        self._max_batch_size = service.config.max_batch_size
        self.precision = service.manifest.precision
        self.device = "cuda" if _is_on_gpu(service) else "cpu"
        self.threads = _threads(service)
        self.limits = InputLimits.from_arch(service.manifest.arch)

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs; more rows than the server's largest batch go in pieces."""
        service = self._open()
        answers = [
            service.ask(service.name, piece) for piece in _pieces(inputs, self._max_batch_size)
        ]
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def peak_memory_mib(self) -> float | None:
        """Of the server and the processes of its models; None where it is somebody else's."""
        server = self._open().server
        return None if server is None else sum(_peaks_mib(server.pid))

    def close(self) -> None:
        """Hang up and end the server."""
        if self._service is not None:
            service, self._service = self._service, None
            service.close()

    def _open(self) -> TritonService:
        if self._service is None:
            raise RunnerError("this triton session is closed; open the artifact again")
        return self._service


@functools.cache
def _tell_threads(artifact: Path, threads: int) -> None:
    """Once for each repository: whoever asked for another number should know it."""
    logger.warning(
        "triton computes on %s, as %r says; export it with --set threads=N for another number",
        f"{threads} thread{'s' if threads > 1 else ''}" if threads else "all cores of its server",
        str(artifact),
    )


def _has_client() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("tritonclient", "grpc"))


def _threads(service: TritonService) -> int:
    """As the repository says; where that is "all cores", ours, or 0 on a machine unknown to us."""
    parameters = service.config.parameters
    told = [parameters[name].string_value for name in _THREAD_PARAMETERS if name in parameters]
    asked = int(told[0]) if told else 0
    return asked or (0 if service.server is None else physical_cores())


def _is_on_gpu(service: TritonService) -> bool:
    kinds = _instance_kinds(service.config)
    return "KIND_GPU" in kinds or (
        "KIND_AUTO" in kinds and service.server is not None and has_gpu()
    )


def _instance_kinds(config: ModelConfig) -> set[str]:
    return {group.Kind.Name(group.kind) for group in config.instance_group}


def _pieces(inputs: Tensors, size: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Requests of up to ``size`` rows; 0 is a model that takes any number."""
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, size or rows):
        yield {name: array[start : start + (size or rows)] for name, array in inputs.items()}


def _peaks_mib(pid: int) -> Iterator[float]:
    """Largest resident memory of each process of a server so far, shared memory in each of them."""
    server = psutil.Process(pid)
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    yield int(line.split()[1]) / 1024
