"""ONNX Runtime's own profile, by part of the model.

Times come from its trace of executed nodes, in whole microseconds. Nodes that
it made up itself (`BiasGelu_token_1`) are recognised by the tensors they write, in the graph that
it saves after optimising.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from cofi_deploy.exports import SessionChoice
from cofi_deploy.parts import Node, Place, Run, place_nodes
from cofi_deploy.pieces import pieces_of, rows_at_once
from cofi_deploy.serve.exported import check_precision, open_export
from cofi_deploy.serve.inputs import Tensors
from cofi_deploy.serve.runner import RunnerSettings
from cofi_deploy.serve.runner_onnxruntime import (
    choice_for,
    disabled_optimizers,
    session_options,
)

_PROVIDERS = ["CPUExecutionProvider"]
_SUFFIX = "_kernel_time"
_CONSTANTS = "constants.bin"


def profiled_runs(
    artifact: Path, settings: RunnerSettings, inputs: Tensors, *, warmup: int, runs: int
) -> list[Run]:
    """Milliseconds by part of each of ``runs`` inferences.

    Raises:
        ArtifactError: See `exports.check_export`.
        RunnerError: Another format, or another precision than the graph's.
    """
    manifest, path = open_export(artifact, settings.runtime, "onnx", ".onnx")
    check_precision(settings.runtime, settings.precision, (manifest.precision,))
    with tempfile.TemporaryDirectory(prefix="cofi-deploy-profile-") as folder:
        choice = choice_for(manifest, settings.runtime)
        nodes = optimised_model(path, settings.threads, choice, Path(folder)).graph.node
        places = place_nodes(_by_name(nodes))
        options = session_options(settings.threads, choice)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = ort.InferenceSession(
            str(path),
            options,
            providers=_PROVIDERS,
            disabled_optimizers=disabled_optimizers(choice),
        )
        pieces = pieces_of(inputs, rows_at_once(session, choice))
        for _ in range(warmup + runs):
            for piece in pieces:
                session.run(None, dict(piece))
        trace = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    events = iter(_events_by_run(trace))
    batches = zip(*[events] * len(pieces), strict=True)  # as many in a row as there are pieces
    return [_folded(list(chain(*batch)), places) for batch in batches][-runs:]


def optimised_model(
    path: Path, threads: int, choice: SessionChoice | None, folder: Path
) -> onnx.ModelProto:
    """The graph that is executed, without its weights.

    Saved by a session of its own: the one that is timed must be as in serving.
    """
    saved = folder / "optimised.onnx"
    options = session_options(threads, choice)
    options.optimized_model_filepath = str(saved)
    # Weights beside the graph: nobody reads them.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", _CONSTANTS
    )
    ort.InferenceSession(
        str(path), options, providers=_PROVIDERS, disabled_optimizers=disabled_optimizers(choice)
    )
    (folder / _CONSTANTS).unlink(missing_ok=True)
    return onnx.load(saved, load_external_data=False)


def _by_name(nodes: Sequence[onnx.NodeProto]) -> dict[str, Node]:
    writers = {output: node.name for node in nodes for output in node.output}
    return {
        node.name: Node(
            kind=node.op_type,
            names=(node.name, *node.output),
            inputs=tuple(writers[name] for name in node.input if name in writers),
        )
        for node in nodes
    }


def _events_by_run(trace: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Executed nodes of each inference, in order of time."""
    nodes = [event for event in trace if event["cat"] == "Node"]
    for run in sorted((event for event in trace if _is_run(event)), key=_start):
        end = run["ts"] + run["dur"]
        yield [event for event in nodes if run["ts"] <= event["ts"] <= end]


def _is_run(event: Mapping[str, Any]) -> bool:
    return bool(event["cat"] == "Session" and event["name"] == "model_run")


def _start(event: Mapping[str, Any]) -> int:
    return int(event["ts"])


def _folded(events: list[Mapping[str, Any]], places: Mapping[str, Place | None]) -> Run:
    """Milliseconds by place, without what the profiler itself adds to every node.

    That is as much as the cheapest node of the run took: there are always some that only hand a
    tensor on with another shape.
    """
    executed = [event for event in events if event["name"].endswith(_SUFFIX)]
    own_cost = min((event["dur"] for event in executed), default=0)
    total: dict[Place | None, float] = {}
    for event in executed:
        place = places.get(event["name"].removesuffix(_SUFFIX))
        total[place] = total.get(place, 0.0) + (event["dur"] - own_cost) / 1e3
    return total
