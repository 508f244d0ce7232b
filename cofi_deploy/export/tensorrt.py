"""Model directory -> `model.plan` + `engine.json`, by TensorRT or TensorRT-RTX.

Comes in: a compact model or a dense checkpoint. Its ONNX graph is written and compared with
PyTorch first; the engine is built from exactly that file. `cofi_deploy.engines` reads the result.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from cofi_deploy.artifacts import atomic_directory, sha256_file, write_json
from cofi_deploy.engines import (
    ENGINE_FILE,
    FLAVOURS,
    PLAN_FILE,
    Flavour,
    check_engine,
    cuda_device,
    import_tensorrt,
)
from cofi_deploy.errors import ConfigError, EnvironmentProblem, MissingDependencyError
from cofi_deploy.export.calibration import calibration_rows
from cofi_deploy.export.engine import Engine, OptimizationProfile, build_engine
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.export.manifest import (
    Source,
    open_source,
    write_config_and_tokenizer,
    write_manifest,
)
from cofi_deploy.export.onnx import MODEL_FILE as ONNX_FILE
from cofi_deploy.export.onnx import write_onnx
from cofi_deploy.export.opsets import DEFAULT_OPSETS
from cofi_deploy.exports import ExportParity

__all__ = ["check_engine", "choose_flavour", "export_tensorrt"]

logger = logging.getLogger(__name__)

TIMING_CACHE_FILE = "timing.cache"

Triple = tuple[int, int, int]
Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def export_tensorrt(
    model_dir: Path | str,
    output: Path,
    *,
    batch_size: Triple = (1, 8, 32),
    seq_len: Triple = (16, 128, 384),
    precision: Precision = "fp32",
    flavour: Flavour | Literal["auto"] = "auto",
) -> Path:
    """Write an engine directory: model.plan, engine.json, config, tokenizer, export.json.

    Args:
        model_dir: Compact model, dense checkpoint, or the hub id of one.
        output: Directory to write; an existing one is replaced, but its timing cache is used.
        batch_size: Smallest, most usual and largest batch.
        seq_len: Shortest, most usual and longest input in tokens; cut to what the model can take.
        precision: fp16 keeps LayerNorm, head and outputs in fp32.
        flavour: ``auto`` takes TensorRT where it and a GPU are present, else TensorRT-RTX.

    Returns:
        ``output``.

    Raises:
        ConfigError: Shapes, precision or flavour that are not allowed; all problems at once.
        MissingDependencyError: Neither library is installed, or not the one asked for.
        EnvironmentProblem: TensorRT was asked for on a machine without a GPU.
        EngineBuildError: The library refuses the network.
        ExportError: The ONNX graph differs from PyTorch.
    """
    _check_options(batch_size, seq_len, precision, flavour)
    chosen = choose_flavour(flavour)
    _check_machine(chosen)
    source, model = open_source(model_dir)
    profile = _profile(batch_size, seq_len, source.arch.max_positions)
    with (
        tempfile.TemporaryDirectory(prefix="cofi-deploy-") as scratch,
        atomic_directory(output) as directory,
    ):
        onnx_file = Path(scratch) / ONNX_FILE
        # Attention is fused in half precision only where its softmax is, too.
        rows = calibration_rows(source, None)
        numerics = choose_numerics(model, precision, rows, fp32_softmax=False)
        opset = DEFAULT_OPSETS["trt"]
        parity = write_onnx(source, model, onnx_file, opset=opset, numerics=numerics)
        engine = build_engine(
            onnx_file,
            flavour=chosen,
            profile=profile,
            precision=precision,
            timing_cache=_stored_timing_cache(output),
        )
        _write_engine(engine, directory)
        record = _engine_record(engine, onnx_file, directory, source)
        write_json(
            directory / ENGINE_FILE,
            {
                "flavour": chosen,
                "precision": precision,
                "profiles": [profile.to_json()],
                **record,
            },
        )
        write_config_and_tokenizer(source, directory)
        _write_manifest(directory, source, profile, precision, parity, chosen)
    logger.info("wrote %s for compute capability %s", output, engine.compute_capabilities)
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


def _check_machine(flavour: Flavour) -> None:
    """Refuse a missing library or GPU before the work starts."""
    import_tensorrt(flavour)
    if flavour == "tensorrt" and cuda_device() is None:
        raise EnvironmentProblem(
            "flavour 'tensorrt' builds on the GPU that will run the engine, but the CUDA driver "
            "shows none; run this on that machine, or use flavour 'tensorrt-rtx'"
        )


def _is_installed(flavour: Flavour) -> bool:
    try:
        import_tensorrt(flavour)
    except MissingDependencyError:
        return False
    return True


def _check_options(batch_size: Triple, seq_len: Triple, precision: str, flavour: str) -> None:
    problems = [
        f"{name} is {':'.join(map(str, triple))}, allowed: 1 <= MIN <= OPT <= MAX"
        for name, triple in (("batch_size", batch_size), ("seq_len", seq_len))
        if triple[0] < 1 or list(triple) != sorted(triple)
    ]
    if precision not in PRECISIONS:
        problems.append(f"precision is {precision!r}, allowed: {', '.join(PRECISIONS)}")
    if flavour != "auto" and flavour not in FLAVOURS:
        problems.append(f"flavour is {flavour!r}, allowed: auto, {', '.join(FLAVOURS)}")
    if problems:
        raise ConfigError("; ".join(problems))


def _profile(batch_size: Triple, seq_len: Triple, max_positions: int) -> OptimizationProfile:
    shortest, usual, longest = (min(length, max_positions) for length in seq_len)
    return OptimizationProfile(
        min=(batch_size[0], shortest),
        opt=(batch_size[1], usual),
        max=(batch_size[2], longest),
    )


def _stored_timing_cache(output: Path) -> bytes | None:
    path = output / TIMING_CACHE_FILE
    return path.read_bytes() if path.is_file() else None


def _write_engine(engine: Engine, directory: Path) -> None:
    (directory / PLAN_FILE).write_bytes(engine.plan)
    if engine.timing_cache is not None:
        (directory / TIMING_CACHE_FILE).write_bytes(engine.timing_cache)


def _engine_record(
    engine: Engine, onnx_file: Path, directory: Path, source: Source
) -> Mapping[str, Any]:
    return {
        "version": engine.version,
        "compute_capabilities": list(engine.compute_capabilities),
        "gpu": engine.gpu,
        "onnx_sha256": sha256_file(onnx_file),
        "plan_sha256": sha256_file(directory / PLAN_FILE),
        "arch": source.arch.to_json(),
        "layers": engine.layers,
    }


def _write_manifest(
    directory: Path,
    source: Source,
    profile: OptimizationProfile,
    precision: Precision,
    parity: ExportParity,
    flavour: Flavour,
) -> None:
    shapes = (profile.min, profile.opt, profile.max)
    write_manifest(
        directory,
        source,
        export_format="trt",
        precision=precision,
        parity=parity,
        options={
            "opset": DEFAULT_OPSETS["trt"],
            "flavour": flavour,
            "batch_size": [batch for batch, _ in shapes],
            "seq_len": [length for _, length in shapes],
        },
    )
