"""What numbers a graph computes on real text: the smallest and largest values of its tensors.

Comes in: an fp32 graph and inputs. Goes out: extremes for each row of text, from which `lossy.py`
takes the ranges of int8 and finds what fp16 cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from cofi_deploy.errors import ExportError

Inputs = Mapping[str, npt.NDArray[Any]]

_LOG_ERRORS_ONLY = 3
_EXTREMES = ("ReduceMin", "ReduceMax")


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """Smallest and largest value of one tensor, for each input that was run.

    (inputs,); by channel (inputs, channels).
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]

    @property
    def magnitude(self) -> float:
        """Largest absolute value over all inputs."""
        return float(max(np.abs(self.low).max(), np.abs(self.high).max()))


def scan_activations(proto: onnx.ModelProto, inputs: Iterable[Inputs]) -> dict[str, Extremes]:
    """Run every input and note the extremes of each fp32 tensor that a node computes.

    Raises:
        ExportError: ONNX Runtime refuses the graph, or a value is not finite in fp32 already.
    """
    return _scan(proto, _float_tensors(proto), inputs, axes=None)


def scan_channels(
    proto: onnx.ModelProto, names: Sequence[str], inputs: Iterable[Inputs]
) -> dict[str, Extremes]:
    """Run every input and note the extremes of each channel of the tensors ``names``.

    Args:
        proto: An fp32 graph.
        names: Tensors of shape (batch, sequence, channels).
        inputs: What to run.

    Raises:
        ExportError: As in `scan_activations`.
    """
    return _scan(proto, names, inputs, axes=(0, 1))


def _scan(
    proto: onnx.ModelProto,
    names: Sequence[str],
    inputs: Iterable[Inputs],
    *,
    axes: Sequence[int] | None,
) -> dict[str, Extremes]:
    session = _session(_with_extremes(proto, names, axes))
    outputs = [f"{name}.{op}" for name in names for op in _EXTREMES]
    runs = [session.run(outputs, dict(each)) for each in inputs]
    values = [np.array(each, dtype=np.float32) for each in zip(*runs, strict=True)]
    found = {
        name: Extremes(low=values[2 * at], high=values[2 * at + 1]) for at, name in enumerate(names)
    }
    for name, extremes in found.items():
        if not np.isfinite(extremes.magnitude):
            raise ExportError(
                f"{name!r} is not finite in fp32 on real text; the model is broken, train it again"
            )
    return found


def _float_tensors(proto: onnx.ModelProto) -> list[str]:
    """Names of the fp32 tensors that nodes give, in the order of the nodes."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {
        item.name: item.type.tensor_type.elem_type
        for item in (*inferred.value_info, *inferred.output)
    }
    names = (name for node in proto.graph.node for name in node.output)
    return [name for name in names if types.get(name) == TensorProto.FLOAT]


def _with_extremes(
    proto: onnx.ModelProto, names: Iterable[str], axes: Sequence[int] | None
) -> onnx.ModelProto:
    """A copy that also gives two extremes of each tensor, so that no tensor leaves the runtime."""
    reduced: dict[str, Any] = {} if axes is None else {"axes": axes}
    shape = [] if axes is None else [None]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for name in names:
        for op in _EXTREMES:
            output = f"{name}.{op}"
            node = helper.make_node(op, [name], [output], keepdims=0, **reduced)
            copy.graph.node.append(node)
            info = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
            copy.graph.output.append(info)
    return copy


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without optimization: a tensor that is fused away has no extremes of its own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ExportError(f"ONNX Runtime does not open the graph to calibrate: {error}") from error
