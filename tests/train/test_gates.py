"""Hard-concrete gates: closed forms, sampling, and the masks without randomness."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import ConfigError
from cofi_deploy.masks import FAMILIES, mask_shapes
from cofi_deploy.train.gates import CLAMP, HardConcreteGates, keep_prob
from tests.builders import SMALL

# One layer with so many FFN units that rates can be measured.
MANY = 200_000
WIDE = DenseShape(layers=1, hidden=2, heads=1, ffn=MANY, head_size=2)
SIGMAS = 5.0  # a fixed seed that passes; a wrong rate fails by far more


def gates_of(shape: DenseShape = SMALL, value: float = 0.0, **options: object) -> HardConcreteGates:
    gates = HardConcreteGates(shape, init=dict.fromkeys(FAMILIES, value), **options)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.fill_(value)
    return gates


def spread_gates(seed: int, deviation: float, shape: DenseShape = SMALL) -> HardConcreteGates:
    gates = HardConcreteGates(shape, init=dict.fromkeys(FAMILIES, 0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    gates.clamp()
    return gates


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


@pytest.mark.parametrize(
    ("log_alpha", "probability"),
    [(10.0, 0.99999), (4.6052, 0.99798), (0.0, 0.831822), (-1.5986, 0.5), (-4.6052, 0.04713)],
)
def test_keep_probability_has_its_closed_form(log_alpha: float, probability: float):
    # cofi-spec 1.2; 1.5986 = 2/3 * ln(1.1 / 0.1)
    value = float(keep_prob(torch.tensor(log_alpha, dtype=torch.float64)))
    assert value == pytest.approx(probability, abs=6e-6)
    assert value == pytest.approx(sigmoid(log_alpha + 2.0 / 3.0 * math.log(11.0)), abs=1e-12)


def test_keep_probability_is_clipped_away_from_zero_and_one():
    probability = keep_prob(torch.tensor([-100.0, 100.0], dtype=torch.float64))
    assert probability.tolist() == [1e-6, 1.0 - 1e-6]


@pytest.mark.parametrize("log_alpha", [-CLAMP, -1.5986, 0.0, 2.0, CLAMP])
def test_sampled_rates_follow_the_closed_forms(log_alpha: float):
    gates = gates_of(WIDE, log_alpha)
    sample = gates.sample(torch.Generator().manual_seed(1)).ffn
    above = sigmoid(log_alpha + 2.0 / 3.0 * math.log(11.0))  # P(gate > 0)
    full = sigmoid(log_alpha - 2.0 / 3.0 * math.log(11.0))  # P(gate = 1)
    for rate, expected in ((sample > 0, above), (sample == 1, full)):
        tolerance = SIGMAS * math.sqrt(expected * (1 - expected) / MANY)
        assert float(rate.double().mean()) == pytest.approx(expected, abs=tolerance)
    assert bool(((sample >= 0) & (sample <= 1)).all())


@pytest.mark.parametrize(("log_alpha", "share"), [(4.6052, 0.953), (0.0, 0.168), (-4.6052, 0.002)])
def test_shares_of_full_gates_are_those_of_the_paper(log_alpha: float, share: float):
    sample = gates_of(WIDE, log_alpha).sample(torch.Generator().manual_seed(2)).ffn
    assert float((sample == 1).double().mean()) == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.0])
def test_sampled_values_between_zero_and_one_follow_the_stretched_logistic(log_alpha: float):
    sample = gates_of(WIDE, log_alpha).sample(torch.Generator().manual_seed(3)).ffn.flatten()
    # Dvoretzky-Kiefer-Wolfowitz: beyond this distance with probability 1e-6.
    tolerance = math.sqrt(math.log(2.0 / 1e-6) / (2.0 * MANY))
    for point in (0.05, 0.2, 0.5, 0.8, 0.95):
        unstretched = (point + 0.1) / 1.2
        expected = sigmoid(2.0 / 3.0 * math.log(unstretched / (1 - unstretched)) - log_alpha)
        assert float((sample <= point).double().mean()) == pytest.approx(expected, abs=tolerance)


def test_samples_repeat_with_the_generator_and_differ_without():
    gates = gates_of()
    first, again = (gates.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    generator = torch.Generator().manual_seed(7)
    gates.sample(generator)
    other = gates.sample(generator)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in FAMILIES)
    assert not torch.equal(first.ffn, other.ffn)


def test_gradient_flows_through_the_interior_and_stops_at_both_ends():
    gates = gates_of(WIDE).double()
    gates.sample(torch.Generator().manual_seed(4)).ffn.sum().backward()
    sample = gates.sample(torch.Generator().manual_seed(4)).ffn.detach()
    gradient = gates.log_alpha["ffn"].grad
    inside = (sample > 0) & (sample < 1)
    # z = 1.2 s - 0.1, so dz/dlog_alpha = 1.2 s (1 - s) / (2/3)
    s = (sample + 0.1) / 1.2
    torch.testing.assert_close(gradient[inside], (1.2 * s * (1 - s) * 1.5)[inside])
    assert bool((gradient[~inside] == 0).all())
    assert 0.4 < float(inside.double().mean()) < 0.8


def test_gradient_of_a_sample_is_its_finite_difference():
    gates = spread_gates(0, 1.0).double()
    direction = {name: torch.rand_like(value) for name, value in gates.log_alpha.items()}

    def total() -> Tensor:
        masks = gates.sample(torch.Generator().manual_seed(5))
        return sum(getattr(masks, name).square().sum() for name in FAMILIES)

    total().backward()
    slope = sum((gates.log_alpha[name].grad * direction[name]).sum() for name in FAMILIES)
    step, ends = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for name, value in gates.log_alpha.items():
                value.add_(sign * step * direction[name])
            ends.append(total())
    assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-5)


@given(seed=st.integers(0, 999), deviation=st.floats(0.1, 5.0), shift=st.floats(-6.0, 6.0))
@settings(max_examples=60, deadline=None)
def test_fixed_masks_zero_the_expected_number_of_smallest_gates(
    seed: int, deviation: float, shift: float
):
    gates = spread_gates(seed, deviation)
    masks = gates.fixed(shift)
    for name in ("hidden", "heads", "ffn"):
        log_alpha = gates.log_alpha[name].detach()
        rows, size = getattr(masks, name).reshape(-1, log_alpha.shape[-1]), log_alpha.shape[-1]
        for values, alphas in zip(rows, log_alpha.reshape(-1, size), strict=True):
            expected_off = size - float(keep_prob(alphas + shift).double().sum())
            if name == "hidden":  # one dimension always stays
                expected_off = min(expected_off, size - 1)
            off = int((values == 0).sum())
            assert abs(off - expected_off) <= 0.5 + 1e-4
            check_ranks_and_soft_values(values, alphas)
    for name in ("attn_block", "ffn_block"):
        log_alpha, values = gates.log_alpha[name].detach(), getattr(masks, name)
        clear = (log_alpha + shift + 1.5986).abs() > 1e-3
        assert torch.equal((values != 0)[clear], (log_alpha + shift > -1.5986)[clear])
        on = values != 0
        torch.testing.assert_close(values[on], torch.sigmoid(1.2 * log_alpha[on]))


def check_ranks_and_soft_values(values: Tensor, log_alpha: Tensor) -> None:
    """Kept ones have the largest log_alpha and the value sigmoid(1.2 log_alpha)."""
    on = values != 0
    torch.testing.assert_close(values[on], torch.sigmoid(1.2 * log_alpha[on]))
    if on.any() and not on.all():
        assert float(log_alpha[on].min()) >= float(log_alpha[~on].max())


def test_close_gates_near_saturation_are_still_ranked_by_log_alpha():
    # Their soft values are equal in fp32, their log_alpha are not.
    gates = gates_of(DenseShape(layers=1, hidden=2, heads=1, ffn=8, head_size=2), 10.0)
    with torch.no_grad():
        gates.log_alpha["ffn"].copy_(10.0 - 0.002 * torch.arange(8.0))
    kept = gates.fixed(shift=-11.6).ffn[0] != 0
    assert 0 < int(kept.sum()) < 8
    assert kept.tolist() == sorted(kept.tolist(), reverse=True)


def test_no_pressure_at_all_still_rounds_two_hidden_dimensions_of_bert_base_away():
    # cofi-spec 1.3: 768 * (1 - 0.99798) = 1.55, 3072 * 0.00202 = 6.2
    base = DenseShape(layers=1, hidden=768, heads=12, ffn=3072, head_size=64)
    masks = gates_of(base, CLAMP).fixed()
    assert len(masks.kept_hidden()) == 766
    assert len(masks.kept_ffn(0)) == 3066
    assert len(masks.kept_heads(0)) == 12
    assert float(masks.hidden.max()) == pytest.approx(0.99603, abs=1e-5)


def test_the_lower_clamp_alone_leaves_the_residue_of_the_paper():
    base = DenseShape(layers=1, hidden=768, heads=12, ffn=3072, head_size=64)
    gates = gates_of(base, -CLAMP)
    masks = gates.fixed()
    assert int((masks.ffn != 0).sum()) == 145
    assert int((masks.hidden != 0).sum()) == 36
    assert int((masks.heads != 0).sum()) == 1
    assert masks.kept_ffn(0) == masks.kept_heads(0) == []
    assert not masks.attn_block.any()


def test_fixed_masks_carry_no_gradient_and_do_not_change_with_time():
    gates = spread_gates(3, 2.0)
    first, second = gates.fixed(), gates.fixed()
    for name in FAMILIES:
        assert not getattr(first, name).requires_grad
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_clamp_keeps_log_alpha_within_ln_one_hundredth_and_ln_hundred():
    gates = gates_of(value=10.0)
    with torch.no_grad():
        gates.log_alpha["heads"].fill_(-10.0)
        gates.log_alpha["ffn"].fill_(1.25)
    gates.clamp()
    for name, value in (("hidden", math.log(100)), ("heads", math.log(0.01)), ("ffn", 1.25)):
        log_alpha = gates.log_alpha[name].detach()
        torch.testing.assert_close(log_alpha, torch.full_like(log_alpha, value))
    assert all(parameter.requires_grad for parameter in gates.parameters())


@pytest.mark.parametrize("families", [("ffn",), ("heads", "ffn_block"), ("hidden", "attn_block")])
def test_families_left_out_stay_at_one(families: tuple[str, ...]):
    gates = gates_of(value=-4.0, families=families)
    assert set(gates.log_alpha) == set(gates.families) == set(families)
    for masks in (gates.sample(torch.Generator().manual_seed(0)), gates.fixed(), gates.keep_prob()):
        for name, size in mask_shapes(SMALL).items():
            values = getattr(masks, name)
            assert tuple(values.shape) == size
            assert bool((values == 1).all()) == (name not in families)


def test_initial_log_alpha_is_normal_around_the_mean_of_its_family():
    init = {"hidden": 10.0, "heads": 10.0, "ffn": 0.0, "attn_block": 10.0, "ffn_block": 5.0}
    gates = HardConcreteGates(WIDE, init=init, generator=torch.Generator().manual_seed(0))
    again = HardConcreteGates(WIDE, init=init, generator=torch.Generator().manual_seed(0))
    ffn = gates.log_alpha["ffn"].detach().double()
    assert float(ffn.mean()) == pytest.approx(0.0, abs=SIGMAS * 0.01 / math.sqrt(MANY))
    assert float(ffn.std()) == pytest.approx(0.01, rel=0.02)
    for name, mean in init.items():
        assert torch.equal(gates.log_alpha[name], again.log_alpha[name])
        assert float((gates.log_alpha[name].detach() - mean).abs().max()) < 0.06


def test_keep_probabilities_are_differentiable_masks():
    gates = spread_gates(1, 1.0)
    probabilities = gates.keep_prob()
    for name in FAMILIES:
        expected = torch.sigmoid(gates.log_alpha[name] + 1.59861)
        torch.testing.assert_close(getattr(probabilities, name), expected, atol=1e-5, rtol=0)
    probabilities.ffn.sum().backward()
    p = probabilities.ffn.detach()
    torch.testing.assert_close(gates.log_alpha["ffn"].grad, p * (1 - p))


def test_an_unknown_family_is_refused_with_the_nearest_one():
    words = "unknown mask family 'head'; allowed: hidden, heads, ffn, attn_block, ffn_block"
    with pytest.raises(ConfigError, match=re.escape(words) + ".*did you mean 'heads'"):
        gates_of(families=("head",))


def test_no_family_at_all_is_refused():
    with pytest.raises(ConfigError, match="no mask family to prune; allowed: hidden, heads"):
        gates_of(families=())
