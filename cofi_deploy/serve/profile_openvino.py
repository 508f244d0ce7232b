"""OpenVINO's performance counters, by part of the model.

Counters name the nodes that are executed; the runtime's own graph lists for each of them the
nodes that were fused into it, and what it reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cofi_deploy.parts import Node, Place, Run, place_nodes
from cofi_deploy.serve.inputs import Tensors
from cofi_deploy.serve.runner import RunnerSettings
from cofi_deploy.serve.runner_openvino import compile_export, static_shape

_COUNTERS = {"PERF_COUNT": "YES"}
_FUSED = "originalLayersNames"


def profiled_runs(
    artifact: Path, settings: RunnerSettings, inputs: Tensors, *, warmup: int, runs: int
) -> list[Run]:
    """Milliseconds by part of each of ``runs`` inferences; static graphs run in pieces.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ArtifactError: See `exports.check_export`.
        RunnerError: Another format, or a precision that artifact or processor does not have.
    """
    compiled, _, _ = compile_export(artifact, settings, _COUNTERS)
    places = place_nodes(_executed_nodes(compiled.get_runtime_model()))
    shape = static_shape(compiled)
    pieces = [dict(inputs)] if shape is None else list(shape.padded(inputs))
    request = compiled.create_infer_request()
    try:
        return [_run(request, pieces, places) for _ in range(warmup + runs)][warmup:]
    finally:
        del request  # before the model that it is of


def _run(request: Any, pieces: list[dict[str, Any]], places: dict[str, Place | None]) -> Run:
    total: dict[Place | None, float] = {}
    for piece in pieces:
        request.infer(piece, share_inputs=True)
        for counter in request.profiling_info:
            ms = counter.real_time.total_seconds() * 1e3
            if ms > 0:
                place = places.get(counter.node_name)
                total[place] = total.get(place, 0.0) + ms
    return total


def _executed_nodes(model: Any) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for op in model.get_ordered_ops():
        name, info = op.get_friendly_name(), op.get_rt_info()
        fused = str(info[_FUSED].value).split(",") if _FUSED in info else []
        found[name] = Node(
            kind=str(info["layerType"].value),
            names=(name, *(each for each in fused if each and each != name)),
            inputs=tuple(
                port.get_source_output().get_node().get_friendly_name() for port in op.inputs()
            ),
        )
    return found
