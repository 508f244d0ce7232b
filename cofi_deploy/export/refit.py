"""Other weights into an engine that was built refittable, stripped of its weights or not.

Comes in: an engine directory, and the ONNX file of a model of the same structure. Goes out: a whole
plan. It takes a fraction of a build, and needs the GPU that runs the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cofi_deploy.engines import PLAN_FILE, EngineRecord, check_engine, import_tensorrt
from cofi_deploy.errors import ConfigError, EngineBuildError
from cofi_deploy.export.engine import collecting_logger, first_line
from cofi_deploy.export.manifest import Source
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.exports import ExportManifest, read_manifest, rebuild_command


def refittable_engine(directory: Path, source: Source) -> tuple[ExportManifest, EngineRecord]:
    """Open an engine that the weights of ``source`` fit into, on the machine that can run it.

    Raises:
        ArtifactError: The directory is not ours, or was changed.
        ConfigError: Not an engine, not refittable, or of another structure.
        RunnerError: This machine cannot run it.
    """
    manifest = read_manifest(directory)
    if manifest.format != "trt":
        raise ConfigError(
            f"{str(directory)!r} is an export of format {manifest.format!r}, expected 'trt'"
        )
    if manifest.arch != source.arch or manifest.kind != source.kind:
        raise ConfigError(
            f"engine {str(directory)!r} is of another structure or kind of task than "
            f"{source.path!r}: weights fit only where every layer keeps the same sizes; "
            "build an engine without --weights-into"
        )
    record = check_engine(directory)
    if not (record.options.get("refit") or record.is_stripped):
        raise ConfigError(
            f"engine {str(directory)!r} was built with fixed weights; build it again with --refit "
            f"or --strip: {rebuild_command(manifest)} --refit"
        )
    return manifest, record


def check_same_numbers(manifest: ExportManifest, numerics: Numerics) -> None:
    """The new weights must be stored and computed on in the same types as the old ones.

    Raises:
        ConfigError: Another sublayer has to stay fp32.
    """
    for key, value in numerics.to_json().items():
        if manifest.options.get(key) != value:
            raise ConfigError(
                f"engine {str(manifest.directory)!r} has {key} {manifest.options.get(key)}, the "
                f"new weights need {value}; build an engine of their own without --weights-into"
            )


def refitted_plan(directory: Path, record: EngineRecord, onnx_file: Path) -> bytes:
    """The plan in ``directory`` with the weights of an ONNX file, none left out.

    Raises:
        EngineBuildError: The library does not load the plan, or does not take the weights.
    """
    trt = import_tensorrt(record.flavour)
    log = collecting_logger(record.flavour)
    log.errors.clear()
    what = f"{record.flavour} {trt.__version__} does not refit {str(directory / PLAN_FILE)!r}"
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = bool(record.options.get("version_compatible"))
    engine: Any = runtime.deserialize_cuda_engine((directory / PLAN_FILE).read_bytes())
    if engine is None:
        raise EngineBuildError(f"{what}: {first_line(log.errors)}; build it again on this machine")
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(onnx_file)) or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:5])
        raise EngineBuildError(
            f"{what}: {first_line(log.errors)}, weights missing: {missing or 'none'}; build an "
            "engine without --weights-into"
        )
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    return bytes(engine.serialize_with_config(config))
