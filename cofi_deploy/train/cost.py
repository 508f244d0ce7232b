"""`Cost`: what a budget counts, so that gates, masks and cut need not know it.

Parameters (`sparsity.py`) or milliseconds (`latency_table.py`). A target is the share of the dense
model's cost that has to go. Next files: those two, then `projection.py`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

from cofi_deploy.masks import Masks

Number = TypeVar("Number", float, Tensor)


class Cost(Protocol):
    """Falls, or stays, whenever something more is pruned."""

    @property
    def name(self) -> str:
        """What people ask for: `sparsity` or `speedup`."""

    @property
    def total(self) -> float:
        """Of the dense model."""

    def value(self, share: Number) -> Number:
        """The sparsity or speedup of a model that is rid of this share of the cost."""

    def tolerance(self, target: float) -> float:
        """By how much the realised share may miss ``target``."""

    def expected(self, probabilities: Masks) -> Float[Tensor, ""]:
        """Average under keep probabilities; differentiable, and exact for masks of 0 and 1."""

    def kept(self, masks: Masks) -> float:
        """Of the model that cutting under fixed masks leaves."""


def expected_share(cost: Cost, probabilities: Masks) -> Float[Tensor, ""]:
    """Share of the cost that is pruned on average; differentiable."""
    return 1.0 - cost.expected(probabilities) / cost.total


def realized_share(cost: Cost, masks: Masks) -> float:
    """Share of the cost that cutting under fixed masks does away with."""
    return 1.0 - cost.kept(masks) / cost.total


def alive(masks: Masks) -> Masks:
    """1 where something is kept, in double precision: counts of any size are exact."""
    return Masks(**{name: (value != 0).double() for name, value in vars(masks).items()})


def alive_blocks(units: Tensor, block: Tensor) -> Tensor:
    """P(a sublayer has at least one unit), (layers,): block * (1 - prod(1 - unit))."""
    none_left = (1.0 - units).prod(dim=-1)  # (layers,)
    return block * (1.0 - none_left)
