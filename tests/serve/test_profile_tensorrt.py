"""TensorRT's layer times without a GPU: the callback, and layers added up by part.

The profiler is the library's own class; only the device that would call it is absent.
"""

from __future__ import annotations

import json

import pytest

from cofi_deploy.engine_parts import inspected_layers
from cofi_deploy.engines import import_tensorrt
from cofi_deploy.errors import MissingDependencyError
from cofi_deploy.parts import Place
from cofi_deploy.serve.profile_tensorrt import by_place, layer_times

# The inspector's form at detailed verbosity; the second layer has a made-up name and an origin.
INFORMATION = json.dumps(
    {
        "Layers": [
            {
                "Name": "encoder.layers.0.attention.query/MatMul",
                "LayerType": "gemm",
                "Inputs": [{"Name": "x"}],
                "Outputs": [{"Name": "q"}],
            },
            {
                "Name": "__myl_Fused_myl0_3",
                "LayerType": "kgen",
                "Metadata": "[ONNX Layer: encoder.layers.1.ffn.up/MatMul]\x1e"
                "[ONNX Layer: encoder.layers.1.ffn.up/Add]",
                "Inputs": [{"Name": "q"}],
                "Outputs": [{"Name": "y"}],
            },
        ]
    }
)


def test_times_of_layers_add_up_by_part_and_unknown_layers_have_none():
    places = {layer["Name"]: place for layer, place in inspected_layers(INFORMATION)}
    spent = {
        "encoder.layers.0.attention.query/MatMul": 0.25,
        "__myl_Fused_myl0_3": 0.5,
        "a reformat that the inspector does not list": 0.125,
    }
    assert by_place(spent, places) == {
        Place(0, "attention"): 0.25,
        Place(1, "ffn"): 0.5,
        None: 0.125,
    }


def test_the_library_s_profiler_collects_what_it_is_told():
    try:
        trt = import_tensorrt("tensorrt-rtx")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    times = layer_times(trt)
    assert isinstance(times, trt.IProfiler)
    for name, ms in (("a", 0.5), ("b", 0.25), ("a", 0.125)):
        times.report_layer_time(name, ms)
    assert times.spent == {"a": 0.625, "b": 0.25}
