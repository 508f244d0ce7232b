"""The steps of `<name>_text` one after the other, the encoder in PyTorch, without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.export.triton_text import write_text_models
from cofi_deploy.kinds import INPUT_NAMES
from tests.triton_models import fake_backend_utils as backend

ENCODER = "small"


class Chain:
    """What a server does with the ensemble: every step in turn, tensors handed on by name."""

    def __init__(
        self,
        model: Path,
        directory: Path,
        open_served: Callable[..., Any],
        options: TritonOptions | None = None,
    ) -> None:
        self.source, self.model = open_source(model)
        options = options or TritonOptions()
        write_text_models(directory, name=ENCODER, source=self.source, options=options)
        self.tokenizer = open_served(directory / f"{ENCODER}_tokenizer")
        self.answer = open_served(directory / f"{ENCODER}_answer")

    def ask(self, **texts: np.ndarray) -> dict[str, np.ndarray]:
        """The answer to one request."""
        (response,) = self.tokenizer.execute([backend.request(**texts)])
        tensors = backend.outputs(response)
        (response,) = self.answer.execute([backend.request(**self.encode(tensors), **texts)])
        return backend.outputs(response)

    def encode(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the tokenizer step gave, and the model's outputs."""
        inputs = {name: torch.from_numpy(tensors[name]) for name in INPUT_NAMES}
        with torch.inference_mode():
            outputs = self.model.outputs(inputs)
        return tensors | {name: value.numpy() for name, value in outputs.items()}


def strings(rows: Sequence[Any]) -> np.ndarray:
    """Strings, or rows of strings, as a request carries them."""
    encoded = [
        row.encode() if isinstance(row, str) else [text.encode() for text in row] for row in rows
    ]
    return np.array(encoded, dtype=object)


def rows_of(texts: Sequence[str]) -> np.ndarray:
    """Texts as rows of one string."""
    return strings(texts).reshape(-1, 1)
