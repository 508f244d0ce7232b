"""Widths that are multiples: the budget held, the best units taken, nothing padded."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import BudgetError, ConfigError
from cofi_deploy.masks import FAMILIES, Masks
from cofi_deploy.train.alignment import aligned_masks, check_alignment
from cofi_deploy.train.cut import cut
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.projection import masks_at_target
from cofi_deploy.train.sparsity import realized_sparsity
from tests.builders import BERT_BASE, dense_arch, random_inputs, random_model

# Eight FFN units are at most 520 of 105,984 parameters, 0.5 %.
SHAPE = DenseShape(layers=4, hidden=32, heads=4, ffn=256, head_size=8)
MINILM = DenseShape(layers=6, hidden=384, heads=12, ffn=1536, head_size=32)
TOLERANCE = 0.005


def gates_of(
    shape: DenseShape,
    seed: int,
    *,
    mean: float = 0.0,
    deviation: float = 3.0,
    families: tuple[str, ...] = FAMILIES,
) -> HardConcreteGates:
    gates = HardConcreteGates(shape, init=dict.fromkeys(FAMILIES, mean), families=families)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in gates.parameters():
            value.add_(deviation * torch.randn(value.shape, generator=generator))
    gates.clamp()
    return gates


def widths(masks: Masks) -> list[int]:
    return [len(masks.kept_ffn(layer)) for layer in range(len(masks.ffn))]


@given(
    seed=st.integers(0, 2**16),
    mean=st.sampled_from([-2.0, 0.0, 3.0]),
    deviation=st.sampled_from([0.01, 1.0, 3.0]),
    target=st.floats(0.3, 0.95),
)
@settings(max_examples=25, deadline=None)
def test_all_sizes_are_multiples_and_the_budget_holds(seed, mean, deviation, target):
    gates = gates_of(SHAPE, seed, mean=mean, deviation=deviation)
    try:
        masks = aligned_masks(gates, target, 8)
    except BudgetError:  # attention is coarse here
        assume(False)
    arch = masks.arch(dense_arch(SHAPE))
    assert arch.hidden % 8 == 0 < arch.hidden
    assert all(layer.ffn % 8 == 0 for layer in arch.layers)
    assert abs(arch.sparsity - target) <= TOLERANCE
    assert realized_sparsity(masks, SHAPE) == pytest.approx(arch.sparsity, abs=1e-12)


@pytest.mark.parametrize("multiple", [8, 16, 32])
@pytest.mark.parametrize("target", [0.6, 0.9, 0.95])
def test_real_sizes_meet_every_budget_at_every_multiple(multiple: int, target: float):
    gates = gates_of(MINILM, 0, mean=1.0)
    arch = aligned_masks(gates, target, multiple).arch(dense_arch(MINILM))
    assert arch.sparsity == pytest.approx(target, abs=0.5 * multiple * 769 / 10_637_568 + 1e-4)
    assert {arch.hidden % multiple, *(layer.ffn % multiple for layer in arch.layers)} == {0}


def test_a_multiple_of_one_changes_nothing():
    gates = gates_of(SHAPE, 3)
    plain, aligned = masks_at_target(gates, 0.8), aligned_masks(gates, 0.8, 1)
    for name in FAMILIES:
        assert torch.equal(getattr(plain, name), getattr(aligned, name))


@given(seed=st.integers(0, 2**16), target=st.floats(0.3, 0.9))
@settings(max_examples=15, deadline=None)
def test_kept_units_have_the_largest_log_alpha_and_their_soft_values(seed: int, target: float):
    gates = gates_of(SHAPE, seed, mean=1.0)
    try:
        masks = aligned_masks(gates, target, 8)
    except BudgetError:
        assume(False)
    groups = [(masks.hidden, gates.log_alpha["hidden"].detach())]
    groups += list(zip(masks.ffn, gates.log_alpha["ffn"].detach(), strict=True))
    for values, log_alpha in groups:
        on = values != 0
        torch.testing.assert_close(values[on], torch.sigmoid(1.2 * log_alpha[on]))
        if on.any() and not on.all():
            assert float(log_alpha[on].min()) >= float(log_alpha[~on].max())


@given(seed=st.integers(0, 2**16), target=st.floats(0.4, 0.9))
@settings(max_examples=15, deadline=None)
def test_no_other_rounding_of_the_widths_keeps_a_larger_sum_of_log_alpha(seed: int, target: float):
    """Against every way to round each width up or down that keeps as many units in all."""
    families = ("ffn",)  # so that the hidden size does not move, and the widths alone decide
    gates = gates_of(SHAPE, seed, deviation=1.5, families=families)
    try:
        before, after = masks_at_target(gates, target), aligned_masks(gates, target, 8)
    except BudgetError:
        assume(False)
    ranked = gates.log_alpha["ffn"].detach().double().sort(dim=-1, descending=True).values
    sums = torch.cat([torch.zeros(len(ranked), 1), ranked.cumsum(-1)], dim=-1)  # (layers, ffn + 1)
    ways = itertools.product(*({w // 8 * 8, -(-w // 8) * 8} for w in widths(before)))
    same_size = [way for way in ways if sum(way) == sum(widths(after))]
    totals = {way: float(sum(sums[at, w] for at, w in enumerate(way))) for way in same_size}
    assert tuple(widths(after)) in totals
    assert totals[tuple(widths(after))] == pytest.approx(max(totals.values()), abs=1e-6)


def test_the_hidden_size_goes_up_and_ffn_units_pay_for_it():
    gates = gates_of(MINILM, 5, mean=1.0)
    before, after = masks_at_target(gates, 0.9), aligned_masks(gates, 0.9, 32)
    kept = len(before.kept_hidden())
    assert kept % 32  # else nothing is tested
    assert len(after.kept_hidden()) == -(-kept // 32) * 32
    assert set(after.kept_hidden()) > set(before.kept_hidden())
    assert sum(widths(after)) < sum(widths(before))


def test_vanished_sublayers_stay_away_and_a_narrow_one_may_vanish():
    gates = gates_of(SHAPE, 1, mean=2.0, deviation=0.5)
    with torch.no_grad():
        gates.log_alpha["ffn_block"].copy_(torch.tensor([-4.6, 4.0, 4.0, 4.0]))
        gates.log_alpha["ffn"][1] = -4.6
        gates.log_alpha["ffn"][1, :2] = 4.6
    before, after = masks_at_target(gates, 0.5), aligned_masks(gates, 0.5, 8)
    assert widths(before)[0] == 0 < widths(before)[1] < 8
    assert widths(after)[:2] == [0, 0]


def test_a_dead_sublayer_comes_back_in_whole_blocks_where_nothing_else_makes_up():
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 4.0))
    with torch.no_grad():
        gates.log_alpha["ffn_block"].copy_(torch.tensor([-4.6, -4.3, -4.5, -4.6]))
    attention = 4 * (4 * 32 * 32 + 3 * 32 + 32) / SHAPE.prunable_parameters
    masks = aligned_masks(gates, 1 - attention - 0.05, 8)
    assert [at for at, width in enumerate(widths(masks)) if width] == [1]
    assert widths(masks)[1] % 8 == 0


@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_the_cut_model_answers_as_the_masked_one(kind):
    model = random_model(kind, dense_arch(SHAPE))
    masks = aligned_masks(gates_of(SHAPE, 7, mean=1.0), 0.7, 8)
    compact = cut(model, masks)
    inputs = random_inputs()
    with torch.inference_mode():
        expected, got = model.outputs(inputs, masks), compact.outputs(inputs)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)
    assert compact.arch.hidden % 8 == 0


def test_families_that_are_not_pruned_keep_their_size():
    gates = gates_of(SHAPE, 2, families=("heads", "ffn"))
    masks = aligned_masks(gates, 0.5, 8)
    assert bool((masks.hidden == 1).all())
    assert bool((masks.ffn_block == 1).all())


def test_a_model_smaller_than_the_multiple_is_refused_before_training():
    small = DenseShape(layers=2, hidden=24, heads=2, ffn=64, head_size=12)
    words = "--align is 32, but the model's hidden size is 24; use a smaller one or leave it out"
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_alignment(small, 32)


def test_a_step_beyond_the_tolerance_is_refused_before_training():
    words = "--align is 32, but so many FFN units are 2.5% of this model, too coarse to meet"
    with pytest.raises(BudgetError, match=re.escape(words)):
        check_alignment(SHAPE, 32)
    check_alignment(BERT_BASE, 32)


def test_a_target_between_two_steps_says_how_close_it_comes():
    # FFNs stay whole here, which takes a hidden size below 8.
    gates = gates_of(SHAPE, 0, families=("heads", "hidden"))
    with pytest.raises(BudgetError, match=r"come no closer to sparsity 0\.97"):
        aligned_masks(gates, 0.97, 8)
