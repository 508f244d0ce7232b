"""The one definition of sparsity: 1 - kept / prunable encoder parameters.

Prunable are the weights and biases of attention and FFN, as in `DenseShape.prunable_parameters`.
`expected_parameters` of 0/1 masks equals the count of the tensors that a cut leaves; for keep
probabilities it is the exact expectation of that count. Next file: `lagrangian.py`.

Differs from reference: it had four definitions, among them one whose biases appeared in the total
but never in what remains (cofi-spec 2.2, 7.1 item 9).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import BudgetError
from cofi_deploy.masks import Masks
from cofi_deploy.train.gates import CLAMP, HardConcreteGates, keep_prob

# The Lagrangian has to be able to overshoot a little, so the very end of the range is refused.
_MARGIN = 0.002


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
    attention = (4 * hidden + 3) * width + hidden * _alive(
        probabilities.heads, probabilities.attn_block
    )
    ffn = (2 * hidden + 1) * units + hidden * _alive(probabilities.ffn, probabilities.ffn_block)
    return attention + ffn


def expected_sparsity(probabilities: Masks, shape: DenseShape) -> Float[Tensor, ""]:
    """Sparsity that ``probabilities`` lead to on average, a fraction; differentiable."""
    return 1.0 - expected_parameters(probabilities, shape) / shape.prunable_parameters


def check_target_sparsity(target: float, gates: HardConcreteGates) -> None:
    """Refuse a target that these gates cannot express.

    Raises:
        BudgetError: Names the reachable maximum and the families that are pruned.
    """
    maximum = reachable_sparsity(gates)
    if not 0.0 <= target <= maximum:
        raise BudgetError(
            f"target sparsity is {target:g}, but masks of {', '.join(gates.families)} reach "
            f"0 to {maximum:.4f}; ask for less or prune more families"
        )


def reachable_sparsity(gates: HardConcreteGates) -> float:
    """Expected sparsity with every gate at its lower clamp, less a margin to steer in."""
    with torch.no_grad():
        lowest = {
            name: keep_prob(torch.full_like(value, -CLAMP))
            for name, value in gates.log_alpha.items()
        }
        ones = Masks.ones(gates.shape)
        floor = Masks(**{**vars(ones), **lowest})
        return float(expected_sparsity(floor, gates.shape)) - _MARGIN


def _alive(units: Tensor, block: Tensor) -> Tensor:
    """Expected number of sublayers with at least one unit: block * (1 - prod(1 - unit))."""
    none_left = (1.0 - units).prod(dim=-1)  # (layers,)
    return (block * (1.0 - none_left)).sum()
