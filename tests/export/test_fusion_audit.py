"""A fused attention node with another head count than its layer's answers wrongly, in silence."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import ExportError
from cofi_deploy.export.fusion_audit import check_fused_attention
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.loading import load

LAYERS = (LayerArch(heads=3, ffn=5), LayerArch(heads=0, ffn=4), LayerArch(heads=1, ffn=3))
MODULE = "encoder.layers.0.attention"


@pytest.fixture
def model(write_model):
    return load(write_model(layers=LAYERS))


def fused(model, heads: int, name: str = "Attention_0") -> onnx.ModelProto:
    """The graph with layer 0 as ONNX Runtime's optimiser would fuse it, told a head count."""
    proto = onnx_from_model(model, opset=17)
    graph = proto.graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    parts = [f"{MODULE}.{part}" for part in ("query", "key", "value")]
    # Names that say nothing of the layer, as an optimiser makes them.
    values[f"{MODULE}.key.bias"] = np.zeros_like(values[f"{MODULE}.query.bias"])
    for suffix in ("weight", "bias"):
        joined = np.concatenate([values[f"{part}.{suffix}"] for part in parts], axis=-1)
        graph.initializer.append(numpy_helper.from_array(joined, f"qkv_{suffix}"))
    mask = helper.make_node(
        "Cast", ["attention_mask"], ["mask_int32"], name="mask_int32", to=TensorProto.INT32
    )
    entering = next(node for node in graph.node if f"{MODULE}.query.weight" in node.input).input[0]
    node = helper.make_node(
        "Attention",
        [entering, "qkv_weight", "qkv_bias", "mask_int32"],
        [f"{MODULE}.context.merged"],
        name=name,
        domain="com.microsoft",
        num_heads=heads,
        scale=1.0,  # which is in the query's map
    )
    at = next(i for i, n in enumerate(graph.node) if f"{MODULE}.context.merged" in n.output)
    nodes = list(graph.node)
    nodes[at : at + 1] = [mask, node]
    del graph.node[:]
    graph.node.extend(nodes)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def logits(proto: onnx.ModelProto, inputs) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], inputs)[0]


def test_the_head_count_of_the_layer_passes(model, random_inputs):
    proto = fused(model, heads=3)
    assert check_fused_attention(proto, model.arch) == 1
    inputs = random_inputs(3, 9)
    plain = logits(onnx_from_model(model, opset=17), inputs)
    np.testing.assert_allclose(logits(proto, inputs), plain, atol=1e-4)


def test_a_planted_head_count_is_refused_though_the_runtime_answers(model, random_inputs):
    proto = fused(model, heads=4)
    inputs = random_inputs(3, 9)
    plain = logits(onnx_from_model(model, opset=17), inputs)
    assert np.abs(logits(proto, inputs) - plain).max() > 1e-3  # wrong, and no error
    words = "'Attention_0' (Attention) computes layer 0 with 4 heads, the Arch says 3"
    with pytest.raises(ExportError, match=re.escape(words)):
        check_fused_attention(proto, model.arch)


def test_a_name_that_lies_about_the_layer_does_not_help(model):
    # One head is what layer 2 has; what the node writes is layer 0's.
    proto = fused(model, heads=1, name="encoder.layers.2.attention.fused")
    with pytest.raises(ExportError, match="computes layer 0 with 1 heads, the Arch says 3"):
        check_fused_attention(proto, model.arch)


def test_a_layer_that_is_fused_twice_is_refused(model):
    proto = fused(model, heads=3)
    node = next(node for node in proto.graph.node if node.op_type == "Attention")
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name, twin.output[0] = "twin", f"{MODULE}.context.twin"
    proto.graph.node.append(twin)
    with pytest.raises(ExportError, match="layer 0 is fused twice: 'Attention_0' and 'twin'"):
        check_fused_attention(proto, model.arch)


def test_a_node_of_no_layer_is_refused(model):
    proto = fused(model, heads=3)
    node = next(node for node in proto.graph.node if node.op_type == "Attention")
    for reader in proto.graph.node:
        for at, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[at] = "elsewhere"
    node.output[0] = "nowhere"
    with pytest.raises(ExportError, match=r"'Attention_0' .* belongs to no layer of the Arch"):
        check_fused_attention(proto, model.arch)


def test_a_graph_without_fused_nodes_has_nothing_to_audit(model):
    assert check_fused_attention(onnx_from_model(model, opset=17), model.arch) == 0
