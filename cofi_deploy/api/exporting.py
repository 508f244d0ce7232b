"""`export`: one model, one format, one directory."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from cofi_deploy.api.export_flags import (
    ExportFlags,
    Triple,
    check_numbers,
    check_opset,
    check_shapes,
    check_triton,
    engine_options,
    fixed_shape,
)
from cofi_deploy.api.places import Place, find_model
from cofi_deploy.api.run_task import task_of_run
from cofi_deploy.api.triton_settings import TRITON_SETTINGS, triton_options
from cofi_deploy.api.tuning import TuningRequest
from cofi_deploy.api.tuning import tune as tuned
from cofi_deploy.api.tuning_flags import check_tuned, may_fix_shape, tuning_target
from cofi_deploy.api.versions import add_to_repository
from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import ArtifactError, UsageError, did_you_mean
from cofi_deploy.export.calibration import (
    CalibrationText,
    calibration_from_file,
    calibration_from_task,
)
from cofi_deploy.export.kubernetes import check_manifests, write_kubernetes
from cofi_deploy.export.manifest import weights_sha256
from cofi_deploy.export.numerics import Precision
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.opsets import DEFAULT_OPSETS
from cofi_deploy.export.tensorrt import export_tensorrt, refit_tensorrt
from cofi_deploy.export.triton import export_triton, write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.export.triton_versions import served_options
from cofi_deploy.exports import (
    EXPORT_FORMATS,
    EXPORTER_VERSION,
    ExportManifest,
    check_export,
    read_tuning,
    rebuild_arguments,
    rebuild_command,
)
from cofi_deploy.loading import read_arch
from cofi_deploy.pieces import ONE_TEXT
from cofi_deploy.tasks.load import TEXT_MAX_LENGTH

logger = logging.getLogger(__name__)

# Which export each runtime opens; torch opens the model directory itself.
RUNTIME_FORMATS = {
    "onnxruntime-cpu": "onnx",
    "onnxruntime-cuda": "onnx",
    "openvino": "openvino",
    "tensorrt": "trt",
    "tensorrt-rtx": "trt",
    "triton": "triton",
}

BATCH_SIZE: Triple = (1, 8, 32)
SEQ_LEN: Triple = (16, 128, 384)


def export(  # noqa: PLR0913 - the arguments are the flags of the command line
    model: Path | str | None = None,
    *,
    format: str,
    precision: Precision = "fp32",
    calibration: Path | None = None,
    shrink_embeddings: bool = False,
    align: int | None = None,
    batch_size: Triple | None = None,
    seq_len: Triple | None = None,
    opset: int | None = None,
    output: Path | None = None,
    **flags: Unpack[ExportFlags],
) -> Path:
    """Turn a compact model, or any dense one of a supported family, into a deployable artifact.

    Args:
        model: Run or model directory; None means the newest finished run.
        format: `onnx`, `openvino`, `trt` or `triton`.
        precision: Of the numbers in the artifact; int8 is of the weights alone in an engine.
        calibration: Text, one in each line, that lossy numbers are fitted to and judged on; by
            default the data of the run.
        shrink_embeddings: Leave out the rarest pieces of the vocabulary that this text does not
            need; at int8 also store frequent words in 6 bits and others in 2, if 0.5 points
            or less are lost on it.
        align: What hidden size and FFN widths must be multiples of, as `train` cut them.
        batch_size: Least, usual and largest batch: TensorRT's profiles, Triton's largest batch;
            by default `BATCH_SIZE`. (1, 1, 1): an ONNX graph that computes one text at a time.
        seq_len: The same for tokens: TensorRT's one profile, by default `SEQ_LEN`, and the lengths
            that Triton warms up.
        opset: ONNX operator set; by default that of `DEFAULT_OPSETS` for the format.
        output: Directory to write; by default `exports/<name>/<format>`.
        flags: Of the search (`TuningFlags`), of a Triton repository (`TritonFlags`) and of an
            engine (`EngineFlags`): each name is an argument of its own.

    Returns:
        The directory that was written; of an addition to a repository the version folder.

    Raises:
        CofiDeployError: See errors.py; nothing half-written is left behind.
    """
    if format not in EXPORT_FORMATS:
        raise UsageError(f"unknown format {format!r}; {did_you_mean(format, EXPORT_FORMATS)}")
    check_triton(format, flags, output)
    built_before = {
        "--precision": precision != "fp32",
        "--batch-size": batch_size,
        "--seq-len": seq_len,
    }
    engine, weights_into = engine_options(format, flags, built_before)
    check_opset(format, opset)
    tune = flags.get("tune", False)
    is_lossy = bool(precision != "fp32" or shrink_embeddings or weights_into)
    check_numbers(
        format,
        precision,
        shrink_embeddings=shrink_embeddings,
        calibration=calibration,
        is_needed=is_lossy or tune,
    )
    point = tuning_target(tune, flags.get("target"), format)
    max_drop = flags.get("max_drop")
    check_tuned(point, {"--precision": precision != "fp32", "--opset": opset}, max_drop)
    if point is None:
        check_shapes(format, batch_size, seq_len)
    place = find_model(model)
    if align is not None:
        _check_aligned(place.model, align)
    directory = output or place.exports / format
    if point is not None:
        request = TuningRequest(
            model=place.model,
            point=point,
            text=_text(place, calibration),
            shrink_embeddings=shrink_embeddings,
            max_drop=max_drop,
            may_fix_shape=may_fix_shape(point, batch_size, seq_len),
        )
        return _export_tuned(request, directory)
    if format == "triton":
        shapes = {
            "max_batch_size": batch_size[2] if batch_size else None,
            "warmup_lengths": sorted(set(seq_len)) if seq_len else None,
        }
        return _export_service(place, _service(place, shapes, flags), directory)
    text = _text(place, calibration) if is_lossy else None
    if weights_into is not None:
        return refit_tensorrt(place.model, directory, engine=weights_into, text=text)
    if format == "trt":
        return export_tensorrt(
            place.model,
            directory,
            batch_size=batch_size or BATCH_SIZE,
            seq_len=seq_len or SEQ_LEN,
            precision=precision,
            text=text,
            options=engine,
        )
    lossy: _Lossy = {"precision": precision, "text": text, "shrink_embeddings": shrink_embeddings}
    if format == "onnx":
        return export_onnx(
            place.model,
            directory,
            opset=opset or DEFAULT_OPSETS["onnx"],
            one_text=batch_size == ONE_TEXT,
            **lossy,
        )
    return export_openvino(place.model, directory, shape=fixed_shape(batch_size, seq_len), **lossy)


def _export_tuned(request: TuningRequest, output: Path) -> Path:
    with (
        tempfile.TemporaryDirectory(prefix="cofi-deploy-tune-") as folder,
        atomic_directory(output) as directory,
    ):
        shutil.copytree(tuned(request, Path(folder)), directory, dirs_exist_ok=True)
    return output


class _Lossy(TypedDict):
    precision: Precision
    text: CalibrationText | None
    shrink_embeddings: bool


@dataclass(frozen=True, kw_only=True)
class _Service:
    """What `export --format triton` was asked for, beside the model."""

    name: str
    options: TritonOptions
    plans: tuple[Path, ...]
    repository: Path | None
    url: str | None
    kserve: bool


def _service(place: Place, shapes: Mapping[str, Any], flags: ExportFlags) -> _Service:
    name = flags.get("name") or _triton_name(place)
    repository, kserve = flags.get("repository"), flags.get("kserve", False)
    options = triton_options(
        {"backend": flags.get("backend"), **shapes},
        flags.get("settings") or {},
        served=served_options(repository, name) if repository else None,
        kserve=kserve,
    )
    return _Service(
        name=name,
        options=options,
        plans=flags.get("plans", ()),
        repository=repository,
        url=flags.get("url"),
        kserve=kserve,
    )


def _export_service(place: Place, service: _Service, target: Path) -> Path:
    name, options, plans = service.name, service.options, service.plans
    repository = service.repository
    if service.kserve:
        check_manifests(repository or target)

    def write(directory: Path) -> object:
        return write_models(directory, place.model, name=name, options=options, plans=plans)

    if repository is None:
        written = export_triton(place.model, target, name=name, options=options, plans=plans)
    else:
        written = add_to_repository(repository, name, write, url=service.url).directory
    if service.kserve:
        write_kubernetes(repository or target, name, options)
    return written


def _check_aligned(model: Path, multiple: int) -> None:
    """Widths are chosen where the pruned units are still there, so an export can only look.

    Raises:
        UsageError: A width that is no multiple, and how to train one that is.
    """
    arch = read_arch(model)
    widths = {"hidden size": arch.hidden}
    widths |= {f"FFN of layer {at}": layer.ffn for at, layer in enumerate(arch.layers, start=1)}
    others = [f"{name} {width}" for name, width in widths.items() if width % multiple]
    if others:
        raise UsageError(
            f"--align {multiple}: {str(model)!r} has {', '.join(others)}, and the units that it "
            f"lost are gone; train it with: cofi-deploy train --align {multiple}"
        )


def _text(place: Place, calibration: Path | None) -> CalibrationText | None:
    """Real text: what was named, else the training data of the run."""
    if calibration is not None:
        return calibration_from_file(calibration, max_length=TEXT_MAX_LENGTH)
    if place.run is None:
        return None
    return calibration_from_task(task_of_run(place.run).load())


def export_if_stale(place: Place, format: str) -> Path:
    """The export of ``place`` in ``format``: as it is when it fits, else made anew.

    It fits when it is whole, of these weights, and of this exporter. What is made anew is made with
    the flags of what was there.
    """
    directory = place.exports / format
    manifest = _usable(directory)
    if manifest is not None and manifest.source_sha256 == weights_sha256(place.model):
        if manifest.exporter_version == EXPORTER_VERSION:
            return directory
        if not _is_repeatable(manifest):
            logger.warning(
                "%s was made by another version of the exporter; it is taken as it is, and made "
                "anew by: %s",
                directory,
                rebuild_command(manifest),
            )
            return directory
    told: dict[str, Any] = {}
    if manifest is not None and _is_repeatable(manifest):
        told = _told(manifest)
    logger.info("exporting %s to %s", place.model, directory)
    export(place.model, format=format, output=directory, **told)
    return directory


def _usable(directory: Path) -> ExportManifest | None:
    try:
        return check_export(directory)
    except ArtifactError as error:
        logger.info("no usable export: %s", error)
        return None


def _is_repeatable(manifest: ExportManifest) -> bool:
    """Whether its flags are known, and need neither an idle machine nor other artifacts."""
    is_served = manifest.format == "triton"
    has_plans = bool(manifest.options.get("plans"))
    of_other_artifacts = is_served and (manifest.precision != "fp32" or has_plans)
    return manifest.tuned_for is None and not of_other_artifacts


def _told(manifest: ExportManifest) -> dict[str, Any]:
    """Arguments of `export` that make the same of other weights."""
    if manifest.format != "triton":
        return rebuild_arguments(manifest)
    options, largest = manifest.options, manifest.options["max_batch_size"]
    settings = {name: options[name] for name in TRITON_SETTINGS if name in options}
    return {
        "name": options["name"],
        "backend": options["backend"],
        "batch_size": (1, largest, largest),
        "settings": settings,
    }


def _triton_name(place: Place) -> str:
    """Triton's model names are folder names that appear in URLs."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in place.name)


def exported(directories: Mapping[str, Path]) -> dict[str, Any]:
    """JSON that `export` prints: where each artifact lies and what was checked."""
    return {
        name: {"directory": str(path), "parity": _parity(path), **_tuning(path)}
        for name, path in directories.items()
    }


def _tuning(directory: Path) -> dict[str, Any]:
    """What was tried; nothing where nothing was."""
    tuning = read_tuning(directory)
    return {} if tuning is None else {"tuning": tuning}


def _parity(directory: Path) -> dict[str, Any] | None:
    parity = check_export(directory).parity
    return None if parity is None else asdict(parity)
