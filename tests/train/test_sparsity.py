"""Sparsity as training expects it equals sparsity as counted in what a cut leaves."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings

from cofi_deploy.arch import DenseShape
from cofi_deploy.encoder import Attention, FeedForward
from cofi_deploy.errors import BudgetError
from cofi_deploy.masks import FAMILIES, Masks, mask_shapes
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.train.cut import cut
from cofi_deploy.train.gates import CLAMP, HardConcreteGates
from cofi_deploy.train.sparsity import (
    check_target,
    expected_parameters,
    expected_sparsity,
    kept_parameters,
    reachable_share,
    realized_sparsity,
)
from tests.builders import (
    BERT_BASE,
    SMALL,
    any_masks,
    as_double,
    dense_arch,
    masks_of,
    random_model,
)

MODEL = random_model("text-classification")


def stored_parameters(model: CofiPreTrainedModel) -> int:
    """Elements of attention and FFN tensors, LayerNorms left out."""
    return sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, Attention | FeedForward)
        for name, parameter in module.named_parameters()
        if not name.startswith("norm.")
    )


@given(masks=any_masks(SMALL, soft=False))
@settings(max_examples=60, deadline=None)
def test_expectation_of_hard_masks_counts_the_tensors_of_the_cut_model(masks: Masks):
    compact = cut(MODEL, masks)
    stored = stored_parameters(compact)
    assert float(expected_parameters(as_double(masks), SMALL)) == stored
    assert kept_parameters(masks, SMALL) == stored == compact.arch.prunable_parameters
    sparsity = 1 - stored / stored_parameters(MODEL)
    assert float(expected_sparsity(as_double(masks), SMALL)) == pytest.approx(sparsity, abs=1e-12)
    assert realized_sparsity(masks, SMALL) == compact.arch.sparsity == pytest.approx(sparsity)


@given(masks=any_masks(SMALL, soft=True))
@settings(max_examples=30, deadline=None)
def test_soft_masks_count_as_the_units_that_they_keep(masks: Masks):
    assert kept_parameters(masks, SMALL) == masks.arch(dense_arch()).prunable_parameters


@pytest.mark.parametrize(
    "masks",
    [
        Masks.ones(SMALL),
        masks_of(SMALL, attn_off=[0, 1, 2], ffn_off=[0, 1, 2], soft=False),
        masks_of(SMALL, heads=[0, 0, 0], ffn=[0, 0, 0], soft=False),
        masks_of(SMALL, heads=[1, 0, 0], ffn=[0, 0, 1], hidden=1, soft=False),
        masks_of(SMALL, heads=[0, 1, 3], ffn=[1, 0, 20], attn_off=[2], soft=False),
    ],
    ids=["all", "switches off", "units off", "one head and unit", "mixed"],
)
def test_extreme_structures_are_counted_exactly(masks: Masks):
    stored = stored_parameters(cut(MODEL, masks))
    assert float(expected_parameters(masks, SMALL)) == stored


def test_fp32_expectation_of_a_dense_bert_base_is_exact_to_a_millionth():
    expected = expected_parameters(Masks.ones(BERT_BASE), BERT_BASE)
    assert float(expected) == pytest.approx(85_017_600, rel=1e-6)
    assert kept_parameters(Masks.ones(BERT_BASE), BERT_BASE) == 85_017_600


@pytest.mark.parametrize("seed", range(3))
def test_expectation_is_the_mean_over_independent_draws(seed: int):
    shape = DenseShape(layers=2, hidden=5, heads=2, ffn=4, head_size=3)
    generator = torch.Generator().manual_seed(seed)
    probabilities = {
        name: torch.rand(size, generator=generator, dtype=torch.float64)
        for name, size in mask_shapes(shape).items()
    }
    draws = 3000
    counts = torch.empty(draws, dtype=torch.float64)
    for index in range(draws):
        drawn = {
            name: torch.rand(p.shape, generator=generator, dtype=torch.float64) < p
            for name, p in probabilities.items()
        }
        counts[index] = count_by_hand(drawn, shape)
    tolerance = 5.0 * float(counts.std()) / math.sqrt(draws)
    expected = float(expected_parameters(Masks(**probabilities), shape))
    assert float(counts.mean()) == pytest.approx(expected, abs=tolerance)


def count_by_hand(on: dict[str, torch.Tensor], shape: DenseShape) -> int:
    """Parameters of one draw, tensor by tensor."""
    hidden, total = int(on["hidden"].sum()), 0
    for layer in range(shape.layers):
        width = int(on["heads"][layer].sum()) * shape.head_size * bool(on["attn_block"][layer])
        units = int(on["ffn"][layer].sum()) * bool(on["ffn_block"][layer])
        if width:
            total += 3 * (width * hidden + width) + (hidden * width + hidden)
        if units:
            total += (units * hidden + units) + (hidden * units + hidden)
    return total


@pytest.mark.parametrize("ones", [(), ("heads",), ("ffn", "hidden"), ("attn_block", "ffn_block")])
def test_gradient_is_the_finite_difference(ones: tuple[str, ...]):
    generator = torch.Generator().manual_seed(1)
    values = {
        name: torch.ones(size, dtype=torch.float64)
        if name in ones
        else torch.rand(size, generator=generator, dtype=torch.float64).requires_grad_()
        for name, size in mask_shapes(SMALL).items()
    }
    free = [name for name in FAMILIES if name not in ones]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        masks = Masks(**{**values, **dict(zip(free, tensors, strict=True))})
        return expected_sparsity(masks, SMALL)

    assert torch.autograd.gradcheck(function, [values[name] for name in free], atol=1e-7)


def test_gradient_is_finite_at_exact_zeros_and_ones():
    masks = masks_of(SMALL, heads=[0, 3, 1], ffn=[20, 0, 1], attn_off=[1], soft=False)
    values = {name: value.double().requires_grad_() for name, value in vars(masks).items()}
    expected_sparsity(Masks(**values), SMALL).backward()
    for name, value in values.items():
        assert value.grad.isfinite().all(), name


def test_more_of_anything_is_never_sparser():
    gates = HardConcreteGates(SMALL, init=dict.fromkeys(FAMILIES, 0.5))
    expected_sparsity(gates.keep_prob(), SMALL).backward()
    for name, value in gates.log_alpha.items():
        assert bool((value.grad < 0).all()), name


def test_first_expected_sparsity_of_bert_base_is_that_of_the_paper():
    # cofi-spec 1.3: 0.117 with FFN units at 0 and the rest at 10; ours counts biases as well.
    init = {**dict.fromkeys(FAMILIES, 10.0), "ffn": 0.0}
    gates = HardConcreteGates(BERT_BASE, init=init)
    assert expected(gates) == pytest.approx(0.112, abs=0.001)
    gates.clamp()
    assert expected(gates) == pytest.approx(0.117, abs=0.001)


def expected(gates: HardConcreteGates) -> float:
    return float(expected_sparsity(gates.keep_prob(), gates.shape).detach())


@pytest.mark.parametrize(
    ("families", "maximum"),
    [(FAMILIES, 0.9999), (("heads", "ffn"), 0.9529), (("ffn",), 0.9529 * 2 / 3)],
)
def test_reachable_sparsity_of_bert_base_is_that_of_the_lower_clamp(
    families: tuple[str, ...], maximum: float
):
    gates = HardConcreteGates(BERT_BASE, init=dict.fromkeys(FAMILIES, 0.0), families=families)
    reachable = reachable_share(gates)
    assert reachable == pytest.approx(maximum - 0.002, abs=0.0015)
    with torch.no_grad():
        for value in gates.parameters():
            value.fill_(-CLAMP)
        floor = float(expected_sparsity(gates.keep_prob(), BERT_BASE))
    assert reachable < floor


def test_targets_beyond_the_reachable_are_refused_with_the_maximum_and_the_families():
    gates = HardConcreteGates(SMALL, init=dict.fromkeys(FAMILIES, 0.0), families=("ffn", "heads"))
    maximum = reachable_share(gates)
    check_target(0.0, gates)
    check_target(maximum, gates)
    words = f"target sparsity is 0.97, but masks of heads, ffn reach 0 to {maximum:.4f}"
    with pytest.raises(BudgetError, match=re.escape(words)):
        check_target(0.97, gates)
    with pytest.raises(BudgetError, match=re.escape("target sparsity is -0.1")):
        check_target(-0.1, gates)


def test_the_refused_maximum_does_not_depend_on_where_the_gates_are():
    low, high = (
        HardConcreteGates(SMALL, init=dict.fromkeys(FAMILIES, value)) for value in (-4.0, 4.0)
    )
    assert reachable_share(low) == reachable_share(high)
