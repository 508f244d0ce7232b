"""Score a PyTorch model, masked or not, on one split of its task."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks import EncodedSplit, Task
from cofi_deploy.tasks.inference import predict_split


def evaluate(
    model: CofiPreTrainedModel, task: Task, encoded: EncodedSplit, masks: Masks | None = None
) -> dict[str, float]:
    """The task's metrics as fractions, and the primary one again as ``metric``."""
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    device = next(model.parameters()).device

    def infer(inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        with torch.inference_mode():
            outputs = model.outputs(tensors, masks)
        return {name: value.float().cpu().numpy() for name, value in outputs.items()}

    scores = task.score(encoded, predict_split(infer, encoded, kind=task.kind))
    model.train(was_training)
    return {**scores, "metric": scores[task.metric_name]}
