"""From the names that a runtime's profiler reports back to the parts of an `Arch`.

The exported graph names every node for its sublayer. Runtimes fuse nodes and make up names for
some; they keep the names of tensors (ONNX Runtime) or of the nodes that went into one (OpenVINO),
and the graph says what stands next to what. Next files: `profile_onnxruntime.py`,
`profile_openvino.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Part = Literal["embedding", "attention", "ffn", "layer_norm", "head", "overhead"]
PARTS: tuple[Part, ...] = get_args(Part)


class Place(NamedTuple):
    """A part of the model; ``layer`` None is what exists once."""

    layer: int | None
    part: Part


# Milliseconds by place of one inference; None holds what no name or neighbour could place.
Run = Mapping[Place | None, float]

# The leftmost match counts: a conversion of another sublayer's output has its own sublayer first.
_NAMES = re.compile(
    r"encoder\.layers\.(?P<layer>\d+)\.(?P<sublayer>attention|ffn)\b(?P<norm>\.norm\.)?"
    r"|(?P<first_norm>encoder\.embeddings\.norm\.)"
    # The mask is prepared once for all layers, like the embeddings.
    r"|(?P<embedding>\bencoder\.embeddings\b|\bmask[./])"
    r"|(?P<head>\bhead/|\b(start_|end_)?logits\b|\b(pooler|classifier)\.)"
)
_NORM_TYPES = frozenset({"MVN", "LayerNormalization", "SkipLayerNormalization"})


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the graph that a runtime executes.

    Attributes:
        kind: The runtime's word for what it computes.
        names: Of the nodes and tensors that went into it, the most telling first.
        inputs: Keys of the nodes whose results it reads.
    """

    kind: str
    names: tuple[str, ...]
    inputs: tuple[str, ...] = ()


def place_of(name: str) -> Place | None:
    """The part that a node's name tells; None when it tells none."""
    found = _NAMES.search(name)
    if found is None:
        return None
    if found["layer"] is not None:
        part: Part = "layer_norm" if found["norm"] else "attention"
        if found["sublayer"] == "ffn" and not found["norm"]:
            part = "ffn"
        return Place(int(found["layer"]), part)
    if found["first_norm"]:
        return Place(None, "layer_norm")
    return Place(None, "embedding" if found["embedding"] else "head")


def place_nodes(nodes: Mapping[str, Node]) -> dict[str, Place | None]:
    """Place every node of a graph, by its names, else by its neighbours.

    A LayerNorm without a name belongs to the layer whose result it reads. Any other node without
    a name belongs to the part that all of its readers agree on, else to the one that all of its
    inputs agree on.

    Args:
        nodes: By key, in the order of execution.
    """
    readers: dict[str, list[str]] = {key: [] for key in nodes}
    for key, node in nodes.items():
        for source in node.inputs:
            if source in readers:
                readers[source].append(key)
    places = {key: _by_names(node.names) for key, node in nodes.items()}
    unnamed = [key for key, place in places.items() if place is None]
    for key in unnamed:  # inputs first, so that what a LayerNorm reads is placed
        if nodes[key].kind in _NORM_TYPES:
            places[key] = _normed(places, nodes[key].inputs)
    for key in reversed(unnamed):  # readers first, so that chains of unnamed nodes are placed
        places[key] = places[key] or _agreed(places, readers[key])
    for key in unnamed:
        places[key] = places[key] or _agreed(places, nodes[key].inputs)
    return places


def _by_names(names: Sequence[str]) -> Place | None:
    """What most of the names say; a node's conversions must not outvote it, so ties go first."""
    counted = Counter(place for place in map(place_of, names) if place is not None)
    return counted.most_common(1)[0][0] if counted else None


def _normed(places: Mapping[str, Place | None], inputs: Sequence[str]) -> Place | None:
    read = _agreed(places, inputs)
    if read is None or read.part == "head":
        return None
    return Place(read.layer, "layer_norm")


def _agreed(places: Mapping[str, Place | None], keys: Iterable[str]) -> Place | None:
    known = {place for key in keys if (place := places.get(key)) is not None}
    return known.pop() if len(known) == 1 else None
