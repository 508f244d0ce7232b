"""`layers.json`: the layers of an engine, each with the part of the model that it belongs to.

Two sources, and the report says which: the engine's inspector tells what will run, fused and with
the chosen kernels, but needs the GPU that can load the engine. Without one there are the layers of
the network that the engine was built from, before fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cofi_deploy.engine_parts import inspected_layers, place_layers
from cofi_deploy.parts import Place

if TYPE_CHECKING:
    import tensorrt as types

LAYERS_FILE = "layers.json"

MEANING = {
    "engine": "layers of the engine as it runs, fused, by the inspector of the library",
    "network": "layers of the network before the builder fused them: no GPU could load the engine",
}


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """Layers in the order of execution, and what they are layers of."""

    of: Literal["engine", "network"]
    layers: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `layers.json`."""
        return {"of": self.of, "meaning": MEANING[self.of], "layers": list(self.layers)}


def network_layers(network: types.INetworkDefinition) -> LayerReport:
    """What a parsed network consists of: name, kind, types and shapes; -1 is a dynamic axis."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    inputs = [
        tuple(tensor.name for tensor in map(each.get_input, range(each.num_inputs)) if _is(tensor))
        for each in layers
    ]
    outputs = [tuple(map(each.get_output, range(each.num_outputs))) for each in layers]
    places = place_layers(
        names=[(each.name,) for each in layers],
        kinds=[each.type.name for each in layers],
        inputs=inputs,
        outputs=[tuple(tensor.name for tensor in each) for each in outputs],
    )
    return LayerReport(
        of="network",
        layers=tuple(
            {
                "name": layer.name,
                "kind": layer.type.name,
                **_place_json(place),
                "outputs": [
                    {"name": each.name, "type": each.dtype.name, "shape": _sizes(each.shape)}
                    for each in tensors
                ],
            }
            for layer, tensors, place in zip(layers, outputs, places, strict=True)
        ),
    )


def engine_layers(information: str) -> LayerReport:
    """What the inspector of a library says, with the part of the model added.

    Args:
        information: Its JSON. Below detailed verbosity a layer is its name alone.
    """
    return LayerReport(
        of="engine",
        layers=tuple(
            {
                "name": layer["Name"],
                "kind": layer.get("LayerType"),
                **_place_json(place),
                "details": layer,
            }
            for layer, place in inspected_layers(information)
        ),
    )


def _is(tensor: types.ITensor | None) -> bool:
    """Optional inputs of a layer are counted, too; the published types do not say so."""
    return tensor is not None


def _sizes(shape: types.Dims) -> list[int]:
    return [shape[index] for index in range(len(shape))]


def _place_json(place: Place | None) -> dict[str, Any]:
    """``layer`` None: what the model has once, or what could not be placed (``part`` None, too)."""
    return {
        "layer": None if place is None else place.layer,
        "part": None if place is None else place.part,
    }
