"""What `export --tune` tries: graphs of a model, then ways of opening the fastest of them.

Comes in: a runtime, the machine, what there is to judge by. Goes out: `Candidate`s from the
simplest on, which is the order that decides between equals. Nothing is built or timed here; next
file: `cofi_deploy/api/tuning.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cofi_deploy.export.numerics import Precision
from cofi_deploy.export.onnx import Opened, write_onnx_directory
from cofi_deploy.export.openvino import write_openvino_directory
from cofi_deploy.exports import DEFAULT_OPSET, SessionChoice

TUNED_RUNTIMES = {"onnxruntime-cpu": "onnx", "openvino": "openvino"}

_GELU_OPSET = 20
# What ONNX Runtime's session makes of these graphs by itself, by kind. Its fused operators are not
# always the faster ones: on thin layers they were seen to cost 25 to 40 %.
_FUSIONS = {
    "LayerNorm": ("SkipLayerNormFusion",),
    "Gelu": ("BiasGeluFusion", "GeluFusion"),
    "attention": ("AttentionFusion",),
}


# ONNX Runtime computes one operation for all rows, then the next: of a thin model the states of
# 4,096 tokens leave the caches between two, those of 1,024 do not.
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a search needs to know of the processor."""

    cores: int
    logical_cores: int
    has_bf16: bool


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way of running the model.

    Attributes:
        name: What is told of it; the first candidate is ``default``.
        precision: Of the graph.
        opset: Of an ONNX graph.
        shape: The one (batch, length) of an OpenVINO graph; None for any.
        one_text: Whether an ONNX graph has its batch fixed to 1.
        threads: None means the physical cores.
        settings: See `exports.SessionChoice`.
    """

    name: str
    precision: Precision = "fp32"
    opset: int = DEFAULT_OPSET
    shape: tuple[int, int] | None = None
    one_text: bool = False
    threads: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def session(self, runtime: str) -> SessionChoice:
        """What `export.json` says of it."""
        return SessionChoice(runtime=runtime, threads=self.threads, settings=dict(self.settings))

    @property
    def restriction(self) -> str | None:
        """What the graph cannot do, and the flags that allow it; None where it takes any shape."""
        if self.one_text:
            return "it computes one text at a time; allow it with --batch-size 1"
        if self.shape is None:
            return None
        batch, length = self.shape
        return (
            f"it takes no longer texts and pads all others; allow it with --batch-size {batch} "
            f"--seq-len {length}"
        )


def graphs_for(runtime: str, machine: Machine, shape: tuple[int, int]) -> list[Candidate]:
    """Graphs to write, default first, lossy after exact, one shape after any.

    Args:
        runtime: One of `TUNED_RUNTIMES`.
        machine: Where they will run.
        shape: (batch, length) of graphs that compute no other.
    """
    if runtime == "onnxruntime-cpu":
        one_text = [Candidate(name="one text at a time", one_text=True)] if shape[0] == 1 else []
        return [
            Candidate(name="default"),
            Candidate(name="Gelu as one node", opset=_GELU_OPSET),
            *one_text,
            Candidate(name="int8", precision="int8"),
        ]
    found = [Candidate(name="default")]
    if machine.has_bf16:
        found.append(Candidate(name="bf16", precision="bf16"))
    found.append(Candidate(name="int8", precision="int8"))
    if machine.has_bf16:
        settings = {"INFERENCE_PRECISION_HINT": "bf16"}
        found.append(Candidate(name="int8, else bf16", precision="int8", settings=settings))
    fixed = f"one shape, {shape[0]}x{shape[1]}"
    return found + [
        replace(each, name=fixed if index == 0 else f"{each.name}; {fixed}", shape=shape)
        for index, each in enumerate(found)
    ]


def sessions_for(
    runtime: str, graph: Candidate, machine: Machine, shape: tuple[int, int]
) -> list[Candidate]:
    """Ways of opening ``graph``, one change each, in the order in which they are preferred."""
    batch, length = shape
    changes = dict(_threads(machine))
    if runtime == "onnxruntime-cpu":
        changes |= _onnxruntime_changes()
        if (rows := max(1, _TOKENS_AT_ONCE // length)) < batch:
            changes[f"{rows} rows at once"] = (None, {"rows_at_once": rows})
    else:
        changes |= _openvino_changes(machine, 1 if graph.shape else batch)
    return [
        _changed(graph, name, threads, settings) for name, (threads, settings) in changes.items()
    ]


def combined(graph: Candidate, changes: Sequence[Candidate]) -> Candidate:
    """``graph`` with several changes at once; a later one overrules an earlier one."""
    found = graph
    for change in changes:
        name = change.name.removeprefix(f"{graph.name}; ")
        settings = {k: v for k, v in change.settings.items() if k not in graph.settings}
        found = _changed(found, name, change.threads, _merged(found.settings, settings))
    return found


def build(opened: Opened, output: Path, candidate: Candidate, runtime: str) -> Path:
    """Write the graph of a candidate, compared with PyTorch as every export is.

    Raises:
        ExportError: It answers otherwise than the precision explains.
    """
    if runtime == "onnxruntime-cpu":
        return write_onnx_directory(
            opened,
            output,
            opset=candidate.opset,
            precision=candidate.precision,
            one_text=candidate.one_text,
        )
    return write_openvino_directory(
        opened, output, precision=candidate.precision, shape=candidate.shape
    )


def _threads(machine: Machine) -> Iterator[tuple[str, tuple[int | None, Mapping[str, Any]]]]:
    for count in sorted({1, machine.cores // 2} - {0, machine.cores}, reverse=True):
        yield f"threads {count}", (count, {})


def _openvino_changes(
    machine: Machine, batch: int
) -> Iterator[tuple[str, tuple[int | None, Mapping[str, Any]]]]:
    if machine.logical_cores > machine.cores:
        yield "hyper-threads", (machine.logical_cores, {"ENABLE_HYPER_THREADING": True})
    for count in sorted({2, machine.cores}):
        if count <= min(batch, machine.cores):
            yield f"streams {count}", (None, {"NUM_STREAMS": count})


def _onnxruntime_changes() -> dict[str, tuple[int | None, Mapping[str, Any]]]:
    changes: dict[str, tuple[int | None, Mapping[str, Any]]] = {
        "threads do not spin": (None, {"session.intra_op.allow_spinning": "0"}),
        "denormals are zero": (None, {"session.set_denormal_as_zero": "1"}),
        "no memory pattern": (None, {"enable_mem_pattern": False}),
        "basic optimisations": (None, {"graph_optimization_level": "ORT_ENABLE_BASIC"}),
        "extended optimisations": (None, {"graph_optimization_level": "ORT_ENABLE_EXTENDED"}),
    }
    for kind, optimizers in _FUSIONS.items():
        changes[f"{kind} not fused"] = (None, {"disabled_optimizers": list(optimizers)})
    return changes


def _changed(
    graph: Candidate, name: str, threads: int | None, settings: Mapping[str, Any]
) -> Candidate:
    return replace(
        graph,
        name=f"{graph.name}; {name}",
        threads=graph.threads if threads is None else threads,
        settings={**graph.settings, **settings},
    )


def _merged(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of what is left out are joined."""
    return {
        name: [*before.get(name, []), *value] if isinstance(value, list) else value
        for name, value in more.items()
    }
