"""Run anything that maps named input arrays to named output arrays over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.kinds import INPUT_NAMES, TaskKind, is_per_token
from cofi_deploy.tasks.encoding import EncodedSplit

Arrays = Mapping[str, npt.NDArray[Any]]


def predict_split(
    infer: Callable[[dict[str, npt.NDArray[Any]]], Arrays],
    encoded: EncodedSplit,
    *,
    kind: TaskKind,
    batch_size: int = 64,
) -> list[dict[str, npt.NDArray[Any]]]:
    """Outputs of every feature, in the split's order.

    Features are grouped by length so that little is padded; outputs come back without the batch
    axis, and without padded positions where they are per token.
    """
    lengths = encoded.lengths
    order = np.argsort(lengths, kind="stable")
    results: list[dict[str, npt.NDArray[Any]]] = [{} for _ in range(len(encoded))]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encoded.batch(rows.tolist())
        outputs = infer({name: batch[name] for name in INPUT_NAMES})
        for place, row in enumerate(rows):
            end = int(lengths[row]) if is_per_token(kind) else None
            results[row] = {
                name: value[place, :end] if end is not None else value[place]
                for name, value in outputs.items()
            }
    return results
