"""Shifted states: the same function, and finer steps at int8."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession

from cofi_deploy.arch import LayerArch
from cofi_deploy.export import lossy
from cofi_deploy.export.centring import centred, states_of
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.loading import load

NONE = LayerArch(heads=0, ffn=0)
STRUCTURES = {
    "usual": (LayerArch(heads=4, ffn=64),) * 3,
    "vanished sublayers": (LayerArch(heads=0, ffn=9), LayerArch(heads=2, ffn=0), NONE),
    "vanished layers": (NONE, LayerArch(heads=1, ffn=3), NONE),
    "no attention": (LayerArch(heads=0, ffn=9), LayerArch(heads=0, ffn=8), NONE),
    "nothing": (NONE,) * 3,
}


def with_weights(model, weights):
    changed = copy.deepcopy(model)
    changed.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return changed


def arrays_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def centres_of(arch, seed=0):
    rng = np.random.default_rng(seed)
    return {
        state.writer: rng.normal(scale=3.0, size=arch.hidden).astype(np.float32)
        for state in states_of(arch)
    }


def outputs_of(model, inputs):
    with torch.inference_mode():
        return model.outputs({name: torch.from_numpy(array) for name, array in inputs.items()})


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_shifted_states_are_the_same_function(structure, kind, write_model, random_inputs):
    model = load(write_model(kind, layers=STRUCTURES[structure]))
    inputs = random_inputs(3, 20)
    weights = arrays_of(model)
    before = {name: array.copy() for name, array in weights.items()}
    shifted = with_weights(model, centred(weights, model.arch, centres_of(model.arch)))
    expected, got = outputs_of(model, inputs), outputs_of(shifted, inputs)
    for name, tensor in expected.items():
        assert (tensor - got[name]).abs().max() < 2e-5
    assert all(np.array_equal(weights[name], before[name]) for name in before)


def test_states_are_less_by_their_centres(write_model, random_inputs):
    model = load(write_model(layers=STRUCTURES["usual"]))
    centres = centres_of(model.arch)
    shifted = with_weights(model, centred(arrays_of(model), model.arch, centres))
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(3, 20).items()}
    with torch.inference_mode():
        before, after = [each.encode(**inputs).states for each in (model, shifted)]
    norms = [f"encoder.layers.{index}.ffn.norm" for index in range(2)]
    writers = ["encoder.embeddings.norm", *norms, None]
    for one, other, writer in zip(before, after, writers, strict=True):
        centre = 0.0 if writer is None else torch.from_numpy(centres[writer])
        assert (one - centre - other).abs().max() < 1e-5


def test_int8_loses_less_where_a_channel_is_far_from_zero(write_model, random_inputs, monkeypatch):
    """One channel of a state at 30: its range, spread over 256 steps, leaves few to the others."""
    model = load(write_model(layers=STRUCTURES["usual"], hidden=32))
    far = np.zeros(32, dtype=np.float32)
    far[5] = -30.0
    away = {state.writer: far for state in states_of(model.arch)}
    model = with_weights(model, centred(arrays_of(model), model.arch, away))
    inputs = random_inputs(8, 20)
    rows = list(zip(inputs["input_ids"], inputs["token_type_ids"], strict=True))
    expected = outputs_of(model, inputs)["logits"].numpy()

    def error_of(numerics):
        proto = onnx_from_model(model, opset=17, numerics=numerics)
        session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.abs(session.run(["logits"], inputs)[0] - expected).mean()

    monkeypatch.setattr(lossy, "_MANY_ROWS", len(rows))
    chosen = choose_numerics(model, "int8", rows)
    assert chosen.centres.keys() == away.keys()
    assert all(centre[5] > 25.0 for centre in chosen.centres.values())
    monkeypatch.setattr(lossy, "_MANY_ROWS", len(rows) + 1)
    plain = choose_numerics(model, "int8", rows)
    assert not plain.centres
    assert error_of(chosen) < 0.5 * error_of(plain)


def test_without_a_matrix_that_is_wide_enough_no_text_is_run(write_model, monkeypatch):
    monkeypatch.setattr(lossy, "scan_channels", None)
    model = load(write_model("text-classification", layers=STRUCTURES["vanished layers"]))
    assert choose_numerics(model, "int8", [([1, 2], [0, 0])]).int8 == {}
