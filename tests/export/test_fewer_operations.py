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
    """A model with biases of some size: those of a new one are 0, and none of them matters."""

    def make(kind="text-classification", size=0.1, **changes):
        model = load(write_model(kind, **changes))
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith(".bias"):
                    tensor.copy_(size * torch.randn(tensor.shape, generator=random))
        return model

    return make


def outputs_of(proto, inputs):
    session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize(("merge_biases", "size"), [(True, 0.1), (True, 1.0), (False, 1.0)])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_graphs_answer_like_the_model(kind, structure, merge_biases, size, biased, random_inputs):
    model = biased(kind, size, layers=STRUCTURES[structure])
    proto = onnx_from_model(model, opset=17, numerics=Numerics(merge_biases=merge_biases))
    onnx.checker.check_model(proto, full_check=True)
    inputs = random_inputs(3, 20)
    with torch.inference_mode():
        expected = model.outputs({name: torch.from_numpy(x) for name, x in inputs.items()})
    for name, got in outputs_of(proto, inputs).items():
        np.testing.assert_allclose(got, expected[name].numpy(), atol=3e-5)
    left = {item.name for item in proto.graph.initializer} & idle_biases(model.arch)
    assert not any(name.endswith("key.bias") for name in left)
    if merge_biases:  # of random weights, some shifts for both biases would be too large
        assert all(name.endswith("value.bias") for name in left)


def test_token_types_that_differ_within_a_text_are_added_where_they_are(biased, random_inputs):
    model = biased()
    proto = onnx_from_model(model, opset=17, numerics=Numerics(merge_biases=True))
    assert {node.name for node in proto.graph.node} >= {"encoder.embeddings.places.table"}
    inputs = random_inputs(3, 20)
    inputs["token_type_ids"] = np.random.default_rng(0).integers(0, 2, (3, 20))
    with torch.inference_mode():
        expected = model.outputs({name: torch.from_numpy(x) for name, x in inputs.items()})
    np.testing.assert_allclose(
        outputs_of(proto, inputs)["logits"], expected["logits"].numpy(), atol=3e-5
    )


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
    for far in (2, 3):  # an attention and an FFN
        weights[f"{adders[far]}.bias"] = np.full_like(weights[f"{adders[far]}.bias"], 1e4)
    fewest = with_fewer_operations(weights, model.arch, merge_biases=True)
    stays = [f"{adder}.bias" in fewest for adder in adders]
    assert stays == [False, False, True, True, False, False]
    values = [f"encoder.layers.{index}.attention.value.bias" in fewest for index in range(3)]
    assert values == [False, True, False]


@pytest.mark.parametrize("distance", [0.0, 1e-6])
def test_near_a_singular_map_of_values_their_bias_stays(distance, biased):
    model = biased(layers=STRUCTURES["usual"])
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    module = "encoder.layers.1.attention"
    # O V takes away the first number of a state, which the residual brings.
    for part in ("output", "value"):
        weights[f"{module}.{part}.weight"] = np.zeros_like(weights[f"{module}.{part}.weight"])
    weights[f"{module}.output.weight"][0, 0] = -1.0 + distance
    weights[f"{module}.value.weight"][0, 0] = 1.0
    fewest = with_fewer_operations(weights, model.arch, merge_biases=True)
    assert f"{module}.value.bias" in fewest
    assert f"{module}.output.bias" not in fewest
