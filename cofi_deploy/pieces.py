"""A batch in pieces, one after the other: for graphs that take no larger one, or are faster so.

`cofi-deploy export --format onnx --batch-size 1` writes graphs of one text; `--tune` finds how many
rows are best at a time. The check of an export, the runner and the profile ask them in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnxruntime as ort

    from cofi_deploy.exports import SessionChoice

Tensors = Mapping[str, npt.NDArray[Any]]

ONE_TEXT = (1, 1, 1)  # least, usual and largest batch, as `--batch-size` has them


def rows_at_once(session: ort.InferenceSession, choice: SessionChoice | None = None) -> int | None:
    """The most rows that an opened graph is to be given; None: any number."""
    if session.get_inputs()[0].shape[0] == 1:
        return 1
    return None if choice is None else choice.settings.get("rows_at_once")


def pieces_of(inputs: Tensors, rows: int | None) -> list[Tensors]:
    """Inputs (batch, sequence) in pieces of ``rows`` rows, the last of what is left."""
    batch = len(next(iter(inputs.values())))
    if rows is None or batch <= rows:
        return [inputs]
    return [
        {name: array[start : start + rows] for name, array in inputs.items()}
        for start in range(0, batch, rows)
    ]


def in_pieces(
    run: Callable[[Tensors], dict[str, npt.NDArray[Any]]], inputs: Tensors, rows: int | None
) -> dict[str, npt.NDArray[Any]]:
    """Outputs (batch, ...) of a function that is given ``rows`` rows at a time."""
    answers = [run(piece) for piece in pieces_of(inputs, rows)]
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
