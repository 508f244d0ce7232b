"""Distillation: the student learns the teacher's predictions and, layer by layer, its states.

Which student layer answers to which teacher layer is found anew in every step (Xia et al. 2022,
section 3.3). Next file: `projection.py`.

Differs from reference: padding has no part in any loss, the layer loss is a mean over the matched
teacher layers, only layers with a living sublayer can be matched, regression has a loss at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cofi_deploy import products
from cofi_deploy.encoder import MASKED_SCORE
from cofi_deploy.folding import Kept, slice_columns
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import Masks
from cofi_deploy.train.processes import add_up

LayerMatching = Literal["free", "monotonic", "fixed"]


def teacher_layers(depth: int, count: int = 4) -> tuple[int, ...]:
    """Numbers (1-based) of the teacher layers to learn from, spread evenly, the last included.

    For 12 layers 3, 6, 9, 12 (the paper's); for 6 layers 2, 3, 5, 6.
    """
    count = min(count, depth)
    return tuple(int(depth * index / count + 0.5) for index in range(1, count + 1))


class LayerProjection(nn.Module):
    """W_layer: one linear map, shared by all layers, from student states to teacher states."""

    def __init__(self, hidden: int) -> None:
        """Start as the identity."""
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(
        self, states: Float[Tensor, "*tokens kept_hidden"], kept: Kept | None
    ) -> Float[Tensor, "*tokens hidden"]:
        """Project; under masks, from the kept dimensions only."""
        weight = self.linear.weight if kept is None else slice_columns(self.linear.weight, kept)
        return products.linear(states, weight, self.linear.bias)

    def cut(self, masks: Masks) -> None:
        """Drop the inputs that the cut student no longer has."""
        weight = slice_columns(self.linear.weight.detach(), Kept.of(masks))
        self.resize_input(weight.shape[1])
        with torch.no_grad():
            self.linear.weight.copy_(weight)

    def resize_input(self, width: int) -> None:
        """Room for states of another width; the weight must be filled afterwards."""
        self.linear.in_features = width
        self.linear.weight = nn.Parameter(torch.empty(self.linear.out_features, width))


def prediction_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    *,
    kind: TaskKind,
    valid: Bool[Tensor, "batch sequence"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Distance of the student's outputs from the teacher's.

    Classification: T^2 * KL(teacher || student), mean over the batch (over valid tokens for token
    classification). QA: the mean of the same over start and end, softmax over valid positions.
    Regression: mean squared error, since a softmax over one logit teaches nothing.
    """
    if kind == "text-regression":
        return F.mse_loss(student["logits"], teacher["logits"])
    if kind == "token-classification":
        return _divergence(student["logits"][valid], teacher["logits"][valid], temperature)
    if kind == "question-answering":
        losses = [
            _divergence(
                mask_padding(student[name], valid), mask_padding(teacher[name], valid), temperature
            )
            for name in ("start_logits", "end_logits")
        ]
        return torch.stack(losses).mean()
    return _divergence(student["logits"], teacher["logits"], temperature)


def layer_loss(  # noqa: PLR0913 - a formula's variables
    student_states: Sequence[Float[Tensor, "batch sequence kept_hidden"]],
    teacher_states: Float[Tensor, "teacher_layers tokens hidden"],
    projection: LayerProjection,
    kept: Kept | None,
    *,
    valid: Bool[Tensor, "batch sequence"],
    alive: Sequence[bool],
    matching: LayerMatching,
    share: float = 1.0,
) -> tuple[Float[Tensor, ""], list[int]]:
    """Mean squared error between matched layers, mean over the teacher's layers.

    Args:
        student_states: Output of every student layer.
        teacher_states: Output of the chosen teacher layers at the valid tokens.
        projection: Applied to the student's states.
        kept: What the masks leave, None for a dense or cut student.
        valid: False at padding.
        alive: Which student layers have a sublayer left; only those can be matched. When none
            has, the last layer's output (then the embeddings') stands for all.
        matching: How to choose among them, see `match_layers`.
        share: Of the batch's tokens, where processes share it: they choose by the costs of the
            whole batch, all the same, and their losses add up to its loss.

    Returns:
        The loss, and the 0-based student layer matched to each teacher layer.
    """
    candidates = [index for index, living in enumerate(alive) if living] or [len(alive) - 1]
    places = valid.flatten().nonzero().flatten()
    # Padding is left out behind the product, whose shape then repeats from batch to batch.
    projected = [
        projection(student_states[index], kept).flatten(0, 1).index_select(0, places)
        for index in candidates
    ]
    with torch.no_grad():
        costs = pairwise_mse(teacher_states, projected) * share
        add_up([costs])  # (teacher_layers, candidates)
    chosen = match_layers(costs.cpu(), matching)  # one copy from a GPU, not one for each layer
    losses = [
        F.mse_loss(projected[index].to(states.dtype), states)
        for index, states in zip(chosen, teacher_states, strict=True)
    ]
    loss = torch.stack(losses).mean() * share
    return loss, [candidates[index] for index in chosen]


def match_layers(
    costs: Float[Tensor, "teacher_layers candidates"], matching: LayerMatching
) -> list[int]:
    """Candidate for each teacher layer.

    "free": the cheapest. "monotonic": from the top down, the cheapest strictly below the previous
    choice; once the lowest candidate is taken, it serves the remaining teacher layers too.
    "fixed": spread evenly over the candidates, no matter the cost.
    """
    teachers, count = costs.shape
    if matching == "free":
        return [int(index) for index in costs.argmin(dim=1)]
    if matching == "fixed":
        return [max(0, int(count * index / teachers + 0.5) - 1) for index in range(1, teachers + 1)]
    chosen: list[int] = []
    limit = count
    for row in costs.flip(0):
        limit = int(row[: max(limit, 1)].argmin())
        chosen.append(limit)
    return chosen[::-1]


def pairwise_mse(
    a: Float[Tensor, "rows tokens hidden"], b: Sequence[Float[Tensor, "tokens hidden"]]
) -> Float[Tensor, "rows columns"]:
    """Mean squared error of every pair, in fp32: all pairs in one product, |a|^2 + |b|^2 - 2ab."""
    left = a.flatten(1).float()
    right = torch.stack([each.flatten() for each in b]).float()
    squares = left.square().sum(1)[:, None] + right.square().sum(1)
    with torch.autocast(left.device.type, enabled=False):
        crossed = left @ right.T
    return ((squares - 2.0 * crossed) / left.shape[1]).clamp(min=0.0)


def mask_padding(
    logits: Float[Tensor, "batch sequence"], valid: Bool[Tensor, "batch sequence"]
) -> Float[Tensor, "batch sequence"]:
    """Logits that a softmax over the sequence makes exactly 0 at padding."""
    return logits.masked_fill(~valid, MASKED_SCORE)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    q = F.softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2
