"""ONNX Runtime on the CPU or a CUDA device: an export of format ``onnx``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from cofi_deploy.errors import RunnerError
from cofi_deploy.exports import ExportManifest, SessionChoice
from cofi_deploy.pieces import in_pieces, rows_at_once
from cofi_deploy.serve.exported import check_precision, open_export
from cofi_deploy.serve.inputs import InputLimits, Tensors
from cofi_deploy.serve.runner import RunnerSettings

_PROVIDERS = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
}
_LOG_ERRORS_ONLY = 3


def unavailable(runtime: str) -> str | None:
    """A build without the provider; whether a device answers shows only when a session opens."""
    provider = _PROVIDERS[runtime]
    available = ort.get_available_providers()
    if provider in available:
        return None
    return (
        f"this build of onnxruntime has no {provider} (it has {', '.join(available)}); "
        "run: pip install 'cofi-deploy[gpu]'"
    )


def open_session(artifact: Path, settings: RunnerSettings) -> OnnxRuntimeSession:
    """Open an ONNX export.

    Raises:
        ArtifactError: See `exports.check_export`.
        RunnerError: Another format, another precision than the graph's, or a CUDA provider that
            did not start.
    """
    manifest, path = open_export(artifact, settings.runtime, "onnx", ".onnx")
    check_precision(settings.runtime, settings.precision, (manifest.precision,))
    provider = _PROVIDERS[settings.runtime]
    choice = choice_for(manifest, settings.runtime)
    threads = settings.threads_of(choice)
    session = ort.InferenceSession(
        str(path),
        session_options(threads, choice),
        providers=[provider],
        disabled_optimizers=disabled_optimizers(choice),
    )
    if provider not in session.get_providers():
        raise RunnerError(
            f"{settings.runtime}: {provider} did not start, ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}; run: cofi-deploy doctor"
        )
    names = tuple(item.name for item in session.get_inputs())
    limits = InputLimits.from_arch(manifest.arch, names)
    rows = rows_at_once(session, choice)
    return OnnxRuntimeSession(session, limits, manifest.precision, threads, rows)


class OnnxRuntimeSession:
    """An open inference session."""

    def __init__(
        self,
        session: ort.InferenceSession,
        limits: InputLimits,
        precision: str,
        threads: int,
        rows: int | None = None,
    ) -> None:
        """Take an open session, and how many rows it is given at a time."""
        self.threads = threads
        self._session: ort.InferenceSession | None = session
        self._output_names = [item.name for item in session.get_outputs()]
        self.device = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        self.precision = precision
        self.limits = limits
        self._rows = rows

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs; on CUDA, copies to and from the device are part of it."""
        if self._session is None:
            raise RunnerError("this onnxruntime session is closed; open the artifact again")
        return in_pieces(partial(self._outputs, self._session), inputs, self._rows)

    def close(self) -> None:
        """Drop the session, which frees its arena and threads."""
        self._session = None

    def _outputs(
        self, session: ort.InferenceSession, inputs: Tensors
    ) -> dict[str, npt.NDArray[Any]]:
        values = session.run(self._output_names, dict(inputs))
        return dict(zip(self._output_names, values, strict=True))


def session_options(threads: int, choice: SessionChoice | None = None) -> ort.SessionOptions:
    """How every session is opened that is timed or profiled."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Worker threads spin while they wait, and go on spinning after a run: with two sessions in
    # turn, the idle one's threads would take cores from the one that is timed. Within a run
    # spinning stays as in production; it ends with the run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in ({} if choice is None else choice.settings).items():
        if name == "graph_optimization_level":
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, value)
        elif name == "enable_mem_pattern":
            options.enable_mem_pattern = value
        elif name.startswith("session."):
            options.add_session_config_entry(name, value)
    return options


def disabled_optimizers(choice: SessionChoice | None) -> list[str]:
    """Rewritings of the graph that a session is to leave out."""
    return [] if choice is None else list(choice.settings.get("disabled_optimizers", ()))


def choice_for(manifest: ExportManifest, runtime: str) -> SessionChoice | None:
    """What the artifact was tuned to, where it was for this runtime."""
    choice = manifest.session
    return choice if choice is not None and choice.runtime == runtime else None
