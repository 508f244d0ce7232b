"""PyTorch on the CPU: a model directory, dense or compact. The reference of every comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from cofi_deploy.errors import RunnerError, did_you_mean
from cofi_deploy.loading import load
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.serve.inputs import InputLimits, Tensors
from cofi_deploy.serve.runner import RunnerSettings

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def unavailable(runtime: str) -> str | None:
    """Always usable: PyTorch is a dependency."""
    return None


def open_session(artifact: Path, settings: RunnerSettings) -> TorchSession:
    """Load a model directory.

    Raises:
        ArtifactError: See `loading.load`.
        RunnerError: A precision other than fp32 and bf16.
    """
    precision = settings.precision or "fp32"
    if precision not in _DTYPES:
        raise RunnerError(f"torch: precision is {precision!r}, {did_you_mean(precision, _DTYPES)}")
    model = load(artifact)
    if precision != "fp32":
        nn.Module.to(model, _DTYPES[precision])
    return TorchSession(model, precision, settings.threads)


class TorchSession:
    """A model in inference mode."""

    device = "cpu"

    def __init__(self, model: CofiPreTrainedModel, precision: str, threads: int) -> None:
        """Take a model in evaluation mode."""
        self._model = model
        self._threads = threads
        self._threads_before = torch.get_num_threads()
        self.precision = precision
        self.limits = InputLimits.from_arch(model.arch)

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs, float32."""
        # The setting is global to the process, and another session may have changed it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            outputs = self._model.outputs(tensors)
        return {name: tensor.float().numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Give the process its number of threads back."""
        torch.set_num_threads(self._threads_before)
