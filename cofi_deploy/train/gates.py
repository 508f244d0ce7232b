"""Hard-concrete gates: a random value in [0, 1] with exact zeros for everything prunable.

In: a `DenseShape`. Out: `Masks`, sampled while training or fixed for evaluation. Next file:
`sparsity.py`.

Source: Louizos et al. 2018, arXiv:1712.01312 (distribution); Xia et al. 2022 (the five families,
the fixed masks); constants from cofi-spec 1.2.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import ConfigError, did_you_mean
from cofi_deploy.masks import FAMILIES, Masks, mask_shapes

LIMIT_LOW = -0.1
LIMIT_HIGH = 1.1
TEMPERATURE = 2.0 / 3.0
EPSILON = 1e-6
SOFT_FACTOR = 0.8  # of the fixed mask: sigmoid(log_alpha / TEMPERATURE * SOFT_FACTOR)
CLAMP = math.log(100.0)  # log_alpha stays within +-4.605
INIT_DEVIATION = 0.01
SWITCHES = ("attn_block", "ffn_block")  # every entry decides for itself, not by rank in a group

# P(gate > 0) = sigmoid(log_alpha + _KEEP_SHIFT), 1.5986
_KEEP_SHIFT = TEMPERATURE * math.log(-LIMIT_HIGH / LIMIT_LOW)


class HardConcreteGates(nn.Module):
    """One ``log_alpha`` for each unit of the five families."""

    def __init__(
        self,
        shape: DenseShape,
        *,
        init: Mapping[str, float],
        families: Collection[str] = FAMILIES,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw ``log_alpha`` around ``init[family]``.

        Args:
            shape: Sizes of the dense model.
            init: Mean of the initial ``log_alpha`` of every family.
            families: Families that are pruned; the others stay at 1 for good.
            generator: Source of the initial noise (deviation 0.01).

        Raises:
            ConfigError: A family that does not exist, or none at all.
        """
        super().__init__()
        unknown = [name for name in families if name not in FAMILIES]
        if unknown:
            raise ConfigError(
                f"unknown mask family {unknown[0]!r}; {did_you_mean(unknown[0], FAMILIES)}"
            )
        if not families:
            raise ConfigError(f"no mask family to prune; allowed: {', '.join(FAMILIES)}")
        self.shape = shape
        self.families = tuple(name for name in FAMILIES if name in families)
        sizes = mask_shapes(shape)
        self.log_alpha = nn.ParameterDict(
            {
                name: nn.Parameter(
                    init[name] + INIT_DEVIATION * torch.randn(sizes[name], generator=generator)
                )
                for name in self.families
            }
        )

    def sample(self, generator: torch.Generator | None = None) -> Masks:
        """One draw for the whole batch; gradients reach ``log_alpha`` where 0 < gate < 1."""
        return self._masks(
            {name: _sample(self.log_alpha[name], generator) for name in self.families}
        )

    def keep_prob(self) -> Masks:
        """P(gate > 0) of every unit, in the form of masks; differentiable."""
        return self._masks({name: keep_prob(self.log_alpha[name]) for name in self.families})

    def fixed(self, shift: float = 0.0) -> Masks:
        """Masks without randomness, for evaluation and for the cut.

        In every group (one layer's heads or units, the hidden vector, one switch) as many units
        are zero as are expected to be, the ones with the smallest ``log_alpha``; the others keep
        their soft value.

        Args:
            shift: Added to ``log_alpha`` for the count only; the projection onto a budget moves
                it up to keep more and down to keep less.
        """
        with torch.no_grad():
            return self._masks(
                {name: _fixed(name, self.log_alpha[name], shift) for name in self.families}
            )

    def clamp(self) -> None:
        """Keep ``log_alpha`` within ln 0.01 and ln 100; called after every optimizer step."""
        with torch.no_grad():
            for parameter in self.log_alpha.values():
                parameter.clamp_(-CLAMP, CLAMP)

    def _masks(self, values: Mapping[str, Tensor]) -> Masks:
        device = next(iter(self.log_alpha.values())).device
        ones = {
            name: torch.ones(size, device=device)
            for name, size in mask_shapes(self.shape).items()
            if name not in values
        }
        return Masks(**values, **ones)


def keep_prob(log_alpha: Tensor) -> Tensor:
    """P(gate > 0), clipped to [1e-6, 1 - 1e-6]; same shape as ``log_alpha``."""
    return torch.sigmoid(log_alpha + _KEEP_SHIFT).clamp(EPSILON, 1.0 - EPSILON)


def _sample(log_alpha: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(log_alpha.shape, generator=generator, device=log_alpha.device)
    uniform = uniform * (1.0 - 2.0 * EPSILON) + EPSILON
    noise = uniform.log() - (-uniform).log1p()
    stretched = (
        torch.sigmoid((noise + log_alpha) / TEMPERATURE) * (LIMIT_HIGH - LIMIT_LOW) + LIMIT_LOW
    )
    return stretched.clamp(0.0, 1.0)


def _fixed(name: str, log_alpha: Tensor, shift: float) -> Tensor:
    soft = torch.sigmoid(log_alpha / TEMPERATURE * SOFT_FACTOR)
    prob = keep_prob(log_alpha + shift)
    if name in SWITCHES:
        return soft * (prob >= 0.5)
    # The last axis is a group: one layer's heads or units, or the whole hidden vector.
    size = prob.shape[-1]
    zeros = (size - prob.sum(dim=-1, keepdim=True)).round()  # (..., 1)
    if name == "hidden":
        zeros = zeros.clamp(max=size - 1)  # a model without any hidden dimension is none
    # By log_alpha, since close soft values near 0 and 1 are equal in fp32.
    rank = log_alpha.argsort(dim=-1, stable=True).argsort(dim=-1)  # (..., size), 0 the smallest
    return soft * (rank >= zeros)
