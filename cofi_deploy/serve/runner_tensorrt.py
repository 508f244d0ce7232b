"""TensorRT and TensorRT-RTX: an engine directory, on the first CUDA device.

PyTorch owns the device buffers and the stream; the engine is given their addresses. What an
engine was built for is checked before the library sees it (`cofi_deploy.engines`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt
import torch

from cofi_deploy.engines import (
    PLAN_FILE,
    EngineRecord,
    Flavour,
    check_engine,
    cuda_device,
    import_tensorrt,
)
from cofi_deploy.errors import MissingDependencyError, RunnerError
from cofi_deploy.exports import ExportManifest, rebuild_command
from cofi_deploy.serve.exported import check_precision, open_export
from cofi_deploy.serve.inputs import InputLimits, Tensors
from cofi_deploy.serve.runner import RunnerSettings

if TYPE_CHECKING:
    import tensorrt as types

    from cofi_deploy.tensorrt_api import TensorRt

logger = logging.getLogger(__name__)

Shape = tuple[int, int]  # (batch, sequence)


def unavailable(runtime: str) -> str | None:
    """No library, no GPU, or a PyTorch that cannot reach it."""
    try:
        import_tensorrt(cast(Flavour, runtime))
    except MissingDependencyError as error:
        return str(error)
    if cuda_device() is None:
        return "the CUDA driver shows no NVIDIA GPU"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} does not reach the GPU; install its CUDA build"
    return None


def open_session(artifact: Path, settings: RunnerSettings) -> TensorRtSession:
    """Deserialize an engine that was built for this library version and GPU.

    Raises:
        ArtifactError: See `exports.check_export`.
        RunnerError: Another flavour, version, GPU or precision, or an engine that the library
            refuses.
    """
    manifest, plan = open_export(artifact, settings.runtime, "trt", PLAN_FILE)
    record = check_engine(artifact)
    if record.flavour != settings.runtime:
        raise RunnerError(
            f"{str(plan)!r} is an engine of {record.flavour!r}, but runtime is "
            f"{settings.runtime!r}; open it with {record.flavour!r}"
        )
    check_precision(settings.runtime, settings.precision, (record.precision,))
    _check_whole(artifact, manifest, record)
    trt = import_tensorrt(record.flavour)
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    # Such a plan brings the code that reads it.
    runtime.engine_host_code_allowed = bool(record.options.get("version_compatible"))
    engine: Any = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise RunnerError(
            f"{record.flavour} {trt.__version__} refuses {str(plan)!r}; "
            f"rebuild it here: {rebuild_command(manifest)}"
        )
    tensors = _tensors(trt, engine)
    limits = InputLimits.from_arch(manifest.arch, tuple(tensors.inputs))
    return TensorRtSession(engine, tensors, record, limits)


def _check_whole(artifact: Path, manifest: ExportManifest, record: EngineRecord) -> None:
    """Without its weights an engine would answer anything."""
    if record.is_stripped:
        raise RunnerError(
            f"engine {str(artifact)!r} was stripped of its weights; put them in: cofi-deploy "
            f"export {manifest.source_path} --format trt --weights-into {artifact}"
        )


@dataclass(frozen=True, kw_only=True)
class EngineTensors:
    """Names and element types of an engine's inputs and outputs."""

    inputs: Mapping[str, torch.dtype]
    outputs: Mapping[str, torch.dtype]


class TensorRtSession:
    """One execution context on a stream of its own."""

    device = "cuda"

    def __init__(
        self,
        engine: types.ICudaEngine,
        tensors: EngineTensors,
        record: EngineRecord,
        limits: InputLimits,
    ) -> None:
        """Take a deserialized engine."""
        self._engine: Any = engine
        self._context: Any = engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._tensors = tensors
        self._profiles = [profile_range(profile) for profile in record.profiles]
        self._profile = 0
        self._one_at_a_time = threading.Lock()
        self._began, self._ended = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        # Of the engine alone, by the device's own clock: no copies, no host.
        self.device_ms: float | None = None
        self.precision = record.precision
        self.limits = limits

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs; copies and the wait for the device are part of it.

        Raises:
            RunnerError: A shape outside of every optimization profile, or a failed execution.
        """
        shape = cast(Shape, inputs[self.limits.names[0]].shape)
        # A context executes one request at a time, whoever asks.
        with self._one_at_a_time, torch.cuda.stream(self._stream):
            self._choose_profile(shape)
            # Both mappings are held until the stream is done: the engine knows addresses only.
            given = {
                name: torch.from_numpy(inputs[name]).to("cuda", dtype)
                for name, dtype in self._tensors.inputs.items()
            }
            for name, tensor in given.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
                self._context.set_tensor_address(name, tensor.data_ptr())
            taken = {
                name: torch.empty(
                    tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda"
                )
                for name, dtype in self._tensors.outputs.items()
            }
            for name, tensor in taken.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            self._began.record(self._stream)
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RunnerError(f"the engine did not execute inputs of shape {shape}")
            self._ended.record(self._stream)
            host = {name: tensor.float().cpu() for name, tensor in taken.items()}
            self._stream.synchronize()
            self.device_ms = self._began.elapsed_time(self._ended)
        return {name: tensor.numpy() for name, tensor in host.items()}

    def profile_with(self, profiler: types.IProfiler, trt: TensorRt) -> str:
        """Tell ``profiler`` the time of every layer from now on.

        Returns:
            What the inspector says of these layers, JSON.
        """
        self._context.profiler = profiler
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the context, then the engine that it belongs to."""
        self._context = None
        self._engine = None

    def _choose_profile(self, shape: Shape) -> None:
        index = matching_profile(self._profiles, shape)
        if index != self._profile:
            self._context.set_optimization_profile_async(index, self._stream.cuda_stream)
            self._profile = index


def profile_range(profile: Mapping[str, Mapping[str, list[int]]]) -> tuple[Shape, Shape]:
    """Smallest and largest shape (batch, sequence) of a profile of `engine.json`."""
    shapes = next(iter(profile.values()))
    smallest, largest = shapes["min"], shapes["max"]
    return (smallest[0], smallest[1]), (largest[0], largest[1])


def matching_profile(profiles: list[tuple[Shape, Shape]], shape: Shape) -> int:
    """Index of the smallest profile that takes ``shape``.

    Raises:
        RunnerError: None does; names the shapes that are allowed.
    """
    fitting = [
        (largest[0] * largest[1], index)
        for index, (smallest, largest) in enumerate(profiles)
        if all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        )
    ]
    if not fitting:
        allowed = ", ".join(f"{_text(low)} to {_text(high)}" for low, high in profiles)
        raise RunnerError(
            f"inputs have shape {_text(shape)}, but the engine takes {allowed}; build it again "
            "with other --batch-size and --seq-len or --buckets"
        )
    return min(fitting)[1]


def _text(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _tensors(trt: TensorRt, engine: types.ICudaEngine) -> EngineTensors:
    inputs: dict[str, torch.dtype] = {}
    outputs: dict[str, torch.dtype] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs)[name] = _torch_dtype(trt, engine.get_tensor_dtype(name))
    return EngineTensors(inputs=inputs, outputs=outputs)


def _torch_dtype(trt: TensorRt, dtype: types.DataType) -> torch.dtype:
    known = {
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT32: torch.int32,
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
    }
    if dtype not in known:
        raise RunnerError(
            f"the engine has a tensor of type {dtype}, allowed: {', '.join(map(str, known))}"
        )
    return known[dtype]
