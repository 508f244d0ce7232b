"""Where a speedup may be meant: `--for` of `train`, answered before any framework is imported."""

from __future__ import annotations

from collections.abc import Mapping

from cofi_deploy.api.runtime_names import check_measured_at, points_of
from cofi_deploy.exports import ExportFormat
from cofi_deploy.serve.latency import OperatingPoint

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
    check_measured_at(point, SPEEDUP_RUNTIMES, flag="--speedup", typed=text)
    return point
