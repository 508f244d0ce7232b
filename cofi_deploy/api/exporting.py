"""`export`: one model, one format, one directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cofi_deploy.api.places import Place, find_model
from cofi_deploy.errors import ArtifactError, UsageError, did_you_mean
from cofi_deploy.export.manifest import weights_sha256
from cofi_deploy.export.onnx import DEFAULT_OPSET, export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.tensorrt import export_tensorrt
from cofi_deploy.export.triton import export_triton
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import EXPORT_FORMATS, check_export

logger = logging.getLogger(__name__)

Triple = tuple[int, int, int]


def export(  # noqa: PLR0913 - the arguments are the flags of the command line
    model: Path | str | None = None,
    *,
    format: str,
    precision: Literal["fp32", "fp16"] = "fp32",
    batch_size: Triple = (1, 8, 32),
    seq_len: Triple = (16, 128, 384),
    opset: int = DEFAULT_OPSET,
    output: Path | None = None,
    backend: str = "onnxruntime",
    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto",
) -> Path:
    """Turn a compact model, or any dense one of a supported family, into a deployable artifact.

    Args:
        model: Run or model directory; None means the newest finished run.
        format: `onnx`, `openvino`, `trt` or `triton`.
        precision: Of the weights in the artifact.
        batch_size: Least, usual and largest batch: TensorRT's profile, Triton's largest batch.
        seq_len: The same for tokens.
        opset: ONNX operator set.
        output: Directory to write; by default `exports/<name>/<format>`.
        backend: Of a Triton repository.
        flavour: Of a TensorRT engine.

    Returns:
        The directory that was written.

    Raises:
        CofiDeployError: See errors.py; nothing half-written is left behind.
    """
    if format not in EXPORT_FORMATS:
        raise UsageError(f"unknown format {format!r}; {did_you_mean(format, EXPORT_FORMATS)}")
    place = find_model(model)
    target = output or place.exports / format
    if format in {"onnx", "openvino", "triton"} and precision != "fp32":
        raise UsageError(
            f"--precision {precision} is not available for {format} yet, allowed: fp32; "
            "fp16 can be had with --format trt"
        )
    if format == "onnx":
        return export_onnx(place.model, target, opset=opset)
    if format == "openvino":
        return export_openvino(place.model, target)
    if format == "trt":
        return export_tensorrt(
            place.model,
            target,
            batch_size=batch_size,
            seq_len=seq_len,
            precision=precision,
            flavour=flavour,
        )
    options = TritonOptions(backend=backend, max_batch_size=batch_size[2])
    return export_triton(place.model, target, name=_triton_name(place), options=options)


def export_if_stale(place: Place, format: str) -> Path:
    """The export of ``place`` in ``format``: as it is when it fits the weights, else made anew."""
    directory = place.exports / format
    if not _is_fresh(directory, place.model):
        logger.info("exporting %s to %s", place.model, directory)
        export(place.model, format=format, output=directory)
    return directory


def _is_fresh(directory: Path, model: Path) -> bool:
    try:
        return check_export(directory).source_sha256 == weights_sha256(model)
    except ArtifactError as error:
        logger.info("no usable export: %s", error)
        return False


def _triton_name(place: Place) -> str:
    """Triton's model names are folder names that appear in URLs."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in place.name)


def exported(directories: Mapping[str, Path]) -> dict[str, Any]:
    """JSON that `export` prints: where each artifact lies and what was checked."""
    return {
        name: {"directory": str(path), "parity": _parity(path)}
        for name, path in directories.items()
    }


def _parity(directory: Path) -> dict[str, Any] | None:
    parity = check_export(directory).parity
    return None if parity is None else vars(parity)
