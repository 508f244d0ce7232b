"""ONNX file -> serialized TensorRT engine, by one path for `tensorrt` 10, 11 and `tensorrt-rtx`.

Networks are strongly typed: the types in the ONNX graph decide the precision, there is no flag
for it. Next file: `tensorrt.py`, which writes the directory.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cofi_deploy.engines import CudaDevice, Flavour, cuda_device, import_tensorrt
from cofi_deploy.errors import EngineBuildError
from cofi_deploy.export.engine_layers import LayerReport, engine_layers, network_layers
from cofi_deploy.export.engine_options import EngineOptions, rtx_capabilities
from cofi_deploy.export.timing_cache import (
    read_timing_cache,
    timing_cache_file,
    write_timing_cache,
)
from cofi_deploy.kinds import INPUT_NAMES

if TYPE_CHECKING:
    import tensorrt as types

    from cofi_deploy.tensorrt_api import TensorRt

logger = logging.getLogger(__name__)

WORKSPACE_BYTES = 2 * 2**30  # scratch memory that tactics may ask for


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
    layers: LayerReport


def build_engine(
    onnx_file: Path,
    *,
    flavour: Flavour,
    profiles: Sequence[OptimizationProfile],
    precision: str,
    options: EngineOptions | None = None,
) -> Engine:
    """Build an engine from a dynamic ONNX file.

    Args:
        onnx_file: Graph whose inputs all have the axes (batch, sequence).
        flavour: Which library builds; ``tensorrt`` needs the GPU that will run the engine.
        profiles: Shapes that the engine must take; Triton and contexts number them in this order.
        precision: Only named in error messages; the graph's own types decide.
        options: Must suit ``flavour``, see `engine_options.check_flavour`.

    Raises:
        MissingDependencyError: The library is not installed.
        EngineBuildError: The parser or the builder refused the graph; carries its first error.
    """
    options = options or EngineOptions()
    trt = import_tensorrt(flavour)
    log = collecting_logger(flavour)
    log.errors.clear()
    what = f"{flavour} {trt.__version__} built no engine from {onnx_file.name!r} at {precision}"
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, flavour))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineBuildError(
            f"{what}: the parser says: {first_line(problems)}; export at another --opset"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    for profile in profiles:
        config.add_optimization_profile(_profile(trt, builder, network, profile))
    _set_options(trt, config, options)
    device = cuda_device() if flavour == "tensorrt" else None
    targets = _compute_capabilities(config, options, device)
    cache_file = None if device is None else timing_cache_file(flavour, trt.__version__, device)
    cache = None if cache_file is None else _load_timings(config, cache_file)
    # None where it fails, which the published types do not say.
    plan: types.IHostMemory | None = cast("Any", builder.build_serialized_network(network, config))
    if plan is None:
        shapes = ", ".join(map(str, profiles))
        raise EngineBuildError(
            f"{what} (input_ids {shapes}): {first_line(log.errors)}; narrow --batch-size and "
            "--seq-len, or rerun with --verbose for the builder's log"
        )
    if cache_file is not None and cache is not None:
        write_timing_cache(cache_file, bytes(cache.serialize()))
    return Engine(
        plan=bytes(plan),
        version=trt.__version__,
        compute_capabilities=targets,
        gpu=None if device is None else device.name,
        layers=_layers(trt, log, bytes(plan), network),
    )


@functools.cache
def collecting_logger(flavour: Flavour) -> Any:
    """One for each library and process: it keeps the first one it is given, and warns of others.

    Its ``errors`` are the messages of the current build.
    """
    trt: Any = import_tensorrt(flavour)
    levels = {"WARNING": logging.INFO, "INFO": logging.DEBUG, "VERBOSE": logging.DEBUG - 1}

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in {"ERROR", "INTERNAL_ERROR"}:
                self.errors.append(message)
            logger.log(levels.get(severity.name, logging.DEBUG), "%s: %s", flavour, message)

    return CollectingLogger()


def first_line(messages: Iterable[str]) -> str:
    """The first message, on one line."""
    return " ".join(next(iter(messages), "no error was logged").split())


def _network_flags(trt: TensorRt, flavour: Flavour) -> int:
    """Strong typing is a flag in TensorRT 10 and the only way in 11 and in TensorRT-RTX."""
    if flavour == "tensorrt" and int(trt.__version__.split(".")[0]) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _profile(
    trt: TensorRt,
    builder: types.Builder,
    network: types.INetworkDefinition,
    profile: OptimizationProfile,
) -> types.IOptimizationProfile:
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        sizes = (trt.Dims(list(shape)) for shape in (profile.min, profile.opt, profile.max))
        shapes.set_shape(name, *sizes)
    return shapes


def _set_options(trt: TensorRt, config: types.IBuilderConfig, options: EngineOptions) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.builder_level is not None:
        config.builder_optimization_level = options.builder_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit or options.strip:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.hardware == "ampere+":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.hardware == "same-capability":
        level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        config.hardware_compatibility_level = level


def _compute_capabilities(
    config: Any, options: EngineOptions, device: CudaDevice | None
) -> tuple[str, ...]:
    """Choose TensorRT-RTX's targets; TensorRT (``device``) builds for the GPU at hand."""
    if device is not None:
        return (device.compute_capability,)
    known = rtx_capabilities()
    targets = options.compute_capabilities or tuple(known)
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        config.set_compute_capability(known[name], index)
    return targets


def _load_timings(config: types.IBuilderConfig, path: Path) -> types.ITimingCache:
    """Give the builder what is known; a cache that it refuses is replaced by an empty one."""
    cache = config.create_timing_cache(read_timing_cache(path))
    if not config.set_timing_cache(cache, False):
        logger.warning("the timing cache %r is ignored: the builder refuses it", str(path))
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _layers(trt: TensorRt, log: Any, plan: bytes, network: types.INetworkDefinition) -> LayerReport:
    """The engine's own layers where it can be loaded, else those that it was built from."""
    if cuda_device() is not None:
        runtime = trt.Runtime(log)
        runtime.engine_host_code_allowed = True  # of our own plan, a moment ago
        engine: Any = runtime.deserialize_cuda_engine(plan)  # None where it fails
        if engine is not None:
            form = trt.LayerInformationFormat.JSON
            return engine_layers(engine.create_engine_inspector().get_engine_information(form))
    return network_layers(network)
