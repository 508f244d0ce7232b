"""Are the attention nodes that an optimiser fused those of the Arch, layer by layer?

An optimiser that is told one head count fuses every layer with it, and the logits of a pruned model
are then 19 to 28 % off without an error. In: a graph as a runtime executes it. Out: nothing, or an
`ExportError` that names the layer. Next file: `candidates.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx
from onnx import helper

from cofi_deploy.arch import Arch
from cofi_deploy.errors import ExportError

# Attribute that holds the number of heads, by operator; those of any domain.
_HEADS = {
    "Attention": ("num_heads", "q_num_heads"),
    "DecoderMaskedMultiHeadAttention": ("num_heads",),
    "GroupQueryAttention": ("num_heads",),
    "MultiHeadAttention": ("num_heads",),
    "PackedAttention": ("num_heads",),
    "PackedMultiHeadAttention": ("num_heads",),
    "QAttention": ("num_heads",),
    "QOrderedAttention": ("num_heads",),
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.attention\b")


def check_fused_attention(proto: onnx.ModelProto, arch: Arch) -> int:
    """Compare the head count of every fused attention node with that of its layer.

    Args:
        proto: A graph with the names that `graph.py` gave; weights are not needed.
        arch: Of the model.

    Returns:
        How many nodes were compared.

    Raises:
        ExportError: Another count, a node of no layer or of one without heads, or two of one.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    seen: dict[int, str] = {}
    for node in proto.graph.node:
        if node.op_type not in _HEADS:
            continue
        layer = _layer_of(node, readers)
        if layer is None or layer >= len(arch.layers):
            raise ExportError(
                f"fused node {node.name!r} ({node.op_type}) belongs to no layer of the Arch; "
                "it cannot be audited and is not kept"
            )
        expected, got = arch.layers[layer].heads, _heads_of(node)
        if got != expected:
            raise ExportError(
                f"fused node {node.name!r} ({node.op_type}) computes layer {layer} with {got} "
                f"heads, the Arch says {expected}; it is not kept"
            )
        if layer in seen:
            raise ExportError(f"layer {layer} is fused twice: {seen[layer]!r} and {node.name!r}")
        seen[layer] = node.name
    return len(seen)


def _heads_of(node: onnx.NodeProto) -> int | None:
    for attribute in node.attribute:
        if attribute.name in _HEADS[node.op_type]:
            return int(helper.get_attribute_value(attribute))
    return None


def _layer_of(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> int | None:
    """The first layer named by what the node reads and writes, or by what reads its result."""
    for name in _names_from(node, readers):
        found = _LAYER.search(name)
        if found:
            return int(found[1])
    return None


def _names_from(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> Iterator[str]:
    """Names of its results and own weights, then those around its readers, nearest first.

    What it reads beside weights comes last: that is the result of the layer before.
    """
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield from current.output
        yield from (name for name in current.input if name.endswith((".weight", ".bias")))
        yield current.name
        waiting += [reader for name in current.output for reader in readers.get(name, [])]
