"""An ONNX graph written node by node from a model's Arch and weights, without tracing.

Nothing is inferred: head counts are constants of each Reshape, batch and length are copied axes
(0), a LayerNorm is one node, and every initializer carries the name of our parameter. Tracing
exporters merge equal constants under one parameter's name, compute shapes at run time and warn of
their own internals. What is written here is compared with PyTorch before it is kept; next file:
`onnx.py`. How numbers are stored and converted is the business of `graph_builder.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from cofi_deploy.arch import Arch
from cofi_deploy.encoder import MASKED_SCORE
from cofi_deploy.errors import ExportError
from cofi_deploy.export.centring import centred
from cofi_deploy.export.fewer_operations import with_fewer_operations
from cofi_deploy.export.graph_builder import GraphBuilder, Pick
from cofi_deploy.export.numerics import FP32, Numerics, Precision
from cofi_deploy.export.quantized import Array
from cofi_deploy.kinds import INPUT_NAMES, TaskKind, is_per_token, output_names
from cofi_deploy.model import CofiPreTrainedModel

BATCH = "batch"
SEQUENCE = "sequence"

# Gelu became an operator of its own in this opset; before, it is written with Erf.
_GELU_OPSET = 20
_OPERATORS = {"relu": "Relu", "tanh": "Tanh"}
_PROTOBUF_LIMIT = 2**31 - 2**20  # bytes; a single-file model must stay below 2 GiB
_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


def onnx_from_model(
    model: CofiPreTrainedModel, *, opset: int, numerics: Numerics = FP32, one_text: bool = False
) -> onnx.ModelProto:
    """Write the graph of ``model``.

    Where precisions meet there are explicit casts, as strongly typed runtimes need them. Inputs
    are int64 and outputs fp32 in all of them.

    Args:
        model: Encoder and head.
        opset: ONNX operator set.
        numerics: In which numbers.
        one_text: Fix the batch to 1. States are then matrices (sequence, hidden), so that a
            product takes its bias and its residual in, and heads are apart without a copy.

    Raises:
        ExportError: An activation without a translation, or weights beyond 2 GiB.
    """
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    _check_size(weights, numerics.precision)
    weights = centred(weights, model.arch, numerics.centres)
    weights = with_fewer_operations(weights, model.arch, merge_biases=numerics.merge_biases)
    graph = GraphBuilder(weights, opset=opset, numerics=numerics, one_text=one_text)
    states = _encoder(graph, model.arch, model.kind)
    _head(graph, states, model.arch, model.kind)
    labels = weights["classifier.weight"].shape[0]
    return _model_proto(graph, model.kind, labels)


def _check_size(weights: Mapping[str, Array], precision: Precision) -> None:
    total = sum(array.size for array in weights.values()) * _BYTES[precision]
    if total > _PROTOBUF_LIMIT:
        raise ExportError(
            f"the weights take {total / 2**30:.2f} GiB at {precision}, but a single ONNX file "
            "holds at most 2 GiB; prune the model further or export at fp16"
        )


def _encoder(graph: GraphBuilder, arch: Arch, kind: TaskKind) -> str:
    """States of the tokens that the head reads: (batch, tokens, hidden), of one text as `_rows`."""
    x = _embeddings(graph, arch)
    with graph.sublayer("mask"):
        bias = _attention_bias(graph)
    last = attention_of_first_token(arch, kind)
    if last == -1:
        x = _first_token(graph, x, "encoder.embeddings")
    for index, layer in enumerate(arch.layers):
        module = f"encoder.layers.{index}"
        if layer.heads:
            with graph.sublayer(f"{module}.attention"):
                x, bias_in = graph.enter(x), graph.enter(bias)
                attention = _attention_of_first_token if index == last else _attention
                x = attention(graph, x, bias_in, arch, index)
        if layer.ffn:
            with graph.sublayer(f"{module}.ffn"):
                x = _ffn(graph, graph.enter(x), f"{module}.ffn", arch)
    return x


def attention_of_first_token(arch: Arch, kind: TaskKind) -> int | None:
    """Index of the layer from whose attention on the first token alone is computed.

    What follows the last attention is computed token by token, and a pooler reads the first token
    alone: at 95 %, where few sublayers are left, this is a quarter to a third of the work. -1: from
    the embeddings on, there is no attention. None: the head reads every token.
    """
    return None if is_per_token(kind) else arch.last_attention


def _first_token(graph: GraphBuilder, x: str, module: str) -> str:
    """(batch, sequence, hidden) -> (batch, 1, hidden), in a graph of one text (1, hidden)."""
    first = graph.integers("first_token", [0])
    return graph.node(
        "Gather", [x, first], f"{module}.first_token", axis=0 if graph.one_text else 1
    )


def _rows(graph: GraphBuilder, x: str, name: str) -> str:
    """In a graph of one text (1, sequence, width) -> (sequence, width)."""
    if not graph.one_text:
        return x
    return graph.node("Squeeze", [x, graph.integers("batch_axis", [0])], name)


def _batch(graph: GraphBuilder, x: str, name: str) -> str:
    """In a graph of one text (sequence, width) -> (1, sequence, width)."""
    if not graph.one_text:
        return x
    return graph.node("Unsqueeze", [x, graph.integers("batch_axis", [0])], name)


def _embeddings(graph: GraphBuilder, arch: Arch) -> str:
    tables = "encoder.embeddings"
    with graph.sublayer(tables):
        x = graph.rows(
            f"{tables}.word.weight",
            _gather(graph, "input_ids"),
            f"{tables}.words",
            pick_up_to=lambda last: _gather(graph, _up_to(graph, "input_ids", last)),
        )
        if graph.numerics.joins_tables and arch.type_vocab_size > 1 and not arch.position_offset:
            places = _types_and_positions(graph, arch)
        else:
            if arch.type_vocab_size > 1:
                pick = _gather(graph, "token_type_ids")
                types = graph.rows(f"{tables}.token_type.weight", pick, f"{tables}.types")
                x = graph.node("Add", [x, types], f"{tables}.words_and_types")
            places = graph.rows(
                f"{tables}.position.weight",
                _pick_positions(graph, arch),
                f"{tables}.positions",
                plus=f"{tables}.token_type.weight" if arch.type_vocab_size == 1 else None,
            )
        x = graph.node("Add", [x, places], f"{tables}.sum")  # (batch, sequence, width)
        x = graph.norm(x, f"{tables}.norm", arch.layer_norm_eps)
        x = _rows(graph, x, f"{tables}.rows")
    if arch.embedding is None:
        return x
    with graph.sublayer(f"{tables}.project"):
        return graph.leave(graph.linear(graph.enter(x), f"{tables}.project"))


def _types_and_positions(graph: GraphBuilder, arch: Arch) -> str:
    """Rows of a table that has every sum of a type and a position: (batch, sequence, width).

    The runtime makes the table when it opens the file, and saves an addition for every token.
    """
    name, rows = "encoder.embeddings.places", arch.position_rows
    types = graph.node(
        "Unsqueeze",
        [graph.parameter("encoder.embeddings.token_type.weight"), graph.integers("one_axis", [1])],
        f"{name}.types",
    )
    positions = graph.parameter("encoder.embeddings.position.weight")
    table = graph.node("Add", [types, positions], f"{name}.by_type")
    shape = graph.integers(f"{name}.shape", [arch.type_vocab_size * rows, arch.embedding_width])
    table = graph.node("Reshape", [table, shape], f"{name}.table")
    start = graph.node(
        "Mul", ["token_type_ids", graph.integer(f"{name}.of_a_type", rows)], f"{name}.first"
    )
    number = _up_to_length(
        graph, graph.integers(f"{name}.numbers", range(rows)), f"{name}.position"
    )
    ids = graph.node("Add", [start, number], f"{name}.ids")
    return graph.node("Gather", [table, ids], name)


def _up_to_length(graph: GraphBuilder, table: str, output: str) -> str:
    """As many rows of a table as texts have tokens."""
    length = graph.once("Shape", ["input_ids"], "length", start=1, end=2)  # (1,)
    zero = graph.integers("zero", [0])
    return graph.node("Slice", [table, zero, length, zero], output)


def _gather(graph: GraphBuilder, ids: str) -> Pick:
    return lambda table, output: graph.node("Gather", [table, ids], output)


def _up_to(graph: GraphBuilder, ids: str, last: int) -> str:
    return graph.node("Min", [ids, graph.integer(f"{ids}.last", last)], f"{ids}.up_to_last")


def _pick_positions(graph: GraphBuilder, arch: Arch) -> Pick:
    """Takes the rows of the position table that `embeddings.position_ids` numbers.

    Gives (sequence, width) where all texts of a batch have the same, else (batch, sequence, width).
    """
    name = "encoder.embeddings.positions"
    if not arch.position_offset:
        return lambda table, output: _up_to_length(graph, table, output)
    padding = graph.integer("padding", arch.position_offset - 1)
    is_padding = graph.node("Equal", ["input_ids", padding], f"{name}.is_padding")
    is_token = graph.node("Not", [is_padding], f"{name}.is_token")
    counted = graph.node("Cast", [is_token], f"{name}.counted", to=TensorProto.INT64)
    number = graph.node("CumSum", [counted, graph.integer("axis_one", 1)], f"{name}.number")
    number = graph.node("Mul", [number, counted], f"{name}.number_of_tokens")
    rows = graph.node("Add", [number, padding], f"{name}.rows")  # (batch, sequence)
    return _gather(graph, rows)


def _attention_bias(graph: GraphBuilder) -> str:
    """0 for tokens, a large negative number for padding: (batch, 1, 1, sequence)."""
    mask = graph.node(
        "Unsqueeze", ["attention_mask", graph.integers("mask_axes", [1, 2])], "mask.expanded"
    )
    mask = graph.to_usual(mask, "mask.number")
    padding = graph.node("Sub", [graph.number("one", 1.0), mask], "mask.padding")
    return graph.node("Mul", [padding, graph.number("masked_score", MASKED_SCORE)], "mask.bias")


class _Axes(NamedTuple):
    """How attention takes states apart by head and puts them together.

    Attributes:
        of_states: Sizes before those of a head and its units; 0: as it was.
        by_head: Axes of that as (batch, heads, sequence).
        by_sequence: Axes of (batch, heads, sequence) with the heads last.
        of_rows: Sizes before that of the states; 0: as it was.
    """

    of_states: tuple[int, ...]
    by_head: tuple[int, int, int]
    by_sequence: tuple[int, int, int]
    of_rows: tuple[int, ...]


_BATCH_FIRST = _Axes(of_states=(0, 0), by_head=(0, 2, 1), by_sequence=(0, 2, 1), of_rows=(0, 0))
# Costs one text nothing, and ONNX Runtime's products then read the heads where they lie.
_SEQUENCE_FIRST = _Axes(of_states=(0, 1), by_head=(1, 2, 0), by_sequence=(2, 0, 1), of_rows=(0,))


def _attention(graph: GraphBuilder, x: str, bias: str, arch: Arch, index: int) -> str:
    """Attention of every token to all, with residual and LayerNorm."""
    module = f"encoder.layers.{index}.attention"
    heads, size = arch.layers[index].heads, arch.head_size
    axes = _SEQUENCE_FIRST if graph.one_text else _BATCH_FIRST
    split = graph.integers(f"split_{heads}_heads", [*axes.of_states, heads, size])
    merge = graph.integers(f"merge_{heads}_heads", [*axes.of_rows, heads * size])

    def heads_of(name: str, states: str, perm: Sequence[int]) -> str:
        states = graph.node("Reshape", [states, split], f"{module}.{name}.split")
        return graph.node("Transpose", [states], f"{module}.{name}.heads", perm=perm)

    query = heads_of("query", graph.linear(x, f"{module}.query"), (*axes.by_head, 3))
    key = heads_of("key", graph.linear(x, f"{module}.key"), (*axes.by_head[:2], 3, axes.by_head[2]))
    value = heads_of("value", graph.linear(x, f"{module}.value"), (*axes.by_head, 3))
    scores = graph.node("MatMul", [query, key], f"{module}.scores")
    scores = graph.node("Add", [scores, bias], f"{module}.scores.masked")
    weights = graph.softmax(scores, f"{module}.weights")
    context = graph.node("MatMul", [weights, value], f"{module}.context")
    rows = (*axes.by_sequence, 3)
    context = graph.node("Transpose", [context], f"{module}.context.rows", perm=rows)
    context = graph.node("Reshape", [context, merge], f"{module}.context.merged")
    return _attention_output(graph, context, x, module, arch)


def _attention_of_first_token(
    graph: GraphBuilder, x: str, bias: str, arch: Arch, index: int
) -> str:
    """Attention of the first token to all, without keys and values; gives what `_first_token` does.

    One query for each head leaves little to share: instead of a key for every token, the query
    goes through the key's matrix, ``q (W x) = (q W) x``; instead of a value for every token, the
    mean of the tokens goes through the value's, whose bias is added once: weights sum up to 1.

    Source:
        DeepSeek-AI 2024, DeepSeek-V2 (arXiv:2405.04434), section 2.1: maps of keys and values
        absorbed by those of queries and outputs. There it saves a cache.
    """
    module = f"encoder.layers.{index}.attention"
    heads, size = arch.layers[index].heads, arch.head_size
    asking = _first_token(graph, x, module)
    texts = _batch(graph, x, f"{module}.text")
    by_head = graph.integers(f"first_token_{heads}_heads", [0, heads, size])
    width = [0, heads * size] if graph.one_text else [0, 1, heads * size]
    in_one = graph.integers(f"first_token_merge_{heads}_heads", width)

    def swapped(states: str, name: str) -> str:
        """(batch, heads, ...) -> (heads, batch, ...) and back."""
        return graph.node("Transpose", [states], name, perm=(1, 0, 2))

    query = graph.linear(asking, f"{module}.query")
    query = graph.node("Reshape", [query, by_head], f"{module}.query.split")
    query = swapped(query, f"{module}.query.heads")  # (heads, batch, head_size)
    query = graph.by_head(query, f"{module}.key", heads, into="inputs")
    query = swapped(query, f"{module}.key.query")  # (batch, heads, hidden)
    states = graph.node("Transpose", [texts], f"{module}.states", perm=(0, 2, 1))
    scores = graph.node("MatMul", [query, states], f"{module}.scores")
    bias = graph.node("Squeeze", [bias, graph.integers("second_axis", [2])], f"{module}.mask")
    scores = graph.node("Add", [scores, bias], f"{module}.scores.masked")
    weights = graph.softmax(scores, f"{module}.weights")  # (batch, heads, sequence)
    context = graph.node("MatMul", [weights, texts], f"{module}.context")
    context = swapped(context, f"{module}.context.heads")  # (heads, batch, hidden)
    context = graph.by_head(context, f"{module}.value", heads, into="outputs")
    context = swapped(context, f"{module}.context.rows")  # (batch, heads, head_size)
    context = graph.node("Reshape", [context, in_one], f"{module}.context.merged")
    context = graph.plus_bias(context, f"{module}.value")
    return _attention_output(graph, context, asking, module, arch)


def _attention_output(graph: GraphBuilder, context: str, x: str, module: str, arch: Arch) -> str:
    out = graph.linear_and_sum(context, f"{module}.output", x, f"{module}.residual")
    return graph.norm(out, f"{module}.norm", arch.layer_norm_eps)


def _ffn(graph: GraphBuilder, x: str, module: str, arch: Arch) -> str:
    inner = graph.linear(x, f"{module}.up")
    inner = _activation(graph, inner, f"{module}.activation", arch.activation)
    out = graph.linear_and_sum(inner, f"{module}.down", x, f"{module}.residual")
    return graph.norm(out, f"{module}.norm", arch.layer_norm_eps)


def _activation(graph: GraphBuilder, x: str, name: str, activation: str) -> str:
    if activation == "gelu":
        return _gelu(graph, x, name)
    if activation in _OPERATORS:
        return graph.node(_OPERATORS[activation], [x], name)
    if activation == "silu":
        return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)
    raise ExportError(
        f"activation {activation!r} has no ONNX translation, allowed: gelu, relu, silu, tanh"
    )


def _gelu(graph: GraphBuilder, x: str, name: str) -> str:
    """The exact Gelu; below opset 20 in the order of operations that runtimes fuse."""
    if graph.opset >= _GELU_OPSET:
        return graph.node("Gelu", [x], name)
    inner = graph.node("Div", [x, graph.number("sqrt_two", math.sqrt(2.0))], f"{name}.divided")
    inner = graph.node("Erf", [inner], f"{name}.erf")
    inner = graph.node("Add", [inner, graph.number("one", 1.0)], f"{name}.shifted")
    inner = graph.node("Mul", [x, inner], f"{name}.product")
    return graph.node("Mul", [inner, graph.number("half", 0.5)], name)


def _head(graph: GraphBuilder, x: str, arch: Arch, kind: TaskKind) -> None:
    with graph.sublayer("head"), graph.in_fp32():
        x = graph.enter(x)
        if not is_per_token(kind):
            graph.linear(_pooler(graph, x, arch), "classifier", output="logits")
            return
        if kind != "question-answering":
            name = "logits.rows" if graph.one_text else "logits"
            _batch(graph, graph.linear(x, "classifier", output=name), "logits")
            return
        logits = _batch(graph, graph.linear(x, "classifier"), "classifier.logits")
        for index, name in enumerate(output_names(kind)):
            place = graph.integer(f"{name}.place", index)
            graph.node("Gather", [logits, place], name, axis=2)  # (batch, sequence)


def _pooler(graph: GraphBuilder, x: str, arch: Arch) -> str:
    if arch.pooler is None:
        raise ExportError("a classifier needs an Arch with a pooler, got pooler None")
    if not graph.one_text:  # whose states are (1, hidden) here
        x = graph.node("Gather", [x, graph.integer("first", 0)], "pooler.token", axis=1)
    return _activation(
        graph, graph.linear(x, "pooler"), "pooler.activation", arch.pooler_activation
    )


def _model_proto(graph: GraphBuilder, kind: TaskKind, labels: int) -> onnx.ModelProto:
    batch = 1 if graph.one_text else BATCH
    shapes: dict[TaskKind, list[str | int]] = {
        "text-classification": [batch, labels],
        "text-regression": [batch, labels],
        "token-classification": [batch, SEQUENCE, labels],
        "question-answering": [batch, SEQUENCE],
    }
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [batch, SEQUENCE])
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
