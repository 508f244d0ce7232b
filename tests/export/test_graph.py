"""The graph writer's limits; what it writes is tested through `test_onnx.py`."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import ExportError
from cofi_deploy.export import graph
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.loading import load


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("opset", [17, 20])
def test_every_activation_of_the_model_is_translated(activation, opset, write_model, random_inputs):
    model = load(write_model(activation=activation))
    proto = onnx_from_model(model, opset=opset)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = random_inputs(2, 11)
    with torch.inference_mode():
        expected = model.outputs({k: torch.from_numpy(v) for k, v in inputs.items()})["logits"]
    np.testing.assert_allclose(session.run(None, inputs)[0], expected.numpy(), atol=2e-5)


def test_an_activation_without_translation_names_those_that_have_one(write_model):
    model = load(write_model())
    object.__setattr__(model.arch, "activation", "gelu_new")
    words = "activation 'gelu_new' has no ONNX translation, allowed: gelu, relu, silu"
    with pytest.raises(ExportError, match=re.escape(words)):
        onnx_from_model(model, opset=17)


def test_a_classifier_without_pooler_is_refused(write_model):
    model = load(write_model())
    object.__setattr__(model.arch, "pooler", None)
    with pytest.raises(ExportError, match="needs an Arch with a pooler, got pooler None"):
        onnx_from_model(model, opset=17)


def test_weights_beyond_two_gib_are_refused_before_anything_is_built(write_model, monkeypatch):
    monkeypatch.setattr(graph, "_PROTOBUF_LIMIT", 1000)
    with pytest.raises(ExportError, match=r"take 0\.00 GiB at fp32, but a single ONNX file"):
        onnx_from_model(load(write_model()), opset=17)


def test_initializers_carry_the_names_of_our_parameters(write_model):
    model = load(write_model())
    proto = onnx_from_model(model, opset=17)
    expected = {name: tensor.numpy().T for name, tensor in model.state_dict().items()}
    for layer in (1, 2):
        attention = f"encoder.layers.{layer}.attention"
        expected[f"{attention}.query.weight"] /= np.sqrt(np.float32(8.0))
        expected[f"{attention}.query.bias"] /= np.sqrt(np.float32(8.0))
        del expected[f"{attention}.key.bias"]
    # Of the last attention each head has matrices of its own: of the key's map the transpose.
    by_head = expected[f"{attention}.key.weight"].T.reshape(3, 8, model.arch.hidden)
    expected[f"{attention}.key.weight"] = by_head
    by_head = expected[f"{attention}.value.weight"].T.reshape(3, 8, model.arch.hidden)
    expected[f"{attention}.value.weight"] = by_head.transpose(0, 2, 1)
    got = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    assert set(expected) <= set(got)
    assert f"{attention}.key.bias" not in got
    for name, array in expected.items():
        if not name.startswith("encoder.embeddings"):
            np.testing.assert_allclose(got[name], array, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_node_is_named_for_the_sublayer_that_asks_for_it(precision, write_model):
    model = load(write_model())
    maps = {"encoder.layers.2.attention.query": None, "encoder.layers.1.attention.key": (-1.0, 1.0)}
    listed = frozenset({"encoder.layers.2.ffn"})
    numerics = Numerics(
        precision=precision,
        int8=maps if precision == "int8" else {},
        fp32_sublayers=listed if precision == "fp16" else frozenset(),
    )
    nodes = onnx_from_model(model, opset=17, numerics=numerics).graph.node
    places = ("encoder.embeddings", "encoder.layers.", "mask", "head")
    assert [node.name for node in nodes if not node.name.startswith(places)] == []
    names = {node.name for node in nodes}
    assert len(names) == len(nodes)
    handed_over = {
        "fp32": "head/pooler.product",
        "fp16": "encoder.layers.2.ffn/encoder.layers.2.attention.norm.out_fp16.fp32",
        "int8": "encoder.layers.1.attention/encoder.layers.0.ffn.norm.out.uint8",
    }
    assert handed_over[precision] in names


def shapes_of(proto: onnx.ModelProto) -> dict[str, list[str | int]]:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    return {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in inferred.graph.value_info
    }


def test_behind_the_last_attention_only_the_token_that_is_read_is_computed(write_model):
    # Layers: FFN alone, one head alone, three heads and FFN.
    shapes = shapes_of(onnx_from_model(load(write_model()), opset=17))
    assert shapes["encoder.layers.1.attention.norm.out"][1] != 1
    # (heads, batch, ...): neither keys nor values have an axis of tokens.
    hidden, head_size = 29, 8
    assert shapes["encoder.layers.2.attention.key.product"] == [3, "batch", hidden]
    assert shapes["encoder.layers.2.attention.value.product"] == [3, "batch", head_size]
    for name in ("attention.query.product", "attention.norm.out", "ffn.up.product", "ffn.norm.out"):
        assert shapes[f"encoder.layers.2.{name}"][1] == 1, name


def test_without_any_attention_only_the_first_token_is_computed(write_model, random_inputs):
    layers = (LayerArch(heads=0, ffn=3), LayerArch(heads=0, ffn=0), LayerArch(heads=0, ffn=7))
    model = load(write_model(layers=layers))
    proto = onnx_from_model(model, opset=17)
    assert shapes_of(proto)["encoder.layers.0.ffn.up.product"][1] == 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = random_inputs(3, 11)
    with torch.inference_mode():
        expected = model.outputs({k: torch.from_numpy(v) for k, v in inputs.items()})["logits"]
    np.testing.assert_allclose(session.run(None, inputs)[0], expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["token-classification", "question-answering"])
def test_heads_that_read_every_token_get_every_token(kind, write_model):
    shapes = shapes_of(onnx_from_model(load(write_model(kind)), opset=17))
    assert shapes["encoder.layers.2.ffn.norm.out"][1] != 1
