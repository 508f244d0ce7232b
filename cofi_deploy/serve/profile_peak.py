"""What this machine reaches at matrix products in a runtime: the floor under every part's time.

One ONNX graph, a square product with constant weights in the numbers of the artifact, is run in
the runtime itself. The fastest of several runs and sizes counts.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cofi_deploy.openvino_core import openvino_core

SIZES = (512, 1024, 1536)

_RUNS = 5
_OPSET = 17
_IR_VERSION = 8  # of that opset

Array = npt.NDArray[Any]


@functools.cache
def peak_gflops(
    runtime: str, precision: str, threads: int, sizes: tuple[int, ...] = SIZES
) -> float | None:
    """Most floating-point operations per second that square products reach, in 1e9.

    Operations on bytes count like those on floating-point numbers. Measured once a process;
    takes a second.

    Args:
        runtime: ``onnxruntime-cpu`` or ``openvino``; None is returned for others.
        precision: What the artifact computes in. ONNX Runtime computes bf16 in fp32 on the CPU.
        threads: Of one inference.
        sizes: Edges of the matrices.
    """
    if runtime not in _OPENERS:
        return None
    best = 0.0
    for size in sizes:
        x = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        with _OPENERS[runtime](_graph(size, precision, runtime), precision, threads) as call:
            call(x)
            seconds = min(_seconds(call, x) for _ in range(_RUNS))
        best = max(best, 2.0 * size**3 / seconds / 1e9)
    return best


def _graph(size: int, precision: str, runtime: str) -> bytes:
    """``y = x @ W`` of shape (size, size) as a serialized model, with fp32 inputs and outputs."""
    weights = np.random.default_rng(1).uniform(-1.0, 1.0, (size, size)).astype(np.float32)
    nodes: list[onnx.NodeProto]
    constants: list[tuple[str, Array]]
    if precision == "int8":
        nodes, constants = _int8_product(weights)
    elif precision == "fp16" and runtime == "onnxruntime-cpu":
        constants = [("w", weights.astype(np.float16))]
        nodes = [
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["half", "w"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
        ]
    else:
        constants = [("w", weights)]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        initializer=[numpy_helper.from_array(value, name) for name, value in constants],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized


def _int8_product(weights: Array) -> tuple[list[onnx.NodeProto], list[tuple[str, Array]]]:
    """As exports have it: unsigned inputs, signed weights; runtimes merge it into one kernel."""
    size = weights.shape[1]
    constants: list[tuple[str, Array]] = [
        ("w", np.rint(weights * 127).astype(np.int8)),
        ("w_scale", np.full(size, 1 / 127, dtype=np.float32)),
        ("w_zero", np.zeros(size, dtype=np.int8)),
        ("x_scale", np.asarray(8 / 255, dtype=np.float32)),
        ("x_zero", np.asarray(128, dtype=np.uint8)),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "x_scale", "x_zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["numbers"], axis=1),
        helper.make_node("MatMul", ["rounded", "numbers"], ["y"]),
    ]
    return nodes, constants


@contextlib.contextmanager
def _open_onnxruntime(model: bytes, _: str, threads: int) -> Iterator[Callable[[Array], object]]:
    import onnxruntime as ort  # noqa: PLC0415 - only where it is profiled

    from cofi_deploy.serve.runner_onnxruntime import session_options  # noqa: PLC0415

    session = ort.InferenceSession(
        model, session_options(threads), providers=["CPUExecutionProvider"]
    )
    yield lambda x: session.run(None, {"x": x})


@contextlib.contextmanager
def _open_openvino(
    model: bytes, precision: str, threads: int
) -> Iterator[Callable[[Array], object]]:
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    core = openvino_core()
    compiled = core.compile_model(core.read_model(model=model), "CPU", config)
    requests = [compiled.create_infer_request()]
    try:
        yield lambda x: requests[0].infer({"x": x}, share_inputs=True)
    finally:
        requests.clear()  # before the model that it is of


_OPENERS = {"onnxruntime-cpu": _open_onnxruntime, "openvino": _open_openvino}


def _seconds(call: Callable[[Array], object], x: Array) -> float:
    start = time.perf_counter_ns()
    call(x)
    return (time.perf_counter_ns() - start) / 1e9
