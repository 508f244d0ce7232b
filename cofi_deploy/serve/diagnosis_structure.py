"""What an artifact's graph computes, compared with the Arch: heads of each layer, rows of a table.

Reads the graphs of ONNX and OpenVINO, in which `export` names every node and constant. Of a
TensorRT engine nothing can be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from cofi_deploy.exports import check_export
from cofi_deploy.openvino_core import openvino_core
from cofi_deploy.serve.fault import Checked, Diagnosis

_SPLIT = re.compile(r"^encoder\.layers\.(\d+)\.attention\.(query|key|value)\.split$")
_WORDS = "encoder.embeddings.word.weight"


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph says of itself; empty where it says nothing that we can read.

    ``word_rows`` are the rows of its word table, ``heads`` (heads, head size) of each layer and
    each of query, key and value, as the Reshape that splits them has it; where a graph goes without
    keys and values, of the query alone.
    """

    word_rows: int | None = None
    heads: Mapping[tuple[int, str], tuple[int, int]] = field(default_factory=dict)


def graph_facts(checked: Checked) -> GraphFacts:
    """Read the graph of an export.

    Raises:
        ArtifactError: A file is missing or was changed.
    """
    if checked.runtime == "torch":
        return GraphFacts()
    manifest = check_export(checked.directory)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}.get(manifest.format)
    files = [name for name in manifest.files if suffix and name.endswith(suffix)]
    if len(files) != 1:
        return GraphFacts()
    read = _onnx_facts if manifest.format == "onnx" else _openvino_facts
    return read(checked.directory / files[0])


def check_runnable_heads(checked: Checked) -> list[Diagnosis]:
    """Heads that do not fit the width of their layer: a graph that fails on every input.

    In a layer without keys they meet matrices of each head, and any other number does not fit.
    """
    heads = graph_facts(checked).heads
    wrong = []
    for (index, part), found in heads.items():
        expected = _sizes(checked, index)
        fits = (
            _product(found) == _product(expected) if (index, "key") in heads else found == expected
        )
        if not fits:
            wrong.append((index, part))
    return _head_faults(checked, heads, wrong, "; the graph cannot be run")


def check_heads(checked: Checked, symptom: str) -> list[Diagnosis]:
    """Layers whose graph splits into other heads than the Arch has; ``symptom`` ends the words."""
    heads = graph_facts(checked).heads
    wrong = [key for key, found in heads.items() if found != _sizes(checked, key[0])]
    return _head_faults(checked, heads, wrong, f", and {symptom}" if symptom else "")


def _head_faults(
    checked: Checked,
    heads: Mapping[tuple[int, str], tuple[int, int]],
    wrong: list[tuple[int, str]],
    consequence: str,
) -> list[Diagnosis]:
    if not wrong:
        return []
    layers = sorted({index for index, _ in wrong})
    index, part = min(wrong)
    (count, size), (expected, expected_size) = heads[index, part], _sizes(checked, index)
    more = f" (and {len(layers) - 1} more layers)" if len(layers) > 1 else ""
    return [
        checked.diagnosis(
            "head_count",
            f"layer {index} of the graph computes {count} heads of size {size}, but the model has "
            f"{expected} of size {expected_size}{more}{consequence}; {checked.remedy()}",
        )
    ]


def _sizes(checked: Checked, index: int) -> tuple[int, int]:
    """Heads and head size that a layer should have; none where the model has no such layer."""
    arch = checked.expected()
    heads = arch.layers[index].heads if index < len(arch.layers) else 0
    return heads, arch.head_size


def _product(sizes: tuple[int, int]) -> int:
    return sizes[0] * sizes[1]


def _onnx_facts(path: Path) -> GraphFacts:
    try:
        graph = onnx.load(path).graph
    except DecodeError:
        return GraphFacts()  # the runtime says what is wrong with the file
    constants = {item.name: item for item in graph.initializer}
    heads = {}
    for node in graph.node:
        match = _SPLIT.match(node.name)
        if match and node.op_type == "Reshape" and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]])
            heads[int(match[1]), match[2]] = (int(shape[-2]), int(shape[-1]))
    words = constants.get(_WORDS)
    return GraphFacts(word_rows=words.dims[0] if words is not None else None, heads=heads)


def _openvino_facts(path: Path) -> GraphFacts:
    try:
        model = openvino_core().read_model(path)
    except RuntimeError:
        return GraphFacts()  # the runtime says what is wrong with the file
    word_rows, heads = None, {}
    for node in model.get_ops():
        name = node.get_friendly_name()
        match = _SPLIT.match(name)
        if match and node.get_type_name() == "Reshape":
            pattern = node.input_value(1).get_node()
            if pattern.get_type_name() == "Constant":
                *_, count, size = pattern.data.tolist()
                heads[int(match[1]), match[2]] = (count, size)
        elif name == _WORDS and node.get_output_partial_shape(0).is_static:
            word_rows = node.get_output_shape(0)[0]
    return GraphFacts(word_rows=word_rows, heads=heads)
