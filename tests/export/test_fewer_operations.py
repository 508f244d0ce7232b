"""What a graph goes without is not missed: answers, names, and where it would cost digits."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession

from cofi_deploy.arch import LayerArch
from cofi_deploy.export.centring import states_of
from cofi_deploy.export.fewer_operations import idle_biases, with_fewer_operations
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.loading import load

NONE = LayerArch(heads=0, ffn=0)
STRUCTURES = {
    "usual": (LayerArch(heads=4, ffn=64),) * 3,
    "uneven": (LayerArch(heads=1, ffn=0), LayerArch(heads=0, ffn=9), LayerArch(heads=3, ffn=7)),
    "ends with attention": (LayerArch(heads=2, ffn=5), NONE, LayerArch(heads=1, ffn=0)),
    "no attention": (LayerArch(heads=0, ffn=9), LayerArch(heads=0, ffn=8), NONE),
    "nothing": (NONE,) * 3,
}


@pytest.fixture
def biased(write_model):
    """A model whose biases are as large as those of trained ones: else none of them matters."""

    def make(kind="text-classification", **changes):
        model = load(write_model(kind, **changes))
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith(".bias"):
                    tensor.copy_(torch.randn(tensor.shape, generator=random))
        return model

    return make


def outputs_of(proto, inputs):
    session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("merge_biases", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_graphs_answer_like_the_model(kind, structure, merge_biases, biased, random_inputs):
    model = biased(kind, layers=STRUCTURES[structure])
    proto = onnx_from_model(model, opset=17, numerics=Numerics(merge_biases=merge_biases))
    onnx.checker.check_model(proto, full_check=True)
    inputs = random_inputs(3, 20)
    with torch.inference_mode():
        expected = model.outputs({name: torch.from_numpy(x) for name, x in inputs.items()})
    for name, got in outputs_of(proto, inputs).items():
        np.testing.assert_allclose(got, expected[name].numpy(), atol=3e-5)
    written = {item.name for item in proto.graph.initializer}
    assert bool(written & idle_biases(model.arch)) is (not merge_biases and structure != "nothing")


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
def test_padding_changes_no_answer(kind, biased, random_inputs):
    model = biased(kind)
    proto = onnx_from_model(model, opset=17, numerics=Numerics(merge_biases=True))
    padded = random_inputs(3, 20)
    for row, tokens in enumerate((20, 7, 1)):
        padded["attention_mask"][row] = np.arange(20) < tokens
        alone = {name: array[row : row + 1, :tokens] for name, array in padded.items()}
        together, one = outputs_of(proto, padded)["logits"][row], outputs_of(proto, alone)["logits"]
        if kind == "token-classification":
            together = together[:tokens]
        np.testing.assert_allclose(together, one[0], atol=2e-5)


def test_only_what_is_not_needed_goes(biased):
    model = biased(layers=STRUCTURES["usual"])
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    before = {name: array.copy() for name, array in weights.items()}
    fewer = with_fewer_operations(weights, model.arch, merge_biases=False)
    keys = {f"encoder.layers.{index}.attention.key.bias" for index in range(3)}
    assert set(weights) - set(fewer) == keys
    fewest = with_fewer_operations(weights, model.arch, merge_biases=True)
    assert set(weights) - set(fewest) == idle_biases(model.arch)
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    name = "encoder.layers.0.attention.query.weight"
    np.testing.assert_allclose(
        fewer[name] * math.sqrt(model.arch.head_size), weights[name], rtol=1e-6
    )


def test_a_bias_that_would_cost_digits_stays(biased):
    model = biased(layers=STRUCTURES["usual"])
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    adders = [state.adder for state in states_of(model.arch)]
    weights[f"{adders[3]}.bias"] = np.full_like(weights[f"{adders[3]}.bias"], 1e4)
    fewest = with_fewer_operations(weights, model.arch, merge_biases=True)
    assert [f"{adder}.bias" in fewest for adder in adders] == [False] * 3 + [True] + [False] * 2
