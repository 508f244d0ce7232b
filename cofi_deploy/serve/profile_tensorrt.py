"""TensorRT's own times of an engine's layers, by part of the model.

The library calls a profiler back with every layer's name and milliseconds; its inspector says
which nodes of the graph a layer was fused from. Needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cofi_deploy.engine_parts import inspected_layers
from cofi_deploy.engines import Flavour, import_tensorrt
from cofi_deploy.parts import Place, Run
from cofi_deploy.serve.inputs import Tensors
from cofi_deploy.serve.runner import RunnerSettings
from cofi_deploy.serve.runner_tensorrt import open_session

if TYPE_CHECKING:
    from cofi_deploy.tensorrt_api import TensorRt


def profiled_runs(
    artifact: Path, settings: RunnerSettings, inputs: Tensors, *, warmup: int, runs: int
) -> list[Run]:
    """Milliseconds by part of each of ``runs`` inferences.

    Raises:
        RunnerError: See `runner_tensorrt.open_session`.
    """
    trt = import_tensorrt(cast(Flavour, settings.runtime))
    session = open_session(artifact, settings)
    try:
        times = layer_times(trt)
        information = session.profile_with(times, trt)
        places = {layer["Name"]: place for layer, place in inspected_layers(information)}
        found: list[Run] = []
        for _ in range(warmup + runs):
            times.spent.clear()
            session.run(inputs)
            found.append(by_place(times.spent, places))
        return found[warmup:]
    finally:
        session.close()


def layer_times(trt: TensorRt) -> Any:
    """A profiler of the library's kind whose ``spent`` has the milliseconds of every layer."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.spent: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.spent[layer_name] = self.spent.get(layer_name, 0.0) + ms

    return LayerTimes()


def by_place(spent: Mapping[str, float], places: Mapping[str, Place | None]) -> Run:
    """Add up layers of one part; what the inspector does not know goes to None."""
    total: dict[Place | None, float] = {}
    for name, ms in spent.items():
        place = places.get(name)
        total[place] = total.get(place, 0.0) + ms
    return total
