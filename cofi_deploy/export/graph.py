"""An ONNX graph written node by node from a model's Arch and weights, without tracing.

Nothing is inferred: head counts are constants of each Reshape, batch and length are copied axes
(0), a LayerNorm is one node, and every initializer carries the name of our parameter. Tracing
exporters merge equal constants under one parameter's name, compute shapes at run time and warn of
their own internals. What is written here is compared with PyTorch before it is kept; next file:
`onnx.py`.

Weights of linear maps are stored transposed, (in, out), because MatMul takes them that way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cofi_deploy.arch import Arch
from cofi_deploy.errors import ExportError
from cofi_deploy.kinds import INPUT_NAMES, TaskKind, is_per_token, output_names
from cofi_deploy.model import MASKED_SCORE, CofiPreTrainedModel

Precision = Literal["fp32", "fp16"]
Array = npt.NDArray[Any]

BATCH = "batch"
SEQUENCE = "sequence"

# Gelu became an operator of its own in this opset; before, it is written with Erf.
_GELU_OPSET = 20
_OPERATORS = {"relu": "Relu", "tanh": "Tanh"}
_PROTOBUF_LIMIT = 2**31 - 2**20  # bytes; a single-file model must stay below 2 GiB
_DTYPES: dict[Precision, Any] = {"fp32": np.float32, "fp16": np.float16}
_ONNX_TYPES: dict[Precision, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def onnx_from_model(
    model: CofiPreTrainedModel, *, opset: int, precision: Precision = "fp32"
) -> onnx.ModelProto:
    """Write the graph of ``model``.

    In fp16 the matrix products, softmax and activations are half precision; every LayerNorm and
    the task's head stay fp32 between explicit casts, as strongly typed runtimes need it. Inputs
    are int64 and outputs fp32 in either case.

    Raises:
        ExportError: An activation without a translation, or weights beyond 2 GiB.
    """
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    total = sum(array.size for array in weights.values()) * np.dtype(_DTYPES[precision]).itemsize
    if total > _PROTOBUF_LIMIT:
        raise ExportError(
            f"the weights take {total / 2**30:.2f} GiB at {precision}, but a single ONNX file "
            "holds at most 2 GiB; prune the model further or export at fp16"
        )
    graph = _Graph(weights, opset=opset, precision=precision)
    states = _encoder(graph, model.arch)
    _head(graph, states, model.arch, model.kind)
    labels = weights["classifier.weight"].shape[0]
    return _model_proto(graph, model.kind, labels)


class _Graph:
    """Collects nodes and initializers; each method returns the name of the tensor it adds."""

    def __init__(self, weights: Mapping[str, Array], *, opset: int, precision: Precision) -> None:
        self.weights = weights
        self.opset = opset
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; both are called ``name``."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer; the same name must stand for the same value."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def number(self, name: str, value: float) -> str:
        """A scalar of the graph's precision."""
        return self.constant(name, np.asarray(value, dtype=_DTYPES[self.precision]))

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A list of int64, for axes and shapes."""
        return self.constant(name, np.asarray(values, dtype=np.int64))

    def integer(self, name: str, value: int) -> str:
        """One int64."""
        return self.constant(name, np.asarray(value, dtype=np.int64))

    def parameter(self, name: str, *, transpose: bool = False, exact: bool = False) -> str:
        """A weight of the model under its own name; ``exact`` keeps fp32."""
        value = self.weights[name]
        value = value.T if transpose else value
        return self.constant(name, value.astype(np.float32 if exact else _DTYPES[self.precision]))

    def linear(self, x: str, module: str, *, exact: bool = False, output: str | None = None) -> str:
        """``x @ W.T + b`` over the last axis."""
        weight = self.parameter(f"{module}.weight", transpose=True, exact=exact)
        product = self.node("MatMul", [x, weight], f"{module}.product")
        bias = self.parameter(f"{module}.bias", exact=exact)
        return self.node("Add", [product, bias], output or f"{module}.out")

    def norm(self, x: str, module: str, eps: float) -> str:
        """LayerNorm over the last axis, always computed in fp32."""
        x = self.cast(x, "fp32", f"{module}.in_fp32")
        weight = self.parameter(f"{module}.weight", exact=True)
        bias = self.parameter(f"{module}.bias", exact=True)
        out = self.node(
            "LayerNormalization", [x, weight, bias], f"{module}.out", axis=-1, epsilon=eps
        )
        return self.cast(out, self.precision, f"{module}.out_{self.precision}")

    def cast(self, x: str, to: Precision, name: str) -> str:
        """Change the precision, in a graph that is not fp32 throughout."""
        if self.precision == "fp32":
            return x
        return self.node("Cast", [x], name, to=_ONNX_TYPES[to])


def _encoder(graph: _Graph, arch: Arch) -> str:
    x = _embeddings(graph, arch)
    bias = _attention_bias(graph)
    for index, layer in enumerate(arch.layers):
        if layer.heads:
            x = _attention(graph, x, bias, arch, index)
        if layer.ffn:
            x = _ffn(graph, x, f"encoder.layers.{index}.ffn", arch)
    return x


def _embeddings(graph: _Graph, arch: Arch) -> str:
    tables = "encoder.embeddings"
    x = graph.node(
        "Gather", [graph.parameter(f"{tables}.word.weight"), "input_ids"], f"{tables}.words"
    )
    rows = graph.parameter(f"{tables}.position.weight")
    if arch.type_vocab_size > 1:
        table = graph.parameter(f"{tables}.token_type.weight")
        types = graph.node("Gather", [table, "token_type_ids"], f"{tables}.types")
        x = graph.node("Add", [x, types], f"{tables}.words_and_types")
    elif arch.type_vocab_size == 1:
        # A sum of two constants, which runtimes work out when they open the file.
        row = graph.parameter(f"{tables}.token_type.weight")  # (1, width)
        rows = graph.node("Add", [rows, row], f"{tables}.positions_and_type")
    x = graph.node("Add", [x, _positions(graph, rows, arch)], f"{tables}.sum")
    x = graph.norm(x, f"{tables}.norm", arch.layer_norm_eps)
    return x if arch.embedding is None else graph.linear(x, f"{tables}.project")


def _positions(graph: _Graph, table: str, arch: Arch) -> str:
    """Rows of the position table, as `embeddings.position_ids` numbers them."""
    name = "encoder.embeddings.positions"
    if not arch.position_offset:
        length = graph.node("Shape", ["input_ids"], "length", start=1, end=2)  # (1,)
        zero = graph.integers("zero", [0])
        return graph.node("Slice", [table, zero, length, zero], name)  # (sequence, width)
    padding = graph.integer("padding", arch.position_offset - 1)
    is_padding = graph.node("Equal", ["input_ids", padding], f"{name}.is_padding")
    is_token = graph.node("Not", [is_padding], f"{name}.is_token")
    counted = graph.node("Cast", [is_token], f"{name}.counted", to=TensorProto.INT64)
    number = graph.node("CumSum", [counted, graph.integer("axis_one", 1)], f"{name}.number")
    number = graph.node("Mul", [number, counted], f"{name}.number_of_tokens")
    rows = graph.node("Add", [number, padding], f"{name}.rows")  # (batch, sequence)
    return graph.node("Gather", [table, rows], name)  # (batch, sequence, width)


def _attention_bias(graph: _Graph) -> str:
    """0 for tokens, a large negative number for padding: (batch, 1, 1, sequence)."""
    mask = graph.node(
        "Unsqueeze", ["attention_mask", graph.integers("mask_axes", [1, 2])], "mask.expanded"
    )
    mask = graph.node("Cast", [mask], "mask.number", to=_ONNX_TYPES[graph.precision])
    padding = graph.node("Sub", [graph.number("one", 1.0), mask], "mask.padding")
    return graph.node("Mul", [padding, graph.number("masked_score", MASKED_SCORE)], "mask.bias")


def _attention(graph: _Graph, x: str, bias: str, arch: Arch, index: int) -> str:
    module = f"encoder.layers.{index}.attention"
    heads, size = arch.layers[index].heads, arch.head_size
    split = graph.integers(f"split_{heads}_heads", [0, 0, heads, size])
    merge = graph.integers(f"merge_{heads}_heads", [0, 0, heads * size])

    def heads_of(name: str, states: str, perm: Sequence[int]) -> str:
        states = graph.node("Reshape", [states, split], f"{module}.{name}.split")
        return graph.node("Transpose", [states], f"{module}.{name}.heads", perm=perm)

    scale = graph.number("query_scale", 1.0 / math.sqrt(size))
    query = graph.linear(x, f"{module}.query")
    # Scaling the query before the product lets TensorRT find its fused attention kernel.
    query = graph.node("Mul", [query, scale], f"{module}.query.scaled")
    query = heads_of("query", query, (0, 2, 1, 3))  # (batch, heads, sequence, head_size)
    key = heads_of("key", graph.linear(x, f"{module}.key"), (0, 2, 3, 1))
    value = heads_of("value", graph.linear(x, f"{module}.value"), (0, 2, 1, 3))
    scores = graph.node("MatMul", [query, key], f"{module}.scores")
    scores = graph.node("Add", [scores, bias], f"{module}.scores.masked")
    weights = graph.node("Softmax", [scores], f"{module}.weights", axis=-1)
    context = graph.node("MatMul", [weights, value], f"{module}.context")
    context = graph.node("Transpose", [context], f"{module}.context.rows", perm=(0, 2, 1, 3))
    context = graph.node("Reshape", [context, merge], f"{module}.context.merged")
    out = graph.linear(context, f"{module}.output")
    out = graph.node("Add", [out, x], f"{module}.residual")
    return graph.norm(out, f"{module}.norm", arch.layer_norm_eps)


def _ffn(graph: _Graph, x: str, module: str, arch: Arch) -> str:
    inner = graph.linear(x, f"{module}.up")
    inner = _activation(graph, inner, f"{module}.activation", arch.activation, graph.precision)
    out = graph.linear(inner, f"{module}.down")
    out = graph.node("Add", [out, x], f"{module}.residual")
    return graph.norm(out, f"{module}.norm", arch.layer_norm_eps)


def _activation(graph: _Graph, x: str, name: str, activation: str, precision: Precision) -> str:
    """``precision`` is that of ``x``."""
    if activation == "gelu":
        return _gelu(graph, x, name, precision)
    if activation in _OPERATORS:
        return graph.node(_OPERATORS[activation], [x], name)
    if activation == "silu":
        return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)
    raise ExportError(
        f"activation {activation!r} has no ONNX translation, allowed: gelu, relu, silu, tanh"
    )


def _gelu(graph: _Graph, x: str, name: str, precision: Precision) -> str:
    """The exact Gelu; below opset 20 in the order of operations that runtimes fuse."""
    if graph.opset >= _GELU_OPSET:
        return graph.node("Gelu", [x], name)

    def number(word: str, value: float) -> str:
        stem = word if precision == graph.precision else f"{word}.{precision}"
        return graph.constant(stem, np.asarray(value, dtype=_DTYPES[precision]))

    inner = graph.node("Div", [x, number("sqrt_two", math.sqrt(2.0))], f"{name}.divided")
    inner = graph.node("Erf", [inner], f"{name}.erf")
    inner = graph.node("Add", [inner, number("one", 1.0)], f"{name}.shifted")
    inner = graph.node("Mul", [x, inner], f"{name}.product")
    return graph.node("Mul", [inner, number("half", 0.5)], name)


def _head(graph: _Graph, x: str, arch: Arch, kind: TaskKind) -> None:
    x = graph.cast(x, "fp32", "head.in_fp32")
    if not is_per_token(kind):
        if arch.pooler is None:
            raise ExportError("a classifier needs an Arch with a pooler, got pooler None")
        first = graph.integer("first", 0)
        x = graph.node("Gather", [x, first], "pooler.token", axis=1)  # (batch, hidden)
        x = graph.linear(x, "pooler", exact=True)
        x = _activation(graph, x, "pooler.activation", arch.pooler_activation, "fp32")
    if kind != "question-answering":
        graph.linear(x, "classifier", exact=True, output="logits")
        return
    logits = graph.linear(x, "classifier", exact=True)
    for index, name in enumerate(output_names(kind)):
        place = graph.integer(f"{name}.place", index)
        graph.node("Gather", [logits, place], name, axis=2)  # (batch, sequence)


def _model_proto(graph: _Graph, kind: TaskKind, labels: int) -> onnx.ModelProto:
    shapes: dict[TaskKind, list[str | int]] = {
        "text-classification": [BATCH, labels],
        "text-regression": [BATCH, labels],
        "token-classification": [BATCH, SEQUENCE, labels],
        "question-answering": [BATCH, SEQUENCE],
    }
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH, SEQUENCE])
        for name in INPUT_NAMES
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[kind])
        for name in output_names(kind)
    ]
    proto = helper.make_graph(
        graph.nodes,
        "cofi_deploy",
        inputs,
        outputs,
        initializer=list(graph.initializers.values()),
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(proto, opset_imports=opsets, producer_name="cofi-deploy")
    model.ir_version = helper.find_min_ir_version_for(opsets)
    return model
