"""What pruning leaves on disk for fine-tuning: the cut model and its layer projection."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from cofi_deploy.errors import CheckpointError
from cofi_deploy.loading import load, save_compact, write_tensors
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.train.cut import cut
from cofi_deploy.train.distill import LayerProjection
from cofi_deploy.train.stages import Student

_MODEL = "model"
_PROJECTION = "projection.safetensors"


def write_cut(
    directory: Path, student: Student, masks: Masks, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Cut ``student`` under fixed masks and write what fine-tuning starts from."""
    save_compact(cut(student.model, masks), tokenizer, directory / _MODEL)
    projection = copy.deepcopy(student.projection)
    projection.cut(masks)
    write_tensors(projection.state_dict(), directory / _PROJECTION)


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
