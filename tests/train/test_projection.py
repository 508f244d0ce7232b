"""The projection onto a budget: met on counted parameters, in the order that the gates learnt."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import BudgetError
from cofi_deploy.masks import FAMILIES, Masks
from cofi_deploy.train.cut import cut
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.projection import masks_at_target
from cofi_deploy.train.sparsity import kept_parameters, reachable_share, realized_sparsity
from tests.builders import BERT_BASE, dense_arch, random_model

# One FFN unit is 33 of 9,648 parameters, 0.34 %.
SHAPE = DenseShape(layers=3, hidden=16, heads=4, ffn=64, head_size=4)
TOLERANCE = 0.005


@st.composite
def any_gates(draw: st.DrawFn, *, families: tuple[str, ...] = FAMILIES) -> HardConcreteGates:
    """Gates at every place within the clamps: undecided, spread, or mostly off."""
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 0.0), families=families)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    for name in gates.families:
        mean = draw(st.sampled_from([-4.0, -2.0, 0.0, 3.0]), label=name)
        deviation = draw(st.sampled_from([0.01, 1.0, 3.0, 6.0]), label=name)
        with torch.no_grad():
            value = gates.log_alpha[name]
            value.copy_(mean + deviation * torch.randn(value.shape, generator=generator))
    gates.clamp()
    return gates


def living_units(masks: Masks) -> Tensor:
    return (masks.ffn * masks.ffn_block[:, None]) != 0


@given(gates=any_gates(), share=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_target_is_met_within_one_ffn_unit(gates: HardConcreteGates, share: float):
    target = share * reachable_share(gates)
    masks = masks_at_target(gates, target)
    realized = 1 - masks.arch(dense_arch(SHAPE)).prunable_parameters / SHAPE.prunable_parameters
    assert realized_sparsity(masks, SHAPE) == pytest.approx(realized, abs=1e-12)
    assert abs(realized - target) <= TOLERANCE
    hidden = len(masks.kept_hidden())
    # A unit's two rows and bias, and the output bias of a sublayer that it opens.
    unit = (2 * hidden + 1 + hidden) / SHAPE.prunable_parameters
    living = living_units(masks)
    if living.any() and not living.all():
        assert abs(realized - target) <= unit


@given(gates=any_gates(), share=st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_kept_units_never_have_a_smaller_log_alpha_than_dropped_ones_of_their_group(
    gates: HardConcreteGates, share: float
):
    masks = masks_at_target(gates, share * reachable_share(gates))
    groups = [(masks.hidden != 0, gates.log_alpha["hidden"])]
    groups += list(zip(masks.heads != 0, gates.log_alpha["heads"], strict=True))
    for on, log_alpha in zip(living_units(masks), gates.log_alpha["ffn"], strict=True):
        if on.any():
            groups.append((on, log_alpha))
    for on, log_alpha in groups:
        if on.any() and not on.all():
            assert float(log_alpha[on].detach().min()) >= float(log_alpha[~on].detach().max())


@given(gates=any_gates(), share=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_kept_values_are_the_soft_values_of_their_gates(gates: HardConcreteGates, share: float):
    masks = masks_at_target(gates, share * reachable_share(gates))
    for name in FAMILIES:
        values = getattr(masks, name)
        soft = torch.sigmoid(1.2 * gates.log_alpha[name].detach())
        on = values != 0
        torch.testing.assert_close(values[on], soft[on])
        assert not values.requires_grad


@given(
    gates=st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=4, unique=True).flatmap(
        lambda families: any_gates(families=tuple(families))
    ),
    target=st.floats(0.0, 0.99),
)
@settings(max_examples=60, deadline=None)
def test_few_families_meet_the_target_or_say_how_close_they_come(
    gates: HardConcreteGates, target: float
):
    try:
        masks = masks_at_target(gates, target)
    except BudgetError as error:
        refusal = str(error)
    else:
        assert abs(realized_sparsity(masks, SHAPE) - target) <= TOLERANCE
        left_out = set(FAMILIES) - set(gates.families)
        assert all(bool((getattr(masks, name) == 1).all()) for name in left_out)
        return
    named = re.search(r"masks of (.+) come no closer to sparsity (\S+) than (\S+);", refusal)
    assert named is not None
    assert named[1] == ", ".join(gates.families)
    assert float(named[2]) == pytest.approx(target, rel=1e-4)
    assert abs(float(named[3]) - target) > TOLERANCE - 1e-4


def test_ffn_alone_meets_every_target_that_it_reaches_and_refuses_the_next():
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 0.0), families=("ffn",))
    attention = 3 * (4 * 16 * 16 + 3 * 16 + 16)
    reach = 1 - attention / SHAPE.prunable_parameters
    for target in (0.0, 0.2, 0.5, reach):
        assert realized_sparsity(masks_at_target(gates, target), SHAPE) == pytest.approx(
            target, abs=TOLERANCE
        )
    words = f"masks of ffn come no closer to sparsity {reach + 0.05:g} than {reach:.4f}"
    with pytest.raises(BudgetError, match=re.escape(words)):
        masks_at_target(gates, reach + 0.05)


def test_dead_sublayers_come_back_where_nothing_living_is_fine_enough():
    # All FFNs are switched off, and attention comes in steps of 1,088 of 9,648 parameters.
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 4.0))
    with torch.no_grad():
        gates.log_alpha["ffn_block"].copy_(torch.tensor([-4.6, -4.4, -4.5]))
        gates.log_alpha["attn_block"].copy_(torch.tensor([-4.0, 4.0, 4.0]))
    two_attentions = 2 * (4 * 16 * 16 + 3 * 16 + 16) / SHAPE.prunable_parameters
    masks = masks_at_target(gates, 1 - two_attentions - 0.05)
    assert realized_sparsity(masks, SHAPE) == pytest.approx(1 - two_attentions - 0.05, abs=0.004)
    assert [bool(masks.kept_ffn(layer)) for layer in range(3)] == [False, True, False]


@given(gates=any_gates())
@settings(max_examples=40, deadline=None)
def test_some_hidden_dimension_always_remains(gates: HardConcreteGates):
    assert len(gates.fixed(shift=-50.0).kept_hidden()) == 1
    masks = masks_at_target(gates, reachable_share(gates))
    assert masks.arch(dense_arch(SHAPE)).hidden >= 1


@given(gates=any_gates(), low=st.floats(-9.0, 9.0), high=st.floats(-9.0, 9.0))
@settings(max_examples=40, deadline=None)
def test_a_higher_shift_never_keeps_less(gates: HardConcreteGates, low: float, high: float):
    low, high = sorted((low, high))
    assert kept_parameters(gates.fixed(low), SHAPE) <= kept_parameters(gates.fixed(high), SHAPE)


def test_the_cut_model_has_the_projected_parameters_and_gates_stay_as_they_were():
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 0.0))
    before = {name: value.detach().clone() for name, value in gates.named_parameters()}
    masks = masks_at_target(gates, 0.7)
    compact = cut(random_model("text-classification", dense_arch(SHAPE)), masks)
    assert compact.arch.prunable_parameters == kept_parameters(masks, SHAPE)
    assert compact.arch.sparsity == pytest.approx(0.7, abs=0.003)
    for name, value in gates.named_parameters():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("target", [0.6, 0.9, 0.95, 0.98])
def test_bert_base_comes_within_one_unit_of_its_target(target: float):
    gates = HardConcreteGates(BERT_BASE, init={**dict.fromkeys(FAMILIES, 4.0), "ffn": 0.0})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in gates.parameters():
            value.add_(3.0 * torch.randn(value.shape, generator=generator))
    gates.clamp()
    masks = masks_at_target(gates, target)
    assert realized_sparsity(masks, BERT_BASE) == pytest.approx(target, abs=2305 / 85_017_600)
