"""ONNX file -> serialized TensorRT engine, by one path for `tensorrt` 10, 11 and `tensorrt-rtx`.

Networks are strongly typed: the types in the ONNX graph decide the precision, there is no flag
for it. Next file: `tensorrt.py`, which writes the directory.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from cofi_deploy.engines import Flavour, cuda_device, import_tensorrt
from cofi_deploy.errors import EngineBuildError
from cofi_deploy.kinds import INPUT_NAMES

logger = logging.getLogger(__name__)

Trt: TypeAlias = Any  # an object of TensorRT, which ships no types

WORKSPACE_BYTES = 2 * 2**30  # scratch memory that tactics may ask for

# Turing is supported only by engines that are built for it alone.
_NOT_BY_DEFAULT = "SM75"


@dataclass(frozen=True, kw_only=True)
class OptimizationProfile:
    """Shapes (batch, length) that an engine takes; tactics are tuned at ``opt``."""

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]

    def __str__(self) -> str:
        """As in trtexec: ``min 1x16 opt 8x128 max 32x384``."""
        shapes = (("min", self.min), ("opt", self.opt), ("max", self.max))
        return " ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)

    def to_json(self) -> dict[str, dict[str, list[int]]]:
        """The same shapes for every input, as `engine.json` has them."""
        shapes = {"min": list(self.min), "opt": list(self.opt), "max": list(self.max)}
        return dict.fromkeys(INPUT_NAMES, shapes)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A built engine, and what it was built for."""

    plan: bytes
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    timing_cache: bytes | None
    layers: Mapping[str, Any] | None  # the builder's own report; None where no GPU can load it


def build_engine(
    onnx_file: Path,
    *,
    flavour: Flavour,
    profile: OptimizationProfile,
    precision: str,
    timing_cache: bytes | None = None,
) -> Engine:
    """Build an engine from a dynamic ONNX file.

    Args:
        onnx_file: Graph whose inputs all have the axes (batch, sequence).
        flavour: Which library builds; ``tensorrt`` needs the GPU that will run the engine.
        profile: Shapes that the engine must take.
        precision: Only named in error messages; the graph's own types decide.
        timing_cache: Tactic timings of an earlier build; ignored when of another version or GPU.

    Raises:
        MissingDependencyError: The library is not installed.
        EngineBuildError: The parser or the builder refused the graph; carries its first error.
    """
    trt = import_tensorrt(flavour)
    log = _logger(flavour)
    log.errors.clear()
    what = f"{flavour} {trt.__version__} built no engine from {onnx_file.name!r} at {precision}"
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, flavour))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineBuildError(
            f"{what}: the parser says: {_first(problems)}; export at another --opset"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.add_optimization_profile(_profile(builder, network, profile))
    targets = _compute_capabilities(trt, config, flavour)
    cache = _timing_cache(config, flavour, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineBuildError(
            f"{what} (input_ids {profile}): {_first(log.errors)}; narrow --batch-size and "
            "--seq-len, or rerun with --verbose for the builder's log"
        )
    device = cuda_device() if flavour == "tensorrt" else None
    return Engine(
        plan=bytes(plan),
        version=trt.__version__,
        compute_capabilities=targets,
        gpu=None if device is None else device.name,
        timing_cache=None if cache is None else bytes(cache.serialize()),
        layers=_layers(trt, log, bytes(plan)),
    )


@functools.cache
def _logger(flavour: Flavour) -> Trt:
    """One for each library and process: it keeps the first one it is given, and warns of others."""
    trt = import_tensorrt(flavour)
    levels = {"WARNING": logging.INFO, "INFO": logging.DEBUG, "VERBOSE": logging.DEBUG - 1}

    class CollectingLogger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Trt, message: str) -> None:
            if severity.name in {"ERROR", "INTERNAL_ERROR"}:
                self.errors.append(message)
            logger.log(levels.get(severity.name, logging.DEBUG), "%s: %s", flavour, message)

    return CollectingLogger()


def _network_flags(trt: ModuleType, flavour: Flavour) -> int:
    """Strong typing is a flag in TensorRT 10 and the only way in 11 and in TensorRT-RTX."""
    if flavour == "tensorrt" and int(trt.__version__.split(".")[0]) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _profile(builder: Trt, network: Trt, profile: OptimizationProfile) -> Trt:
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        shapes.set_shape(name, profile.min, profile.opt, profile.max)
    return shapes


def _compute_capabilities(trt: ModuleType, config: Trt, flavour: Flavour) -> tuple[str, ...]:
    """Choose the targets; TensorRT always builds for the GPU at hand."""
    if flavour == "tensorrt":
        device = cuda_device()
        return () if device is None else (device.compute_capability,)
    targets = {
        name: member
        for name, member in trt.ComputeCapability.__members__.items()
        if name.startswith("SM") and name != _NOT_BY_DEFAULT
    }
    config.num_compute_capabilities = len(targets)
    for index, member in enumerate(targets.values()):
        config.set_compute_capability(member, index)
    return tuple(_dotted(name) for name in targets)


def _dotted(name: str) -> str:
    """``SM89`` to ``8.9``, ``SM120`` to ``12.0``."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _timing_cache(config: Trt, flavour: Flavour, stored: bytes | None) -> Trt | None:
    if flavour == "tensorrt-rtx":  # compiles instead of timing
        return None
    cache = config.create_timing_cache(stored or b"")
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _layers(trt: ModuleType, log: Trt, plan: bytes) -> Mapping[str, Any] | None:
    """The engine's layers by its own inspector, which works only where the engine can be loaded."""
    if cuda_device() is None:
        return None
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    report: Mapping[str, Any] = json.loads(text)
    return report


def _first(messages: Iterable[str]) -> str:
    """The first message, on one line."""
    return " ".join(next(iter(messages), "no error was logged").split())
