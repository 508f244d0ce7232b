"""`export`: one model, one format, one directory."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from cofi_deploy.api.places import Place, find_model
from cofi_deploy.api.run_task import task_of_run
from cofi_deploy.api.triton_settings import triton_options
from cofi_deploy.api.tuning import TuningRequest
from cofi_deploy.api.tuning import tune as tuned
from cofi_deploy.api.tuning_flags import check_tuned, may_fix_shape, tuning_target
from cofi_deploy.api.versions import add_to_repository
from cofi_deploy.artifacts import atomic_directory
from cofi_deploy.errors import ArtifactError, UsageError, did_you_mean
from cofi_deploy.export.calibration import (
    CalibrationText,
    calibration_from_file,
    calibration_from_task,
)
from cofi_deploy.export.engine_options import EngineOptions
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
from cofi_deploy.exports import EXPORT_FORMATS, check_export, read_tuning
from cofi_deploy.loading import read_arch
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

Triple = tuple[int, int, int]
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
    tune: bool = False,
    target: str | None = None,
    max_drop: float | None = None,
    output: Path | None = None,
    backend: str | None = None,
    repository: Path | None = None,
    name: str | None = None,
    url: str | None = None,
    kserve: bool = False,
    plans: tuple[Path, ...] = (),
    settings: Mapping[str, Any] | None = None,
    **engine: Unpack[EngineFlags],
) -> Path:
    """Turn a compact model, or any dense one of a supported family, into a deployable artifact.

    Args:
        model: Run or model directory; None means the newest finished run.
        format: `onnx`, `openvino`, `trt` or `triton`.
        precision: Of the numbers in the artifact; int8 is of the weights alone in an engine.
        calibration: Text, one in each line, that lossy numbers are fitted to and judged on; by
            default the data of the run.
        shrink_embeddings: Keep half of the vocabulary, and all that this text needs; at int8 also
            store word embeddings in 4 bits, if held-out text loses 0.5 points or less.
        align: What hidden size and FFN widths must be multiples of, as `train` cut them.
        batch_size: Least, usual and largest batch: TensorRT's profiles, Triton's largest batch;
            by default `BATCH_SIZE`.
        seq_len: The same for tokens: TensorRT's one profile, by default `SEQ_LEN`, and the lengths
            that Triton warms up.
        opset: ONNX operator set; by default that of `DEFAULT_OPSETS` for the format.
        tune: Try several graphs and ways of opening them, and keep the fastest that is right.
        target: Where it is tuned for, such as `onnxruntime-cpu@1x128`.
        max_drop: Points of the metric that the tuned artifact may lose on held-out text; by
            default as much as any lossy export.
        output: Directory to write; by default `exports/<name>/<format>`.
        backend: Of a Triton repository; by default onnxruntime.
        repository: A Triton repository to add the model to, as the next version of a known
            ``name``; instead of ``output``.
        name: Of the model on a Triton server; by default made from the run.
        url: HTTP address of the Triton server that runs from ``repository``; it must load the
            version, else the version is taken back.
        kserve: Also write Kubernetes manifests, to `<repository>-kubernetes` beside it.
        plans: Engine directories, for backend tensorrt.
        settings: More of `TritonOptions`, by name. What is not given is as in the version before,
            where there is one.
        engine: How a TensorRT engine is built, see `EngineOptions`; ``weights_into`` is a
            refittable engine that is given the weights instead.

    Returns:
        The directory that was written; of an addition to a repository the version folder.

    Raises:
        CofiDeployError: See errors.py; nothing half-written is left behind.
    """
    if format not in EXPORT_FORMATS:
        raise UsageError(f"unknown format {format!r}; {did_you_mean(format, EXPORT_FORMATS)}")
    triton_only = {
        "--repository": repository,
        "--name": name,
        "--url": url,
        "--kserve": kserve,
        "--plan": plans,
        "--set": settings,
    }
    _check_flags(format, triton_only, output)
    built_before = {
        "--precision": precision != "fp32",
        "--batch-size": batch_size,
        "--seq-len": seq_len,
    }
    engine_options, weights_into = _engine_options(format, engine, built_before)
    _check_opset(format, opset)
    _check_numbers(
        format, precision, {"--calibration": calibration, "--shrink-embeddings": shrink_embeddings}
    )
    point = tuning_target(tune, target, format)
    check_tuned(point, {"--precision": precision != "fp32", "--opset": opset}, max_drop)
    place = find_model(model)
    if align is not None:
        _check_aligned(place.model, align)
    directory = output or place.exports / format
    if point is not None:
        text = _text(place, calibration)
        request = TuningRequest(
            model=place.model,
            point=point,
            text=text,
            shrink_embeddings=shrink_embeddings,
            max_drop=max_drop,
            may_fix_shape=may_fix_shape(point, batch_size, seq_len),
        )
        return _export_tuned(request, directory)
    if format == "trt" and weights_into is not None:
        return refit_tensorrt(place.model, directory, engine=weights_into)
    if format == "trt":
        return export_tensorrt(
            place.model,
            directory,
            batch_size=batch_size or BATCH_SIZE,
            seq_len=seq_len or SEQ_LEN,
            precision=precision,
            options=engine_options,
        )
    if format == "triton":
        name = name or _triton_name(place)
        options = triton_options(
            {
                "backend": backend,
                "max_batch_size": batch_size[2] if batch_size else None,
                "warmup_lengths": sorted(set(seq_len)) if seq_len else None,
            },
            settings or {},
            served=served_options(repository, name) if repository else None,
            kserve=kserve,
        )
        service = _Service(name=name, options=options, plans=plans, url=url, kserve=kserve)
        return _export_service(place.model, service, directory, repository)
    text = _text(place, calibration) if precision != "fp32" or shrink_embeddings else None
    lossy: _Lossy = {"precision": precision, "text": text, "shrink_embeddings": shrink_embeddings}
    if format == "onnx":
        return export_onnx(place.model, directory, opset=opset or DEFAULT_OPSETS["onnx"], **lossy)
    return export_openvino(
        place.model, directory, shape=_fixed_shape(batch_size, seq_len or SEQ_LEN), **lossy
    )


def _export_tuned(request: TuningRequest, output: Path) -> Path:
    with (
        tempfile.TemporaryDirectory(prefix="cofi-deploy-tune-") as folder,
        atomic_directory(output) as directory,
    ):
        shutil.copytree(tuned(request, Path(folder)), directory, dirs_exist_ok=True)
    return output


class EngineFlags(TypedDict, total=False):
    """What `export --format trt` takes beside model, precision and shapes."""

    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"]
    buckets: tuple[int, ...] | None
    builder_level: int | None
    compute_capabilities: tuple[str, ...]
    hardware: Literal["same", "ampere+", "same-capability"]
    version_compatible: bool
    refit: bool
    strip: bool
    weights_into: Path | None


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
    url: str | None
    kserve: bool


def _engine_options(
    format: str, flags: EngineFlags, built_before: Mapping[str, Any]
) -> tuple[EngineOptions, Path | None]:
    """The builder's options, and the engine that is only given new weights.

    Args:
        format: Of the export.
        flags: What was typed for an engine.
        built_before: More flags that a finished engine has answered already, with their values.
    """
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    into = given.pop("weights_into", None)
    options = EngineOptions(**given)
    named = [_flag(name) for name in options.to_json()]
    settled = [*named, *(flag for flag, value in built_before.items() if value)]
    if format == "trt" and into is not None and settled:
        raise UsageError(f"--weights-into keeps how the engine was built; leave {settled[0]} out")
    if format != "trt" and (named or into is not None):
        flag = (named or ["--weights-into"])[0]
        raise UsageError(f"{flag} is for --format trt, got --format {format}; leave it out")
    if options.buckets and built_before["--seq-len"]:
        raise UsageError("give --buckets for several profiles, or --seq-len for one; not both")
    return options, into


def _flag(name: str) -> str:
    """The flag of an engine's option, as it was typed."""
    names = {"compute_capabilities": "compute-capability"}
    return "--" + names.get(name, name.replace("_", "-"))


