"""ONNX graphs that compute one text at a time, and how they answer a batch all the same.

`cofi-deploy export --format onnx --batch-size 1` writes them; both the check of the export and the
runner that measures it open them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnxruntime as ort

Tensors = Mapping[str, npt.NDArray[Any]]

ONE_TEXT = (1, 1, 1)  # least, usual and largest batch, as `--batch-size` has them


def takes_one_text(session: ort.InferenceSession) -> bool:
    """Whether the batch of an opened graph is fixed to 1."""
    return bool(session.get_inputs()[0].shape[0] == 1)


def texts_of(inputs: Tensors) -> list[Tensors]:
    """Inputs (batch, sequence) as those of each text, (1, sequence)."""
    batch = len(next(iter(inputs.values())))
    return [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(batch)]


def one_after_the_other(
    run: Callable[[Tensors], dict[str, npt.NDArray[Any]]], inputs: Tensors
) -> dict[str, npt.NDArray[Any]]:
    """Outputs (batch, ...) of a function that takes inputs (1, sequence)."""
    rows = [run(text) for text in texts_of(inputs)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
