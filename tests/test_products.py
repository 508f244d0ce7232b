"""Widened products against plain ones: the same numbers, of shapes that repeat."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cofi_deploy import products


def maps_of(inputs: int, *outputs: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(width, inputs, generator=generator).requires_grad_(),
            torch.randn(width, generator=generator).requires_grad_(),
        )
        for width in outputs
    ]


def states_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9)).requires_grad_()


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    loss = sum((out.float() * torch.arange(out.shape[-1]).cos()).sum() for out in outputs)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, inputs))


def rounded(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.bfloat16).double()


def test_without_autocast_a_map_is_torch_s_own_bit_for_bit():
    x, [(weight, bias)] = states_of(2, 3, 7), maps_of(7, 5)
    assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("inputs", [1, 31, 32, 45, 300])
@pytest.mark.parametrize("outputs", [(1,), (33,), (32, 32, 32), (5, 70, 300)])
def test_widened_maps_multiply_what_bf16_holds(inputs: int, outputs: tuple[int, ...]):
    x, maps = states_of(2, 6, inputs), maps_of(inputs, *outputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = products.linears(x, maps)
    for out, (weight, bias) in zip(got, maps, strict=True):
        expected = F.linear(rounded(x), rounded(weight), rounded(bias))
        assert out.dtype == torch.bfloat16
        # Products are summed in fp32; what is rounded are the sum and the sum with the bias.
        size = F.linear(rounded(x).abs(), rounded(weight).abs(), rounded(bias).abs())
        assert float(((out.detach().double() - expected).abs() / size).max()) < 2**-7


@pytest.mark.parametrize("outputs", [(33,), (32, 32, 32), (5, 70, 300)])
def test_gradients_of_widened_maps_are_those_of_plain_ones(outputs: tuple[int, ...]):
    x, maps = states_of(2, 6, 45), maps_of(45, *outputs)
    inputs = [x, *(tensor for each in maps for tensor in each)]
    expected = gradients([F.linear(x, *each) for each in maps], inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(products.linears(x, maps), inputs)
    for mine, plain in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - plain).norm() / plain.norm()) < 0.01


def test_widths_under_masks_meet_few_shapes(monkeypatch: pytest.MonkeyPatch):
    shapes = set()
    matmul = torch.Tensor.__matmul__

    def spy(left: Tensor, right: Tensor) -> Tensor:
        shapes.add((*left.shape, *right.shape))
        return matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for width in range(1, 385):
            products.linear(states_of(4, width).detach(), *maps_of(width, width)[0])
    assert len(shapes) == 256 // 32 + (384 - 256) // 64