def _export_service(model: Path, service: _Service, target: Path, repository: Path | None) -> Path:
    name, options, plans = service.name, service.options, service.plans
    if service.kserve:
        check_manifests(repository or target)

    def write(directory: Path) -> object:
        return write_models(directory, model, name=name, options=options, plans=plans)

    if repository is None:
        written = export_triton(model, target, name=name, options=options, plans=plans)
    else:
        written = add_to_repository(repository, name, write, url=service.url).directory
    if service.kserve:
        write_kubernetes(repository or target, name, options)
    return written


def _check_numbers(format: str, precision: str, lossy_only: Mapping[str, Any]) -> None:
    """Precisions and cut vocabularies that a format has."""
    onnx_first = (
        "cofi-deploy export [MODEL] --format onnx with it, then "
        "cofi-deploy export <that directory> --format triton"
    )
    if format == "triton" and precision != "fp32":
        raise UsageError(f"--precision {precision} is for the model itself; run: {onnx_first}")
    given = [flag for flag, value in lossy_only.items() if value]
    if format in {"trt", "triton"} and given:
        also = f"; run: {onnx_first}" if format == "triton" else ""
        raise UsageError(f"{given[0]} is for --format onnx and openvino, got {format}{also}")


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


def _check_opset(format: str, opset: int | None) -> None:
    if format == "onnx" or opset is None or opset == DEFAULT_OPSETS[format]:
        return
    onnx_first = (
        f"; run: cofi-deploy export [MODEL] --format onnx --opset {opset}, then "
        "cofi-deploy export <that directory> --format triton"
    )
    way_on = onnx_first if format == "triton" else "; leave it out"
    raise UsageError(f"--opset {opset} is for --format onnx, got --format {format}{way_on}")


def _text(place: Place, calibration: Path | None) -> CalibrationText | None:
    """Real text: what was named, else the training data of the run."""
    if calibration is not None:
        return calibration_from_file(calibration, max_length=TEXT_MAX_LENGTH)
    if place.run is None:
        return None
    return calibration_from_task(task_of_run(place.run).load())


def _fixed_shape(batch_size: Triple | None, seq_len: Triple) -> tuple[int, int] | None:
    """A static shape where the least and the largest are the same."""
    if batch_size is None or batch_size[0] != batch_size[2] or seq_len[0] != seq_len[2]:
        return None
    return batch_size[0], seq_len[0]


def _check_flags(format: str, triton_only: Mapping[str, Any], output: Path | None) -> None:
    """Flags that say nothing about this export are errors, not ignored."""
    given = [flag for flag, value in triton_only.items() if value]
    if format != "triton" and given:
        raise UsageError(f"{given[0]} is for --format triton, got --format {format}; leave it out")
    if output is not None and "--repository" in given:
        raise UsageError(
            "give --output for a repository of its own, or --repository to add to one; not both"
        )
    if "--url" in given and "--repository" not in given:
        raise UsageError("--url names the server of a --repository, and none is given")


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
