"""What gates know before the first step: squared gradients of mask values, used by rank."""

from __future__ import annotations

import pytest
import torch

from cofi_deploy.masks import Masks
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.gates import CLAMP, HardConcreteGates
from cofi_deploy.train.importance import unit_importance, warm_start
from cofi_deploy.train.losses import label_loss
from cofi_deploy.train.precision import Numerics
from tests.builders import SMALL, random_model, random_split

NUMERICS = Numerics(torch.device("cpu"), torch.float32)
FAMILIES = ("hidden", "heads", "ffn", "attn_block", "ffn_block")


def some_batches(kind="text-classification"):
    split = random_split([5, 9, 7, 12, 3, 8, 8, 6], kind)
    batches = Batches(split, batch_size=4, seed=0, device=NUMERICS.device)
    return [batches.at(step) for step in range(2)]


def test_importance_is_the_squared_change_of_the_loss_with_a_mask_value():
    model, batches = random_model("text-classification"), some_batches()
    found = unit_importance(model, batches, NUMERICS)
    step = 1e-2

    def loss(batch, name, place, value):
        masks = Masks.ones(SMALL)
        getattr(masks, name)[place] = value
        with torch.no_grad():
            return label_loss(model.outputs(batch.inputs, masks), batch.targets, model.kind).item()

    for name, place in (("hidden", (3,)), ("heads", (1, 2)), ("ffn", (0, 4)), ("ffn_block", (2,))):
        slopes = [
            (loss(each, name, place, 1 + step) - loss(each, name, place, 1 - step)) / (2 * step)
            for each in batches
        ]
        expected = sum(slope**2 for slope in slopes)
        assert getattr(found, name)[place].item() == pytest.approx(expected, rel=0.02)


def test_nothing_of_the_model_changes():
    model = random_model("question-answering")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unit_importance(model, some_batches("question-answering"), NUMERICS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gates_start_in_the_order_of_importance_and_within_the_clamp():
    gates = HardConcreteGates(SMALL, init=dict.fromkeys(FAMILIES, 10.0))
    torch.manual_seed(3)
    importance = Masks(**{name: torch.rand_like(gates.log_alpha[name]) for name in FAMILIES})
    warm_start(gates, importance, 2.0)
    for name, log_alpha in gates.log_alpha.items():
        values = log_alpha.detach().flatten()
        order = getattr(importance, name).flatten().argsort()
        assert values[order].diff().min() > 0
        assert values.max().item() == pytest.approx(CLAMP)
        assert values.min().item() == pytest.approx(CLAMP - 2.0)


def test_gates_in_the_middle_stay_there_on_average():
    gates = HardConcreteGates(SMALL, init=dict.fromkeys(FAMILIES, 0.0), families=("ffn",))
    importance = Masks(**{**vars(Masks.ones(SMALL)), "ffn": torch.rand(SMALL.layers, SMALL.ffn)})
    warm_start(gates, importance, 3.0)
    assert gates.log_alpha["ffn"].mean().item() == pytest.approx(0.0, abs=0.02)
