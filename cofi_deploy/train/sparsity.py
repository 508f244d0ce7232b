"""The one definition of sparsity: 1 - kept / prunable encoder parameters.

Prunable are the weights and biases of attention and FFN, as in `DenseShape.prunable_parameters`.
`expected_parameters` of 0/1 masks equals the count of the tensors that a cut leaves; for keep
probabilities it is the exact expectation of that count. Next file: `lagrangian.py`.

Differs from reference: it had four definitions, among them one whose biases appeared in the total
but never in what remains (cofi-spec 2.2, 7.1 item 9).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import BudgetError
from cofi_deploy.masks import Masks
from cofi_deploy.train.cost import Cost, Number, alive, alive_blocks, expected_share
from cofi_deploy.train.gates import CLAMP, HardConcreteGates, keep_prob

TOLERANCE = 0.005  # product.md: realised within 0.5 % of the sparsity
# The Lagrangian has to be able to overshoot a little, so the very end of the range is refused.
_MARGIN = 0.002


@dataclass(frozen=True)
class ParameterCost:
    """The `Cost` of a sparsity: prunable encoder parameters."""

    shape: DenseShape
    name = "sparsity"

    @property
    def total(self) -> float:
        """Prunable parameters of the dense model."""
        return self.shape.prunable_parameters

    def value(self, share: Number) -> Number:
        """A sparsity is that share."""
        return share

    def tolerance(self, target: float) -> float:
        """Half a percent of the parameters."""
        return TOLERANCE

    def expected(self, probabilities: Masks) -> Float[Tensor, ""]:
        """See `expected_parameters`."""
        return expected_parameters(probabilities, self.shape)

    def kept(self, masks: Masks) -> float:
        """See `kept_parameters`."""
        return kept_parameters(masks, self.shape)


def expected_parameters(probabilities: Masks, shape: DenseShape) -> Float[Tensor, ""]:
    """Expected number of kept prunable parameters; gates are independent, so means multiply.

    Args:
        probabilities: P(gate > 0) of every unit, or 0/1 for masks that are fixed.
        shape: Sizes of the dense model.

    Source:
        Xia et al. 2022, section 3.2; biases and the vanishing of empty sublayers are ours.
    """
    hidden = probabilities.hidden.sum()
    width = (probabilities.attn_block * probabilities.heads.sum(-1)).sum() * shape.head_size
    units = (probabilities.ffn_block * probabilities.ffn.sum(-1)).sum()
    attentions = alive_blocks(probabilities.heads, probabilities.attn_block).sum()
    ffns = alive_blocks(probabilities.ffn, probabilities.ffn_block).sum()
    attention = (4 * hidden + 3) * width + hidden * attentions
    ffn = (2 * hidden + 1) * units + hidden * ffns
    return attention + ffn


def expected_sparsity(probabilities: Masks, shape: DenseShape) -> Float[Tensor, ""]:
    """Sparsity that ``probabilities`` lead to on average, a fraction; differentiable."""
    return 1.0 - expected_parameters(probabilities, shape) / shape.prunable_parameters


def kept_parameters(masks: Masks, shape: DenseShape) -> int:
    """Prunable parameters that cutting under ``masks`` leaves."""
    return round(float(expected_parameters(alive(masks), shape)))


def realized_sparsity(masks: Masks, shape: DenseShape) -> float:
    """Sparsity of the model that cutting under ``masks`` leaves, a fraction."""
    return 1.0 - kept_parameters(masks, shape) / shape.prunable_parameters


def check_target(target: float, gates: HardConcreteGates, cost: Cost | None = None) -> None:
    """Refuse a share that these gates cannot prune; of the parameters, unless there is a cost.

    Raises:
        BudgetError: Names the reachable maximum and the families that are pruned.
    """
    cost = cost or ParameterCost(gates.shape)
    maximum = reachable_share(gates, cost)
    if not 0.0 <= target <= maximum:
        raise BudgetError(
            f"target {cost.name} is {cost.value(target):g}, but masks of "
            f"{', '.join(gates.families)} reach {cost.value(0.0):g} to "
            f"{cost.value(maximum):.4g}; ask for less or prune more families"
        )


def reachable_share(gates: HardConcreteGates, cost: Cost | None = None) -> float:
    """Expected share with every gate at its lower clamp, less a margin to steer in."""
    with torch.no_grad():
        lowest = {
            name: keep_prob(torch.full_like(value, -CLAMP))
            for name, value in gates.log_alpha.items()
        }
        ones = Masks.ones(gates.shape)
        floor = Masks(**{**vars(ones), **lowest})
        return float(expected_share(cost or ParameterCost(gates.shape), floor)) - _MARGIN
