"""Model directory -> `model.plan` + `engine.json` + `layers.json`, by TensorRT or TensorRT-RTX.

Comes in: a compact model or a dense checkpoint. Its ONNX graph is written and compared with
PyTorch first; the engine is built from exactly that file, or, where the weights alone are new, an
engine of the same structure is given them. `cofi_deploy.engines` reads the result.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cofi_deploy.artifacts import read_json, sha256_file, write_json
from cofi_deploy.atomic import atomic_directory, write_bytes
from cofi_deploy.engines import (
    ENGINE_FILE,
    PLAN_FILE,
    EngineRecord,
    Flavour,
    check_engine,
    cuda_device,
    import_tensorrt,
)
from cofi_deploy.errors import ConfigError, MissingDependencyError
from cofi_deploy.export.calibration import CalibrationText
from cofi_deploy.export.engine import Engine, OptimizationProfile, build_engine
from cofi_deploy.export.engine_layers import LAYERS_FILE
from cofi_deploy.export.engine_options import EngineOptions, Triple, check_flavour
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.export.manifest import Source, write_config_and_tokenizer, write_manifest
from cofi_deploy.export.numerics import PRECISIONS, Numerics, Precision, precision_problem
from cofi_deploy.export.onnx import MODEL_FILE as ONNX_FILE
from cofi_deploy.export.onnx import Opened, open_for_export, write_onnx
from cofi_deploy.export.opsets import DEFAULT_OPSETS
from cofi_deploy.export.refit import check_same_numbers, refittable_engine, refitted_plan
from cofi_deploy.exports import ExportManifest, ExportParity

__all__ = ["check_engine", "choose_flavour", "export_tensorrt", "refit_tensorrt"]

logger = logging.getLogger(__name__)


def export_tensorrt(  # noqa: PLR0913 - what it is made of, and how
    model_dir: Path | str,
    output: Path,
    *,
    batch_size: Triple = (1, 8, 32),
    seq_len: Triple = (16, 128, 384),
    precision: Precision = "fp32",
    text: CalibrationText | None = None,
    options: EngineOptions | None = None,
) -> Path:
    """Write an engine directory: model.plan, engine.json, config, tokenizer, export.json.

    Args:
        model_dir: Compact model, dense checkpoint, or the hub id of one.
        output: Directory to write; an existing one is replaced.
        batch_size: Smallest, most usual and largest batch.
        seq_len: Shortest, most usual and longest input in tokens, of an engine without buckets.
            What the model cannot take is cut off both.
        precision: fp16 and bf16 keep LayerNorm, head and outputs in fp32; int8 is fp16 with bytes
            for the weights of all products that are wide enough.
        text: Real text of the task: shows what fp16 cannot hold, and is what a lossy graph is
            judged on. Without it the built-in sentences are looked at alone.
        options: How it is built.

    Returns:
        ``output``.

    Raises:
        ConfigError: Shapes, precision or options that are not allowed; all problems at once.
        MissingDependencyError: Neither library is installed, or not the one asked for.
        EnvironmentProblem: What was asked for needs a GPU, and this machine has none.
        EngineBuildError: The library refuses the network.
        ExportError: The ONNX graph differs from PyTorch.
    """
    options = options or EngineOptions()
    _check_options(batch_size, seq_len, precision, options)
    flavour = choose_flavour(options.flavour)
    check_flavour(options, flavour)
    opened = open_for_export(model_dir, text, shrink_embeddings=False)
    source = opened.source
    profiles = _profiles(batch_size, seq_len, options.buckets, source.arch.max_positions)
    with (
        tempfile.TemporaryDirectory(prefix="cofi-deploy-") as scratch,
        atomic_directory(output) as directory,
    ):
        graph = _write_graph(opened, precision, Path(scratch) / ONNX_FILE)
        engine = build_engine(
            graph.file, flavour=flavour, profiles=profiles, precision=precision, options=options
        )
        write_bytes(directory / PLAN_FILE, engine.plan)
        write_json(directory / LAYERS_FILE, engine.layers.to_json())
        record = _engine_record(engine, profiles, options)
        record |= {"flavour": flavour, "precision": precision}
        _write_records(directory, source, graph, record, _shapes(profiles, options))
    logger.info("wrote %s for compute capability %s", output, engine.compute_capabilities)
    return output


def refit_tensorrt(
    model_dir: Path | str, output: Path, *, engine: Path, text: CalibrationText | None = None
) -> Path:
    """Write an engine directory out of a refittable one and the weights of another model.

    Args:
        model_dir: Model of the same structure as that of ``engine``.
        output: Directory to write; may be ``engine`` itself.
        engine: Engine directory that was built with ``refit`` or ``strip``.
        text: As for `export_tensorrt`.

    Returns:
        ``output``.

    Raises:
        ConfigError: The weights do not fit into the engine.
        RunnerError: This machine cannot run the engine.
        EngineBuildError: The library does not take the weights.
        ExportError: The ONNX graph differs from PyTorch.
        ArtifactError: The engine or the model is corrupt or incomplete.
    """
    opened = open_for_export(model_dir, text, shrink_embeddings=False)
    source = opened.source
    manifest, record = refittable_engine(engine, source)
    content = read_json(engine / ENGINE_FILE)
    layers = read_json(engine / LAYERS_FILE)
    with (
        tempfile.TemporaryDirectory(prefix="cofi-deploy-") as scratch,
        atomic_directory(output) as directory,
    ):
        graph = _write_graph(opened, record.precision, Path(scratch) / ONNX_FILE)
        check_same_numbers(manifest, graph.numerics)
        write_bytes(directory / PLAN_FILE, refitted_plan(engine, record, graph.file))
        write_json(directory / LAYERS_FILE, layers)
        _write_records(directory, source, graph, _whole(content), _shapes_of(manifest, record))
    logger.info("wrote %s from %s", output, engine)
    return output


def choose_flavour(flavour: Flavour | Literal["auto"]) -> Flavour:
    """Resolve ``auto``: TensorRT where it can build here, else TensorRT-RTX.

    Raises:
        MissingDependencyError: Neither is installed.
    """
    if flavour != "auto":
        return flavour
    if cuda_device() is not None and _is_installed("tensorrt"):
        return "tensorrt"
    if _is_installed("tensorrt-rtx"):
        return "tensorrt-rtx"
    raise MissingDependencyError("tensorrt-rtx", "tensorrt-rtx", "an engine without a GPU here")


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """An ONNX file that was compared with PyTorch."""

    file: Path
    numerics: Numerics
    parity: ExportParity
    options: Mapping[str, Any]  # the text that it was fitted to


def _write_graph(opened: Opened, precision: str, file: Path) -> _Graph:
    known = _precision(precision)
    numerics = choose_numerics(opened.model, known, opened.rows(), strongly_typed=True)
    parity = write_onnx(opened, file, numerics=numerics)
    return _Graph(file=file, numerics=numerics, parity=parity, options=opened.options)


def _precision(name: str) -> Precision:
    return next(each for each in PRECISIONS if each == name)


def _is_installed(flavour: Flavour) -> bool:
    try:
        import_tensorrt(flavour)
    except MissingDependencyError:
        return False
    return True


def _check_options(
    batch_size: Triple, seq_len: Triple, precision: str, options: EngineOptions
) -> None:
    problems = [
        f"{name} is {':'.join(map(str, triple))}, allowed: 1 <= MIN <= OPT <= MAX"
        for name, triple in (("batch_size", batch_size), ("seq_len", seq_len))
        if triple[0] < 1 or list(triple) != sorted(triple)
    ]
    problems += filter(None, [precision_problem(precision)])
    problems += options.problems()
    if problems:
        raise ConfigError("; ".join(problems))


def _profiles(
    batch_size: Triple, seq_len: Triple, buckets: Sequence[int], max_positions: int
) -> list[OptimizationProfile]:
    """One profile, or one for each bucket of lengths: they meet, and none overlaps another.

    A bucket is tuned at its longest input, which is what a text is padded to.
    """
    lengths = [tuple(min(length, max_positions) for length in seq_len)]
    if buckets:
        ends = sorted({min(length, max_positions) for length in buckets})
        starts = [1, *(end + 1 for end in ends[:-1])]
        lengths = [(start, end, end) for start, end in zip(starts, ends, strict=True)]
    return [
        OptimizationProfile(
            min=(batch_size[0], shortest), opt=(batch_size[1], usual), max=(batch_size[2], longest)
        )
        for shortest, usual, longest in lengths
    ]


def _engine_record(
    engine: Engine, profiles: Sequence[OptimizationProfile], options: EngineOptions
) -> dict[str, Any]:
    return {
        "version": engine.version,
        "compute_capabilities": list(engine.compute_capabilities),
        "gpu": engine.gpu,
        "profiles": [profile.to_json() for profile in profiles],
        "options": options.to_json(),
    }


def _whole(content: dict[str, Any]) -> dict[str, Any]:
    """The record of a stripped engine once it has weights; they are fixed from then on."""
    kept = {key: value for key, value in content["options"].items() if key not in _WEIGHTS}
    return {**content, "options": kept}


_WEIGHTS = ("refit", "strip")


def _shapes(profiles: Sequence[OptimizationProfile], options: EngineOptions) -> dict[str, Any]:
    """What the rebuild command needs to know."""
    first, last = profiles[0], profiles[-1]
    shapes: dict[str, Any] = {"batch_size": [first.min[0], first.opt[0], first.max[0]]}
    if options.buckets:
        shapes["buckets"] = [profile.max[1] for profile in profiles]
    else:
        shapes["seq_len"] = [first.min[1], first.opt[1], last.max[1]]
    built = {key: value for key, value in options.to_json().items() if key != "buckets"}
    return {**shapes, "engine": built}


def _shapes_of(manifest: ExportManifest, record: EngineRecord) -> dict[str, Any]:
    names = ("batch_size", "seq_len", "buckets")
    shapes = {name: manifest.options[name] for name in names if name in manifest.options}
    built = {key: value for key, value in record.options.items() if key not in _WEIGHTS}
    return {**shapes, "engine": {key: built[key] for key in built if key != "buckets"}}


def _write_records(
    directory: Path,
    source: Source,
    graph: _Graph,
    record: dict[str, Any],
    shapes: dict[str, Any],
) -> None:
    """engine.json, config, tokenizer and export.json, around a plan that is there."""
    write_json(
        directory / ENGINE_FILE,
        {
            **record,
            "onnx_sha256": sha256_file(graph.file),
            "plan_sha256": sha256_file(directory / PLAN_FILE),
            "arch": source.arch.to_json(),
        },
    )
    write_config_and_tokenizer(source, directory)
    write_manifest(
        directory,
        source,
        export_format="trt",
        precision=graph.numerics.precision,
        parity=graph.parity,
        options={
            "opset": DEFAULT_OPSETS["trt"],
            "flavour": record["flavour"],
            **shapes,
            **graph.options,
            **graph.numerics.to_json(),
        },
    )
