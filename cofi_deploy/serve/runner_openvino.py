"""OpenVINO on the CPU: an export of format ``openvino``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cofi_deploy.errors import MissingDependencyError, RunnerError
from cofi_deploy.serve.exported import check_precision, open_export
from cofi_deploy.serve.inputs import InputLimits, Tensors
from cofi_deploy.serve.runner import RunnerSettings

if TYPE_CHECKING:
    import openvino

_DEVICE = "CPU"

# What an artifact of each precision may be computed in; the first is what it is made for. fp16 is
# how weights are stored, the processor computes in fp32.
_COMPUTED = {
    "fp32": ("fp32", "bf16"),
    "fp16": ("fp16", "bf16"),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8",),
}


def unavailable(runtime: str) -> str | None:
    """The package is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return "the package 'openvino' is not installed; run: pip install 'cofi-deploy[openvino]'"
    return None


def open_session(artifact: Path, settings: RunnerSettings) -> OpenVinoSession:
    """Open an OpenVINO export with the latency hint.

    An fp32 artifact may be run in bf16 (``settings.precision``) on processors that have it, a
    bf16 one in fp32 on those that have not. OpenVINO would choose by itself; here it does what it
    is told.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ArtifactError: See `exports.check_export`.
        RunnerError: Another format, or a precision that artifact or processor does not have.
    """
    try:
        import openvino  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingDependencyError("openvino", "openvino", "runtime 'openvino'") from error

    manifest, path = open_export(artifact, settings.runtime, "openvino", ".xml")
    core = openvino.Core()
    precision = settings.precision or manifest.precision
    check_precision(settings.runtime, precision, _COMPUTED[manifest.precision])
    if precision == "bf16" and "BF16" not in core.get_property(
        _DEVICE, "OPTIMIZATION_CAPABILITIES"
    ):
        raise RunnerError(
            "openvino: precision is 'bf16', but this processor has no bf16 (AVX512-BF16 or AMX); "
            f"use {next(name for name in _COMPUTED[manifest.precision] if name != 'bf16')!r}"
        )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = core.compile_model(path, _DEVICE, config)
    names = tuple(item.any_name for item in compiled.inputs)
    limits = InputLimits.from_arch(manifest.arch, names)
    return OpenVinoSession(compiled, limits, precision)


class OpenVinoSession:
    """A compiled model with one inference request."""

    device = "cpu"

    def __init__(
        self, compiled: openvino.CompiledModel, limits: InputLimits, precision: str
    ) -> None:
        """Take a compiled model."""
        self._request: openvino.InferRequest | None = compiled.create_infer_request()
        self._outputs = {item.any_name: item for item in compiled.outputs}
        self.precision = precision
        self.limits = limits

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs, copied out of the request's buffers."""
        if self._request is None:
            raise RunnerError("this openvino session is closed; open the artifact again")
        results = self._request.infer(dict(inputs), share_inputs=True)
        return {name: results[port].copy() for name, port in self._outputs.items()}

    def close(self) -> None:
        """Drop the request, and the model with it."""
        self._request = None
        self._outputs = {}
