"""A bf16 graph as one that computes in fp32 and rounds to bf16 after every node.

ONNX Runtime has no bf16 kernels for the CPU, so what a strongly typed runtime will compute is
compared with PyTorch through this. Sums are kept in fp32 until a node is done, as tensor cores do.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_BF16 = TensorProto.BFLOAT16


def rounded_to_bf16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same function of the same inputs, without a tensor that is computed in bf16.

    Args:
        proto: A graph whose inputs and outputs are not bf16.
    """
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    rounded = {
        item.name for item in inferred.value_info if item.type.tensor_type.elem_type == _BF16
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    for item in graph.initializer:
        if item.data_type == _BF16:
            numbers = numpy_helper.to_array(item).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(numbers, item.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _rounding(node) if node.output[0] in rounded else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _rounding(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """``node`` in fp32, then its output to bf16 and back."""
    output = node.output[0]
    exact, bits = f"{output}.exact", f"{output}.bits"
    computed = onnx.NodeProto()
    computed.CopyFrom(node)
    computed.output[0] = exact
    if node.op_type == "Cast":
        del computed.attribute[:]
        computed.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    return [
        computed,
        helper.make_node("Cast", [exact], [bits], name=bits, to=_BF16),
        helper.make_node("Cast", [bits], [output], name=f"{output}.rounded", to=TensorProto.FLOAT),
    ]
