"""The sparsity constraint: a Lagrangian whose multipliers rise by gradient ascent.

Next file: `distill.py`. Source: Wang et al. 2020, arXiv:1910.04732, eq. 4; Xia et al. 2022, 3.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

SparsitySchedule = Literal["linear", "cubic"]


class Lagrangian(nn.Module):
    """lambda_linear * (s - t) + lambda_quadratic * (s - t)^2, both multipliers start at 0.

    The multipliers are free in sign, so that a model which overshoots is pulled back.
    """

    def __init__(self) -> None:
        """Two scalars, to be given to an optimizer with ``maximize=True``."""
        super().__init__()
        self.lambda_linear = nn.Parameter(torch.zeros(()))
        self.lambda_quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, sparsity: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
        """Penalty to be added to the task's loss; zero where the constraint is met."""
        gap = sparsity - target
        return self.lambda_linear * gap + self.lambda_quadratic * gap * gap


def warmup_progress(step: int, warmup_steps: int) -> float:
    """The share of the warm-up that is over at this step; all of it where there is none."""
    return 1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps)


def scheduled_sparsity(progress: float, *, last: float, schedule: SparsitySchedule) -> float:
    """Target after this share of the warm-up, on the way from 0 to ``last``.

    "linear" is the paper's; "cubic" prunes fast first and slowly near the end (Zhu and Gupta
    2017, arXiv:1710.01878).
    """
    if schedule == "cubic":
        return last * (1.0 - (1.0 - progress) ** 3)
    return last * progress


def progress_at(sparsity: float, *, last: float, schedule: SparsitySchedule) -> float:
    """The share of the warm-up after which the target is ``sparsity``, on the way to ``last``."""
    share = min(1.0, sparsity / last)
    return 1.0 - (1.0 - share) ** (1 / 3) if schedule == "cubic" else share
