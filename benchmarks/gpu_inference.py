"""Latency of the paper's structures on one device: PyTorch with CUDA graphs, and other runtimes.

In: structures and operating points. Out: rows with percentiles, and speedups over the dense model
that was timed in turn with them. A call has what a server's has: the inputs are copied to the
device, the answer is copied back and waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import source_tree  # noqa: F401 - makes the tree below importable
import torch
from paper_archs import published, random_model, write_model
from torch import Tensor, nn

from cofi_deploy.arch import Arch
from cofi_deploy.serve.inputs import InputLimits, random_inputs
from cofi_deploy.serve.intervals import percentiles, ratio_of_medians, too_wide
from cofi_deploy.serve.latency import (
    OperatingPoint,
    Samples,
    Schedule,
    time_interleaved,
)

Inputs = Mapping[str, npt.NDArray[Any]]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BASELINE = "dense"
_MIN_ROUNDS = 10
_WARMUP_CALLS = 3


def torch_rows(
    archs: Mapping[str, Arch],
    precision: str,
    device: torch.device,
    *,
    points: Sequence[str],
    seconds: float,
) -> list[dict[str, Any]]:
    """PyTorch: one CUDA graph for each model and shape; on a CPU the plain call.

    Args:
        archs: The dense model first.
        precision: Of weights and activations: a key of `DTYPES`.
        device: Where.
        points: `<batch>x<length>`.
        seconds: Of timing at each point.
    """
    rows = []
    for point in map(OperatingPoint.parse, points):
        calls: dict[str, Callable[[], None]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for name, arch in archs.items():
            inputs = _inputs(arch, point)
            calls[name], facts[name] = _torch_call(arch, inputs, DTYPES[precision], device)
        shared = {"runtime": "torch", "precision": precision, "device": device.type}
        rows += _rows(calls, archs, point, seconds, {n: {**shared, **facts[n]} for n in archs})
    return rows


def runtime_rows(
    archs: Mapping[str, Arch],
    runtime: str,
    precision: str,
    *,
    points: Sequence[str],
    seconds: float,
    folder: Path,
) -> list[dict[str, Any]]:
    """Another runtime, on its own export of each structure.

    Args:
        archs: The dense model first.
        runtime: `onnxruntime-cuda`, `onnxruntime-cpu` or `tensorrt`.
        precision: `fp32` or `fp16`.
        points: `<batch>x<length>`.
        seconds: Of timing at each point.
        folder: Exports are kept here, for the parts that come later.
    """
    from cofi_deploy.serve.runner import open_runner  # noqa: PLC0415 - as late as the exports

    shapes = [_shape(OperatingPoint.parse(point)) for point in points]
    export = partial(_export, runtime=runtime, precision=precision, shapes=shapes, folder=folder)
    rows = []
    with contextlib.ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(export(name, arch), runtime, threads=1))
            for name, arch in archs.items()
        }
        for point in map(OperatingPoint.parse, points):
            calls = {
                name: runner.bind(_inputs(archs[name], point)) for name, runner in runners.items()
            }
            facts = {
                name: {"runtime": runtime, "precision": runner.precision, "device": runner.device}
                for name, runner in runners.items()
            }
            rows += _rows(calls, archs, point, seconds, facts)
    return rows


def _inputs(arch: Arch, point: OperatingPoint) -> Inputs:
    return random_inputs(InputLimits.from_arch(arch), *_shape(point), seed=0)


def _shape(point: OperatingPoint) -> tuple[int, int]:
    """Batch and length."""
    if not isinstance(point.seq_len, int):
        raise SystemExit(f"point is {str(point)!r}, allowed: BATCHxLENGTH; there is no task here")
    return point.batch_size, point.seq_len


def _torch_call(
    arch: Arch, inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], None], dict[str, Any]]:
    """What is timed, and what the row says beside: parity with fp32, and whether it is a graph."""
    model = random_model(arch).to(device)
    host = {name: torch.from_numpy(array) for name, array in inputs.items()}
    on_gpu = device.type == "cuda"
    if on_gpu:
        host = {name: tensor.pin_memory() for name, tensor in host.items()}
    static = {name: tensor.to(device) for name, tensor in host.items()}
    with torch.inference_mode():
        reference = model.outputs(static)["logits"].float().cpu()
    nn.Module.to(model, dtype)
    run, is_graph = _graphed(model, static) if on_gpu else (_eager(model, static), False)

    def answer() -> Tensor:
        for name, tensor in host.items():
            static[name].copy_(tensor, non_blocking=True)
        return run().float().cpu()  # waits for the device

    def call() -> None:
        with torch.inference_mode():
            answer()

    with torch.inference_mode():
        difference = float((answer() - reference).abs().max())
    return call, {"max_abs_logit_diff": difference, "cuda_graph": is_graph}


def _eager(model: nn.Module, static: dict[str, Tensor]) -> Callable[[], Tensor]:
    return lambda: model.outputs(static)["logits"]


def _graphed(model: nn.Module, static: dict[str, Tensor]) -> tuple[Callable[[], Tensor], bool]:
    """The model as one CUDA graph; as it is where it cannot be captured, which the row says."""
    run = _eager(model, static)
    try:
        with torch.inference_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # lets libraries choose and allocate before capture
                for _ in range(_WARMUP_CALLS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = run()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"no CUDA graph: {str(error).splitlines()[0]}")
        torch.cuda.synchronize()
        return run, False

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay, True


def _export(
    name: str,
    arch: Arch,
    *,
    runtime: str,
    precision: str,
    shapes: Sequence[tuple[int, int]],
    folder: Path,
) -> Path:
    """The artifact of a structure, made once; an engine is made for these shapes."""
    model = folder / name
    if not model.is_dir():
        write_model(model, arch)
    export_format = "trt" if runtime == "tensorrt" else "onnx"
    output = folder / f"{name}-{export_format}-{precision}"
    if output.is_dir():
        return output
    if export_format == "onnx":
        from cofi_deploy.export.onnx import export_onnx  # noqa: PLC0415 - needs onnxruntime

        return export_onnx(model, output, precision=precision)
    from cofi_deploy.export.engine_options import EngineOptions  # noqa: PLC0415
    from cofi_deploy.export.tensorrt import export_tensorrt  # noqa: PLC0415

    batches, lengths = zip(*shapes, strict=True)
    return export_tensorrt(
        model,
        output,
        batch_size=(min(batches), max(batches), max(batches)),
        seq_len=(min(lengths), max(lengths), max(lengths)),
        precision=precision,
        options=EngineOptions(flavour="tensorrt"),
    )


def _rows(
    calls: Mapping[str, Callable[[], None]],
    archs: Mapping[str, Arch],
    point: OperatingPoint,
    seconds: float,
    facts: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    schedule = Schedule(min_repeats=_MIN_ROUNDS, max_seconds=seconds)
    samples = time_interleaved(calls, schedule)
    for name in calls:
        row = {
            "model": name,
            "family": archs[name].family,
            "realized_sparsity": archs[name].sparsity,
            **facts[name],
            "batch_size": point.batch_size,
            "seq_len": point.seq_len,
            **percentiles(samples, name, seed=0),
            "sequences_per_s": point.batch_size * 1e3 / float(samples.ms[name].mean()),
            **_speedup(samples, name),
            **published(name, archs[name]),
        }
        busy = None if samples.load is None else samples.load.too_busy(threads=1)
        yield {**row, "noise": busy} if busy else row


def _speedup(samples: Samples, name: str) -> dict[str, float | None]:
    """Over dense; null where its interval is too wide, which then stays."""
    if name == BASELINE or BASELINE not in samples.ms:
        return {}
    ratio = ratio_of_medians(samples, BASELINE, name, seed=0)
    value = ratio.value if too_wide(ratio) is None else None
    return {"speedup": value, "speedup_low": ratio.low, "speedup_high": ratio.high}
