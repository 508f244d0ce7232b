"""Checks on what a model or runtime answered, before it is scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cofi_deploy.errors import RunnerError
from cofi_deploy.tasks.task import Outputs


def check_outputs(
    outputs: Outputs, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Refuse outputs that cannot be scored; an argmax over NaN would silently be class 0.

    Args:
        outputs: One mapping per feature.
        names: Arrays that every mapping must have.
        shapes: Of these arrays, per feature.

    Raises:
        RunnerError: outputs or arrays are missing, of another shape, or not finite.
    """
    if len(outputs) != len(shapes):
        raise RunnerError(f"got outputs for {len(outputs)} features, expected {len(shapes)}")
    for at, (row, shape) in enumerate(zip(outputs, shapes, strict=True)):
        for name in names:
            if name not in row:
                raise RunnerError(
                    f"feature {at} has outputs {', '.join(row) or 'of no name'}, expected {name}"
                )
            if row[name].shape != shape:
                raise RunnerError(
                    f"feature {at}: {name} has shape {row[name].shape}, expected {shape}"
                )
            if not np.isfinite(row[name]).all():
                raise RunnerError(
                    f"feature {at}: {name} holds NaN or infinity; use a higher precision"
                )
