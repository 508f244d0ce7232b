"""Names and neighbours of executed nodes lead back to the part of the model."""

from __future__ import annotations

import pytest

from cofi_deploy.parts import Node, Place, place_nodes, place_of


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layers.11.attention.query.product", Place(11, "attention")),
        ("encoder.layers.0.ffn.residual", Place(0, "ffn")),
        ("encoder.layers.0.ffn.norm.out", Place(0, "layer_norm")),
        ("encoder.layers.2.ffn.norm.out_fp16", Place(2, "layer_norm")),
        ("encoder.layers.1.attention/encoder.layers.0.ffn.norm.out.uint8", Place(1, "attention")),
        ("InsertedPrecisionFreeCast_encoder.layers.1.attention.value.out", Place(1, "attention")),
        ("encoder.embeddings.norm.out", Place(None, "layer_norm")),
        ("encoder.embeddings/length", Place(None, "embedding")),
        ("encoder.embeddings.project.out", Place(None, "embedding")),
        ("mask.bias", Place(None, "embedding")),
        ("fused head/pooler.product/MatMulAddFusion", Place(None, "head")),
        ("start_logits", Place(None, "head")),
        ("attention_mask", None),
        ("BiasGelu_token_1", None),
    ],
)
def test_a_name_tells_the_part(name, place):
    assert place_of(name) == place


def node(*names, kind="op", inputs=()):
    return Node(kind=kind, names=names, inputs=tuple(inputs))


def test_most_of_the_fused_names_decide():
    fused = node(
        "Subgraph", "mask.bias_1", "encoder.layers.1.attention.scores", "encoder.layers.1.attention"
    )
    assert place_nodes({"x": fused}) == {"x": Place(1, "attention")}


def test_a_normalisation_without_a_name_belongs_to_the_layer_that_it_reads():
    nodes = {
        "sum": node("encoder.layers.0.ffn.residual"),
        "norm": node("MVN_7", kind="MVN", inputs=["sum"]),
        "next": node("encoder.layers.1.attention.query.out", inputs=["norm"]),
    }
    assert place_nodes(nodes)["norm"] == Place(0, "layer_norm")


def test_a_chain_without_names_belongs_to_its_reader():
    nodes = {
        "a": node("Convert_1"),
        "b": node("Transpose_2", inputs=["a"]),
        "c": node("encoder.layers.3.ffn.up.product", inputs=["b"]),
    }
    assert set(place_nodes(nodes).values()) == {Place(3, "ffn")}


def test_a_last_node_without_a_name_belongs_to_what_it_reads():
    nodes = {"a": node("logits"), "b": node("Reorder", inputs=["a"])}
    assert place_nodes(nodes)["b"] == Place(None, "head")


def test_a_node_whose_readers_disagree_stays_without_a_place():
    nodes = {
        "a": node("Cast_1"),
        "b": node("encoder.layers.0.ffn.up.product", inputs=["a"]),
        "c": node("encoder.layers.1.ffn.up.product", inputs=["a"]),
    }
    assert place_nodes(nodes)["a"] is None
