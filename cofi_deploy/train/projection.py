"""From gates to fixed masks that meet the budget exactly, counted on what the cut will leave.

Training meets the target only in expectation: clamps leave residues, soft masks round. So one
number, a shift of all ``log_alpha``, is searched until the fixed masks straddle the budget, and
FFN units, the finest grain, make up the rest in the order of their ``log_alpha``. Next:
`alignment.py`, for widths that are multiples, and `cut.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cofi_deploy.errors import BudgetError
from cofi_deploy.masks import Masks
from cofi_deploy.train.cost import Cost, realized_share
from cofi_deploy.train.gates import CLAMP, SOFT_FACTOR, TEMPERATURE, HardConcreteGates
from cofi_deploy.train.sparsity import ParameterCost

_BISECTIONS = 40


def masks_at_target(
    gates: HardConcreteGates,
    target: float,
    cost: Cost | None = None,
    *,
    hidden: Tensor | None = None,
) -> Masks:
    """Fixed masks that prune just the target's share of the cost, up to one FFN unit.

    Args:
        gates: What training learnt.
        target: The share, a fraction.
        cost: What is counted; by default parameters, and then the share is the sparsity.
        hidden: Mask of the residual stream where it is decided already; the other families then
            make up for it.

    Raises:
        BudgetError: No masks of these families come within the cost's tolerance.
    """
    budget = Budget(cost or ParameterCost(gates.shape), target)
    fewer, more = _straddle(gates, budget, hidden)
    best = budget.nearest([_trim_ffn(more, gates, budget), _grow_ffn(fewer, gates, budget)])
    if not budget.is_met(best):
        # Too few living FFN units to make up the rest, so the best dead sublayers come back.
        best = _grow_ffn(fewer, gates, budget, revive=True)
    if not budget.is_met(best):
        name, value = budget.cost.name, budget.cost.value
        raise BudgetError(
            f"masks of {', '.join(gates.families)} come no closer to {name} {value(target):g} "
            f"than {value(realized_share(budget.cost, best)):.4f}; prune more families or ask for "
            f"another {name}"
        )
    return best


@dataclass(frozen=True)
class Budget:
    """How much of a cost may be kept, for a share that has to go."""

    cost: Cost
    target: float

    def over(self, masks: Masks) -> float:
        """By how much fixed masks keep too much, in the cost's own unit."""
        return self.cost.kept(masks) - (1.0 - self.target) * self.cost.total

    def nearest(self, choices: Sequence[Masks]) -> Masks:
        """The masks that come closest; the first of equals."""
        return min(choices, key=lambda masks: abs(self.over(masks)))

    def is_met(self, masks: Masks) -> bool:
        """Within the cost's tolerance."""
        missed = abs(realized_share(self.cost, masks) - self.target)
        return missed <= self.cost.tolerance(self.target)


def _straddle(
    gates: HardConcreteGates, budget: Budget, hidden: Tensor | None
) -> tuple[Masks, Masks]:
    """Neighbouring fixed masks below and above the budget, by bisection over the shift."""

    def fixed(shift: float) -> Masks:
        masks = gates.fixed(shift)
        return masks if hidden is None else replace(masks, hidden=hidden)

    low, high = -4.0 * CLAMP, 4.0 * CLAMP
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if budget.over(fixed(middle)) > 0:
            high = middle
        else:
            low = middle
    return fixed(low), fixed(high)


def _trim_ffn(masks: Masks, gates: HardConcreteGates, budget: Budget) -> Masks:
    """Drop the FFN units of smallest ``log_alpha`` until the budget holds."""
    if "ffn" not in gates.families:
        return masks
    alive = (masks.ffn * masks.ffn_block[:, None]) != 0
    order = _ordered(gates, alive, descending=False)

    def without(count: int) -> Masks:
        ffn = masks.ffn.clone()
        ffn.view(-1)[order[:count]] = 0.0
        return Masks(**{**vars(masks), "ffn": ffn})

    count = first_count(len(order), lambda n: budget.over(without(n)) <= 0)
    # One unit fewer may be the closer one.
    return budget.nearest([without(count), without(max(0, count - 1))])


def _grow_ffn(
    masks: Masks, gates: HardConcreteGates, budget: Budget, *, revive: bool = False
) -> Masks:
    """Bring back FFN units of largest ``log_alpha`` up to the budget.

    In living sublayers; with ``revive``, then also in dead ones, those whose switch (or, without
    switches, whose best unit) has the largest ``log_alpha`` first.
    """
    if "ffn" not in gates.families:
        return masks
    units = masks.ffn * (masks.ffn_block != 0)[:, None]  # those behind a switch are off as well
    living = (units != 0).any(-1)  # (layers,)
    order = _ordered(gates, (units == 0) & living[:, None], descending=True)
    if revive:
        dead = [_ordered_in(gates, layer) for layer in by_switch(gates) if not living[layer]]
        order = torch.cat([order, *dead])
    soft = {
        name: soft_values(gates.log_alpha[name])
        for name in ("ffn", "ffn_block")
        if name in gates.log_alpha
    }

    def with_(count: int) -> Masks:
        ffn = units.clone()
        ffn.view(-1)[order[:count]] = soft["ffn"].flatten()[order[:count]]
        back = (ffn != 0).any(-1) & ~living
        block = torch.where(back, soft.get("ffn_block", masks.ffn_block), masks.ffn_block)
        return Masks(**{**vars(masks), "ffn": ffn, "ffn_block": block})

    count = first_count(len(order), lambda n: budget.over(with_(n)) >= 0)
    return budget.nearest([with_(count), with_(max(0, count - 1))])


def by_switch(gates: HardConcreteGates) -> list[int]:
    """Layers, the one whose FFN is missed most first."""
    log_alpha = gates.log_alpha["ffn_block" if "ffn_block" in gates.families else "ffn"].detach()
    best = log_alpha.reshape(gates.shape.layers, -1).amax(dim=-1)
    order: list[int] = best.argsort(descending=True, stable=True).tolist()
    return order


def soft_values(log_alpha: Tensor) -> Tensor:
    """What the kept units of a fixed mask are multiplied by; same shape as ``log_alpha``."""
    return torch.sigmoid(log_alpha.detach() / TEMPERATURE * SOFT_FACTOR)


def _ordered_in(gates: HardConcreteGates, layer: int) -> Tensor:
    """Flat indices of one layer's FFN units, largest ``log_alpha`` first."""
    chosen = torch.zeros_like(gates.log_alpha["ffn"], dtype=torch.bool)
    chosen[layer] = True
    return _ordered(gates, chosen, descending=True)


def _ordered(gates: HardConcreteGates, chosen: Tensor, *, descending: bool) -> Tensor:
    """Flat indices of the ``chosen`` FFN units by ``log_alpha``."""
    indices = chosen.flatten().nonzero().flatten()
    values = gates.log_alpha["ffn"].detach().flatten()[indices]
    return indices[values.argsort(descending=descending, stable=True)]


def first_count(limit: int, holds: Callable[[int], bool]) -> int:
    """Smallest count in 0..limit for which the monotone ``holds`` is true; limit if none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
