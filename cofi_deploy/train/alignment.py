"""Fixed masks whose hidden size and FFN widths are multiples that matrix kernels like.

Comes in: gates, a budget, a multiple. Goes out: masks that keep the budget. The sizes that the
projection chose move to multiples by keeping the best of what it would have pruned; what that
costs is paid with the worst of what it would have kept. Nothing is padded: every unit of the
compact model is a trained one. Head counts stay free, since the head size is a multiple already.
Next file: `cut.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import BudgetError, ConfigError
from cofi_deploy.masks import Masks
from cofi_deploy.train.cost import Cost, realized_share
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.projection import (
    Budget,
    by_switch,
    first_count,
    masks_at_target,
    soft_values,
)
from cofi_deploy.train.sparsity import TOLERANCE, ParameterCost

logger = logging.getLogger(__name__)


def aligned_masks(
    gates: HardConcreteGates, target: float, multiple: int, cost: Cost | None = None
) -> Masks:
    """Fixed masks that meet a target; the hidden size and all FFN widths are multiples.

    A width may be 0: a sublayer that vanished stays away, and one with few units may vanish. A
    family that is not pruned keeps the size of the dense model.

    Args:
        gates: What training learnt.
        target: Share of the cost to prune, a fraction; met within the cost's tolerance.
        multiple: Of units; 1 lets every size be.
        cost: What is counted; by default parameters, and then the share is the sparsity.

    Raises:
        BudgetError: No such masks come within the tolerance.
    """
    budget = Budget(cost or ParameterCost(gates.shape), target)
    masks = masks_at_target(gates, target, cost)
    if multiple == 1:
        return masks
    best: list[Masks] = []
    for hidden in _hidden_choices(gates, masks, multiple):
        try:
            paid = masks_at_target(gates, target, cost, hidden=hidden)
        except BudgetError:
            continue
        aligned = _align_ffn(gates, paid, budget, multiple)
        if budget.is_met(aligned):
            logger.info("%s", _told(masks, aligned, multiple))
            return aligned
        best.append(aligned)
    name, value = budget.cost.name, budget.cost.value
    reached = realized_share(budget.cost, budget.nearest(best)) if best else 0.0
    raise BudgetError(
        f"masks of {', '.join(gates.families)} with widths of multiples of {multiple} come no "
        f"closer to {name} {value(target):g} than {value(reached):.4f}; use a smaller --align or "
        f"ask for another {name}"
    )


def kept_widths(masks: Masks) -> dict[str, Any]:
    """The hidden size, and the FFN width of every layer, that cutting leaves."""
    ffn = [len(masks.kept_ffn(layer)) for layer in range(len(masks.ffn))]
    return {"hidden": len(masks.kept_hidden()), "ffn": ffn}


def check_alignment(shape: DenseShape, multiple: int) -> None:
    """Refuse a multiple that the model is too small for.

    Raises:
        ConfigError: A width of the dense model is below it.
        BudgetError: One step of it is more than the budget may be missed by.
    """
    for name, width in (("hidden size", shape.hidden), ("FFN width", shape.ffn)):
        if width < multiple:
            raise ConfigError(
                f"--align is {multiple}, but the model's {name} is {width}; use a smaller one or "
                "leave it out"
            )
    unit = 2 * shape.hidden + 1
    if multiple > 1 and multiple * unit > 2.0 * TOLERANCE * shape.prunable_parameters:
        raise BudgetError(
            f"--align is {multiple}, but so many FFN units are "
            f"{multiple * unit / shape.prunable_parameters:.1%} of this model, too coarse to meet "
            f"a sparsity within {TOLERANCE:.1%}; use a smaller one or leave it out"
        )


def _hidden_choices(gates: HardConcreteGates, masks: Masks, multiple: int) -> Iterator[Tensor]:
    """The residual stream at the next multiple up, then, where the budget forbids it, down."""
    if "hidden" not in gates.families:
        yield masks.hidden
        return
    log_alpha = gates.log_alpha["hidden"].detach()
    kept, size = int((masks.hidden != 0).sum()), len(log_alpha)
    rank = log_alpha.argsort(descending=True, stable=True).argsort()  # (hidden,), 0 the best
    up = min(-(-kept // multiple), size // multiple)
    for count in sorted({up, max(1, kept // multiple)}, reverse=True):
        yield soft_values(log_alpha) * (rank < count * multiple)


def _align_ffn(gates: HardConcreteGates, masks: Masks, budget: Budget, multiple: int) -> Masks:
    """Whole blocks of ``multiple`` units, as many as the budget has room for."""
    if "ffn" not in gates.families:
        return masks
    order = _blocks(gates, masks, multiple)

    def with_blocks(count: int) -> Masks:
        return _masks_of_blocks(gates, masks, order[:count])

    count = first_count(len(order), lambda n: budget.over(with_blocks(n)) >= 0)
    return budget.nearest([with_blocks(count), with_blocks(max(0, count - 1))])


def _blocks(gates: HardConcreteGates, masks: Masks, multiple: int) -> list[tuple[int, Tensor]]:
    """Layer and units of every block, the one to keep first in front.

    A layer's units are parted into blocks from its largest ``log_alpha`` down. In front are blocks
    that were kept as a whole, then those that the kept width ends in, then those of pruned units;
    within each kind the larger sum of ``log_alpha`` wins. Blocks of dead sublayers come last, in
    the order in which the projection would revive them.
    """
    log_alpha = gates.log_alpha["ffn"].detach()  # (layers, ffn)
    alive = (masks.ffn * masks.ffn_block[:, None]) != 0
    revival = {layer: place for place, layer in enumerate(by_switch(gates))}
    keyed: list[tuple[tuple[float, ...], tuple[int, Tensor]]] = []
    for layer, (scores, on) in enumerate(zip(log_alpha, alive, strict=True)):
        ranked = scores.argsort(descending=True, stable=True)  # (ffn,)
        # Equal scores: those that are kept come first, so that a block is kept as a whole.
        ranked = ranked[(~on[ranked]).to(torch.int8).argsort(stable=True)]
        for index, units in enumerate(ranked.split(multiple)):
            if len(units) < multiple:
                continue
            kept = int(on[units].sum())
            kind = 0.0 if kept == multiple else 1.0 if kept else 2.0
            key = (kind, -float(scores[units].double().sum()), layer, index)
            if not on.any():
                key = (3.0, revival[layer], layer, index)
            keyed.append((key, (layer, units)))
    return [block for _, block in sorted(keyed, key=lambda pair: pair[0])]


def _masks_of_blocks(
    gates: HardConcreteGates, masks: Masks, blocks: list[tuple[int, Tensor]]
) -> Masks:
    """``masks`` with these FFN units, each at the soft value of its gate, and no others."""
    soft = soft_values(gates.log_alpha["ffn"])
    ffn = torch.zeros_like(masks.ffn)
    for layer, units in blocks:
        ffn[layer, units] = soft[layer, units]
    back = (ffn != 0).any(-1) & (masks.ffn_block == 0)
    block = masks.ffn_block
    if "ffn_block" in gates.families:
        block = torch.where(back, soft_values(gates.log_alpha["ffn_block"]), block)
    return replace(masks, ffn=ffn, ffn_block=block)


def _told(before: Masks, after: Masks, multiple: int) -> str:
    """Sizes without and with alignment, in words."""

    def sizes(masks: Masks) -> str:
        widths = kept_widths(masks)
        return f"hidden {widths['hidden']}, FFN {', '.join(map(str, widths['ffn']))}"

    return f"aligned to multiples of {multiple}: {sizes(before)} -> {sizes(after)}"
