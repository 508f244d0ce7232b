"""What the flags of `export --tune` mean together; `exporting.py` calls it before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cofi_deploy.api.runtime_names import points_of
from cofi_deploy.api.tuning import TUNED_FORMATS, check_target
from cofi_deploy.errors import UsageError
from cofi_deploy.export.candidates import TUNED_RUNTIMES
from cofi_deploy.serve.latency import OperatingPoint

Triple = tuple[int, int, int]


def tuning_target(tune: bool, target: str | None, format: str) -> OperatingPoint | None:
    """Where to tune for; None where the export is an ordinary one.

    Raises:
        UsageError: One of `--tune` and `--for` alone, or a target that the format is not for.
        EnvironmentProblem: The runtime is not here.
    """
    if not tune:
        if target is not None:
            raise UsageError(f"--for {target} says where --tune measures; give both")
        return None
    if target is None:
        raise UsageError("--tune needs --for RUNTIME@BATCHxLENGTH, such as onnxruntime-cpu@1x128")
    if format not in TUNED_FORMATS:
        raise UsageError(
            f"--tune is for --format {' and '.join(TUNED_FORMATS)}, got --format {format}"
        )
    points = points_of((target,))
    wanted = check_target(points[0])
    if wanted != format:
        raise UsageError(
            f"--for {target} opens exports of format {wanted}, got --format {format}; "
            f"run: cofi-deploy export [MODEL] --format {wanted} --tune --for {target}"
        )
    return points[0]


def may_fix_shape(point: OperatingPoint, batch_size: Triple | None, seq_len: Triple | None) -> bool:
    """Whether the shape that is measured was asked for as the only one.

    An ONNX graph has no fixed length, so that its batch alone is enough.

    Raises:
        UsageError: Another was.
    """
    if batch_size is None and seq_len is None:
        return False
    needs_no_length = TUNED_RUNTIMES[point.runtime] == "onnx" and seq_len is None
    is_length = needs_no_length or seq_len == (point.seq_len,) * 3
    if batch_size != (point.batch_size,) * 3 or not is_length:
        raise UsageError(
            f"--tune --for {point} measures one shape; give --batch-size {point.batch_size} "
            f"--seq-len {point.seq_len} to allow artifacts that compute no other, or neither"
        )
    return True


def check_tuned(
    point: OperatingPoint | None, chosen: Mapping[str, Any], max_drop: float | None
) -> None:
    """Refuse flags beside `--tune` that it decides itself, and those that need it.

    Raises:
        UsageError: Names the flag.
    """
    given = [flag for flag, value in chosen.items() if value]
    if point is not None and given:
        raise UsageError(f"{given[0]} is what --tune chooses; leave one of them out")
    if point is None and max_drop is not None:
        raise UsageError("--max-drop bounds what --tune may lose; give both")
