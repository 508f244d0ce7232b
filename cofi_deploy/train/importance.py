"""What the gates know before the first step: which units the teacher's weights need most.

In: the dense student and some batches. Out: gates whose ``log_alpha`` is lower for units that
matter less. A run of a few hundred steps is otherwise half over before its gates can tell units
apart. Next file: `gates.py`.

Source: the diagonal of the Fisher information of mask values (Kwon et al. 2022, arXiv:2204.09656),
here of the gradients of whole batches; used by its rank alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.train.batches import Batch
from cofi_deploy.train.gates import CLAMP, HardConcreteGates
from cofi_deploy.train.losses import shared_label_loss
from cofi_deploy.train.precision import Numerics
from cofi_deploy.train.processes import add_up


def unit_importance(
    model: CofiPreTrainedModel, batches: Sequence[Batch], numerics: Numerics
) -> Masks:
    """Sum over ``batches`` of the squared gradient of the label loss at masks of 1.

    Args:
        model: Dense, fine-tuned for the task; neither its weights nor its gradients change.
        batches: Of the training split.
        numerics: Of the run.

    Returns:
        In the form of masks, one value for every unit; larger matters more.
    """
    masks = Masks.ones(model.arch.dense, numerics.device)
    values = list(vars(masks).values())
    totals = [torch.zeros_like(value) for value in values]
    model.eval()  # type: ignore[no-untyped-call]
    for value in values:
        value.requires_grad_()
    for batch in batches:
        with numerics.autocast():
            loss = shared_label_loss(model.outputs(batch.inputs, masks), batch, model.kind)
        gradients = [each.detach() for each in torch.autograd.grad(loss, values)]
        add_up(gradients)
        for total, gradient in zip(totals, gradients, strict=True):
            total.add_(gradient.float().square())
    return Masks(**dict(zip(vars(masks), totals, strict=True)))


def warm_start(gates: HardConcreteGates, importance: Masks, spread: float) -> None:
    """Move ``log_alpha`` by up to half of ``spread`` up and down, by rank within its family.

    The most important unit of a family stays within the clamp.
    """
    with torch.no_grad():
        for name, log_alpha in gates.log_alpha.items():
            offset = spread * (_rank(getattr(importance, name)) - 0.5)
            log_alpha.clamp_(max=CLAMP - spread / 2.0).add_(offset.to(log_alpha.device))
    gates.clamp()


def _rank(values: Tensor) -> Tensor:
    """Share of the other entries that are smaller, from 0 to 1; same shape."""
    flat = values.flatten()
    order = flat.argsort(stable=True).argsort(stable=True)
    return (order / max(flat.numel() - 1, 1)).view_as(values)
