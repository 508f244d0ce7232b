"""A graph that comes out otherwise needs another `EXPORTER_VERSION`: older exports are stale."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest

from cofi_deploy.arch import LayerArch
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.graph_builder import WORDS
from cofi_deploy.export.lossy import quantized_modules
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.export.quantized import quantized, quantized_matrix
from cofi_deploy.export.word_codes import packed, rounded_words
from cofi_deploy.exports import EXPORTER_VERSION
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.loading import load

# What graphs are made of at this version. Where this fails although weights come out as before
# (a test model has changed), replace the checksum alone; else raise the version, too.
VERSION = 5
SHA256 = "3e962059ba01ba67f8c161acd33bc0bc78d0a7d38d512df02fdf2f7ce9eb73dd"

LAYERS = (LayerArch(heads=4, ffn=64), LayerArch(heads=0, ffn=3), LayerArch(heads=1, ffn=0))


def numerics_of(model) -> dict[str, Numerics]:
    modules = quantized_modules(model.arch, model.kind)
    table = model.state_dict()[WORDS].numpy()
    words = rounded_words(table, 9, np.eye(table.shape[1]))
    promoted = frozenset({"encoder.layers.0.ffn"})
    return {
        "fp32": Numerics(merge_biases=True),
        "fp32 typed": Numerics(strongly_typed=True),
        "fp16": Numerics(precision="fp16", fp32_sublayers=promoted, fp32_softmax=True),
        "bf16": Numerics(precision="bf16"),
        "bf16 typed": Numerics(precision="bf16", strongly_typed=True),
        "int8": Numerics(precision="int8", int8=dict.fromkeys(modules, (-1.0, 2.0))),
        "int8 dynamic": Numerics(precision="int8", int8=dict.fromkeys(modules), words=words),
        "int8 openvino": Numerics(precision="int8", words=words, words_unpacked="when picked"),
        "int8 typed": Numerics(precision="int8", int8=dict.fromkeys(modules), strongly_typed=True),
    }


def described(proto: onnx.ModelProto) -> list[object]:
    """Nodes, and what of each initializer does not depend on the weights."""
    nodes = [
        [node.op_type, list(node.input), list(node.output)]
        + [[each.name, str(onnx.helper.get_attribute_value(each))] for each in node.attribute]
        for node in proto.graph.node
    ]
    weights = [[each.name, each.data_type, list(each.dims)] for each in proto.graph.initializer]
    return [nodes, sorted(weights)]


def rounded() -> list[object]:
    """What becomes of numbers that every processor computes alike."""
    numbers = (np.arange(48, dtype=np.float32).reshape(4, 12) % 13 - 6) / 8
    words = rounded_words(numbers, 2, np.eye(12))
    codes, scales = words.codes, words.scales
    arrays = [*quantized(numbers, axis=1), *quantized_matrix(numbers), codes, scales]
    arrays += [packed(codes >> 4, 2), packed(codes & 15, 4)]
    return [np.asarray(each, dtype=np.float64).round(6).tolist() for each in arrays]


def test_graphs_that_come_out_otherwise_have_another_version(write_model):
    found: list[object] = [rounded()]
    for kind in TASK_KINDS:
        model = load(write_model(kind, layers=LAYERS, hidden=32))
        for name, numerics in numerics_of(model).items():
            for opset in (17, 20):
                proto = onnx_from_model(model, opset=opset, numerics=numerics)
                found.append([kind, name, opset, described(proto)])
    sha256 = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    if sha256 != SHA256:
        pytest.fail(
            f"graphs come out otherwise than those of exporter version {VERSION}: raise "
            f"exports.EXPORTER_VERSION and VERSION here, and set SHA256 to {sha256}"
        )
    assert EXPORTER_VERSION == VERSION
