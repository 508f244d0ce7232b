"""The student's loss in one step: predictions, layers, and true labels where they are mixed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cofi_deploy.encoder import EncoderOutput
from cofi_deploy.folding import Kept
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.train.batches import Batch
from cofi_deploy.train.distill import (
    LayerMatching,
    LayerProjection,
    layer_loss,
    mask_padding,
    prediction_loss,
)
from cofi_deploy.train.teacher import TeacherAnswers


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Weights and rules of the student's loss."""

    kind: TaskKind
    temperature: float
    prediction_weight: float
    layer_weight: float
    label_weight: float
    matching: LayerMatching

    def __call__(
        self,
        student: CofiPreTrainedModel,
        projection: LayerProjection,
        batch: Batch,
        answers: TeacherAnswers,
        masks: Masks | None = None,
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Losses by name, their weighted sum as ``loss``, and the layers that were matched.

        Where processes share a batch, each loss is this process's addend of the whole.
        """
        encoded = student.encode(**batch.inputs, masks=masks)
        outputs = student.head(encoded)
        distance = prediction_loss(
            outputs,
            answers.outputs,
            kind=self.kind,
            valid=batch.valid,
            temperature=self.temperature,
        )
        per_token = self.kind == "token-classification"
        losses = {
            "loss_prediction": distance * (batch.share.tokens if per_token else batch.share.rows)
        }
        losses["loss_layer"], matched = self._layers(student, projection, batch, answers, encoded)
        losses["loss"] = (
            self.prediction_weight * losses["loss_prediction"]
            + self.layer_weight * losses["loss_layer"]
        )
        if self.label_weight > 0:
            losses["loss_label"] = shared_label_loss(outputs, batch, self.kind)
            losses["loss"] = losses["loss"] + self.label_weight * losses["loss_label"]
        return losses, matched

    def _layers(
        self,
        student: CofiPreTrainedModel,
        projection: LayerProjection,
        batch: Batch,
        answers: TeacherAnswers,
        encoded: EncoderOutput,
    ) -> tuple[Tensor, list[int]]:
        if self.layer_weight == 0:
            return torch.zeros((), device=batch.valid.device), []
        return layer_loss(
            encoded.states[1:],
            answers.states,
            projection,
            encoded.kept,
            valid=batch.valid,
            alive=living_layers(student, encoded.kept),
            matching=self.matching,
            share=batch.share.tokens,
        )


def shared_label_loss(outputs: Mapping[str, Tensor], batch: Batch, kind: TaskKind) -> Tensor:
    """`label_loss` of ``batch``: this process's addend where several share the batch."""
    if batch.share.labels == 0:  # the mean over no label is NaN
        return torch.stack([each.sum() for each in outputs.values()]).sum() * 0.0
    return label_loss(outputs, batch.targets, kind, valid=batch.valid) * batch.share.labels


def label_loss(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    kind: TaskKind,
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """Loss against the true labels: what the teacher is fine-tuned with.

    Args:
        outputs: Of the model.
        targets: Of the batch.
        kind: Of the task.
        valid: Bool (batch, sequence), False at padding; None means that there is none. Only
            question answering needs it, whose softmax runs over the sequence.
    """
    if kind == "text-regression":
        return F.mse_loss(outputs["logits"].squeeze(-1).float(), targets["labels"].float())
    if kind == "question-answering":
        start = _span_loss(outputs["start_logits"], targets["start_positions"], valid)
        end = _span_loss(outputs["end_logits"], targets["end_positions"], valid)
        return (start + end) / 2.0
    logits = outputs["logits"].float()
    return F.cross_entropy(logits.flatten(0, -2), targets["labels"].flatten())


def _span_loss(logits: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
    masked = logits.float() if valid is None else mask_padding(logits.float(), valid)
    return F.cross_entropy(masked, positions)


def living_layers(student: CofiPreTrainedModel, kept: Kept | None) -> list[bool]:
    """Which layers have a sublayer left, by the Arch or by this step's masks."""
    if kept is None:
        return [bool(layer.heads or layer.ffn) for layer in student.arch.layers]
    return [bool(h.numel() or f.numel()) for h, f in zip(kept.heads, kept.ffn, strict=True)]
