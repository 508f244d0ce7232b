"""What pruning leaves on disk for fine-tuning: the cut model and its layer projection."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from cofi_deploy.errors import CheckpointError
from cofi_deploy.loading import load, save_compact, write_tensors
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.targets import Target
from cofi_deploy.train.alignment import aligned_masks
from cofi_deploy.train.cut import cut
from cofi_deploy.train.distill import LayerProjection
from cofi_deploy.train.speedup import SpeedupBudget, measured_masks
from cofi_deploy.train.stages import Student

_MODEL = "model"
_PROJECTION = "projection.safetensors"


def write_cut(
    directory: Path,
    student: Student,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    *,
    align: int = 1,
    speedup: SpeedupBudget | None = None,
) -> dict[str, Any] | None:
    """Cut ``student`` at ``target`` and write what fine-tuning starts from.

    Hidden size and FFN widths are multiples of ``align``.

    Returns:
        What was measured of the cut model; None where the budget is no speedup.

    Raises:
        BudgetError: The masks cannot meet the target.
    """
    latency = None
    if speedup is None:
        masks = aligned_masks(student.gates, target.share, align)
    else:
        dense = student.model.arch
        masks, latency = measured_masks(student.gates, target, speedup, dense, align=align)
    save_compact(cut(student.model, masks), tokenizer, directory / _MODEL)
    projection = copy.deepcopy(student.projection)
    projection.cut(masks)
    write_tensors(projection.state_dict(), directory / _PROJECTION)
    return latency


def read_cut(
    directory: Path, *, hidden: int, dropout: float
) -> tuple[CofiPreTrainedModel, LayerProjection]:
    """The cut model and its projection onto a teacher of width ``hidden``.

    Raises:
        ArtifactError: The model is corrupt.
        CheckpointError: The projection is.
    """
    model = load(directory / _MODEL)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    path = directory / _PROJECTION
    projection = LayerProjection(hidden)
    try:
        tensors = load_file(path)
        projection.resize_input(tensors["linear.weight"].shape[1])
        projection.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged: {error}; start without --resume"
        ) from error
    return model, projection
