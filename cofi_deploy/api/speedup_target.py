"""Where a speedup may be meant: `--for` of `train`, answered before any framework is imported."""

from __future__ import annotations

from collections.abc import Mapping

from cofi_deploy.api.runtime_names import points_of
from cofi_deploy.errors import EnvironmentProblem, UsageError
from cofi_deploy.exports import ExportFormat
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.runner import availability

# Runtimes whose artifacts are written in seconds, and the format of these; an engine takes minutes
# for each structure.
SPEEDUP_RUNTIMES: Mapping[str, ExportFormat] = {
    "onnxruntime-cpu": "onnx",
    "onnxruntime-cuda": "onnx",
    "openvino": "openvino",
}


def speedup_point(text: str) -> OperatingPoint:
    """Where a speedup is meant, as typed behind `--for`.

    Raises:
        UsageError: No operating point, no runtime that structures are timed in, or no one length.
        EnvironmentProblem: The runtime is not here.
    """
    point = points_of((text,))[0]
    if point.runtime not in SPEEDUP_RUNTIMES or not isinstance(point.seq_len, int):
        raise UsageError(
            f"--speedup --for {text}: allowed: RUNTIME@BATCHxLENGTH with a number of tokens and "
            f"one of the runtimes {', '.join(SPEEDUP_RUNTIMES)}, such as onnxruntime-cpu@1x128"
        )
    reason = availability(point.runtime)
    if reason is not None:
        raise EnvironmentProblem(f"--for {text}: {reason}")
    return point
