"""Layers of a TensorRT network or engine -> parts of an `Arch`.

Builders fuse nodes and make up names for what they fuse; the parser's notes of where a layer came
from and the tensors between layers tell the rest. Read by `export`, which reports an engine's
layers, and by `serve`, which times them. See `parts.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cofi_deploy.parts import Node, Place, place_nodes

# How the parser writes down which node of the graph a layer came from.
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def inspected_layers(information: str) -> list[tuple[Mapping[str, Any], Place | None]]:
    """The layers of an engine in the order of execution, each with its part.

    Args:
        information: JSON of the library's inspector. Below detailed verbosity a layer is its name
            alone.
    """
    found = json.loads(information).get("Layers", [])
    layers = [each if isinstance(each, dict) else {"Name": str(each)} for each in found]
    places = place_layers(
        names=[(*_ORIGIN.findall(each.get("Metadata", "")), each["Name"]) for each in layers],
        kinds=[str(each.get("LayerType", "")) for each in layers],
        inputs=[_tensor_names(each, "Inputs") for each in layers],
        outputs=[_tensor_names(each, "Outputs") for each in layers],
    )
    return list(zip(layers, places, strict=True))


def place_layers(
    *,
    names: Sequence[tuple[str, ...]],
    kinds: Sequence[str],
    inputs: Sequence[tuple[str, ...]],
    outputs: Sequence[tuple[str, ...]],
) -> list[Place | None]:
    """The part of every layer, by its names, else by what it stands next to."""
    keys = [str(index) for index in range(len(names))]
    made_by = {
        tensor: key for key, tensors in zip(keys, outputs, strict=True) for tensor in tensors
    }
    nodes = {
        key: Node(
            kind=kind,
            names=own,
            inputs=tuple(made_by[tensor] for tensor in read if tensor in made_by),
        )
        for key, kind, own, read in zip(keys, kinds, names, inputs, strict=True)
    }
    return list(place_nodes(nodes).values())


def _tensor_names(layer: Mapping[str, Any], side: str) -> tuple[str, ...]:
    return tuple(tensor["Name"] for tensor in layer.get(side, ()))
