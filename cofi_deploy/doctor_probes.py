"""What `doctor` looks for among the runtimes: each is imported and made to do a little work.

A probe takes nothing and returns a `Finding`; whatever fails on the way becomes its detail. The
rest of the report (processor, devices, servers, network) is in `doctor.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Literal

from cofi_deploy.openvino_core import openvino_core

State = Literal["ready", "missing", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for.

    ``remedy`` is a shell line, or empty where nothing needs doing or nothing can be installed.
    """

    name: str
    state: State
    version: str = ""
    detail: str = ""
    remedy: str = ""


def runtime_findings(*, has_gpu: bool) -> list[Finding]:
    """Every runtime that an artifact can be built for or run in."""
    return [
        probe("torch", "torch", _torch, remedy="pip install 'torch>=2.6,<2.14'"),
        *_onnxruntime(has_gpu=has_gpu),
        probe("openvino", "openvino", _openvino, remedy=_extra("openvino")),
        _tensorrt(has_gpu=has_gpu),
        _tensorrt_rtx(has_gpu=has_gpu),
        probe("triton-client", "tritonclient", _triton_client, remedy=_extra("triton")),
    ]


def probe(
    name: str,
    module: str,
    look: Callable[[ModuleType], str],
    *,
    remedy: str = "",
    version: str = "",
    absent: str = "not installed",
) -> Finding:
    """Import ``module`` and let ``look`` describe it; whatever fails is the finding."""
    spec = importlib.util.find_spec(module)
    # A package without a file is a folder that type stubs left.
    if spec is None or spec.origin is None:
        return Finding(name=name, state="missing", detail=absent, remedy=remedy)
    version = version or version_of(module)
    try:
        detail = look(importlib.import_module(module))
    except Exception as error:  # noqa: BLE001 - libraries fail in ways of their own; we report them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(name=name, state="broken", version=version, detail=reason, remedy=remedy)
    return Finding(name=name, state="ready", version=version, detail=detail)


def version_of(distribution: str) -> str:
    """Version of an installed distribution; empty when it is absent."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _torch(torch: ModuleType) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
        reasons = "".join(f"; {str(warning.message).splitlines()[0]}" for warning in caught)
        return f"{build}, no CUDA device, {torch.get_num_threads()} threads{reasons}"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"


def _onnxruntime(*, has_gpu: bool) -> list[Finding]:
    """The CPU provider, and CUDA where there is a GPU or the package for one."""
    cpu, gpu = version_of("onnxruntime"), version_of("onnxruntime-gpu")
    replace = (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu>=1.20,<2'"
    )
    found = [
        probe(
            "onnxruntime-cpu",
            "onnxruntime",
            lambda ort: _open_session(ort, "CPUExecutionProvider"),
            remedy="pip install --force-reinstall 'onnxruntime>=1.20,<2'",
            version=cpu or gpu,
        )
    ]
    if cpu and gpu:
        both = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other's files"
        found.append(Finding(name="onnxruntime-cuda", state="broken", detail=both, remedy=replace))
    elif gpu or has_gpu:
        found.append(
            probe(
                "onnxruntime-cuda",
                "onnxruntime",
                lambda ort: _open_session(ort, "CUDAExecutionProvider"),
                remedy=replace if not gpu else "",
                version=gpu,
            )
        )
    return found


def _open_session(ort: ModuleType, provider: str) -> str:
    """Run a one-node model on ``provider`` alone, and name every provider of this build.

    Raises:
        RuntimeError: The provider is not in this build, or did not start.
    """
    available = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    if provider.removesuffix("ExecutionProvider") not in available:
        raise RuntimeError(f"this build of onnxruntime has only: {', '.join(available)}")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(_one_node_model(), options, providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError(f"{provider} did not start; see the CUDA version that it needs")
    session.run(None, {"x": [1.0]})
    return f"opened; providers: {', '.join(available)}"


def _one_node_model() -> bytes:
    from onnx import TensorProto, helper  # noqa: PLC0415 - doctor works without onnx

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "doctor", [x], [y])
    opset = helper.make_opsetid("", 17)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model


def _openvino(_: ModuleType) -> str:
    core = openvino_core()
    devices = [
        f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME')})"
        for device in core.available_devices
    ]
    return ", ".join(devices)


def _tensorrt(*, has_gpu: bool) -> Finding:
    if has_gpu:
        able = "builds and runs engines"
        return probe("tensorrt", "tensorrt", lambda _: able, remedy=_extra("tensorrt"))
    return probe(
        "tensorrt",
        "tensorrt",
        lambda _: "installed, but it builds and runs engines only where there is a GPU",
        absent="not installed; it needs an NVIDIA GPU, and there is none here",
    )


def _tensorrt_rtx(*, has_gpu: bool) -> Finding:
    module = "tensorrt_rtx" if importlib.util.find_spec("tensorrt_rtx") else "tensorrt_rtx_bindings"

    def open_builder(trt: ModuleType) -> str:
        if not trt.Builder(trt.Logger(trt.Logger.ERROR)):
            raise RuntimeError("its builder does not start")
        return "builds and runs engines" if has_gpu else "builds engines; running them takes a GPU"

    return probe(
        "tensorrt-rtx",
        module,
        open_builder,
        remedy=_extra("tensorrt-rtx"),
        version=version_of("tensorrt-rtx-cu13-bindings") or version_of("tensorrt-rtx"),
    )


def _triton_client(_: ModuleType) -> str:
    importlib.import_module("tritonclient.grpc.model_config_pb2")
    return "writes model repositories, calls servers"


def _extra(name: str) -> str:
    return f"pip install 'cofi-deploy[{name}]'"
