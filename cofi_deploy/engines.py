"""`engine.json`: what a TensorRT engine was built for, and whether this machine can run it.

Written by `export/tensorrt.py`, read by the runner that opens `model.plan`. Both flavours,
`tensorrt` (built on the GPU it will run on) and `tensorrt-rtx` (built ahead of time for several),
are found and named here, so that the stages need not import each other.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import ArtifactError, MissingDependencyError, RunnerError
from cofi_deploy.exports import ExportManifest, check_export, rebuild_command

if TYPE_CHECKING:
    from cofi_deploy.tensorrt_api import TensorRt

PLAN_FILE = "model.plan"
ENGINE_FILE = "engine.json"

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

# The metapackage of TensorRT-RTX gives the first name, its bindings alone the second.
_MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}

_SHAPES = ("min", "opt", "max")
_AMPERE = "8.0"

_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute of the driver API
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """The first GPU that the driver shows to this process."""

    name: str
    compute_capability: str  # "8.9"
    driver: str = ""  # version of CUDA that the driver supports, "13.0"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The content of an `engine.json`."""

    flavour: Flavour
    version: str  # of the library that built it
    compute_capabilities: tuple[str, ...]
    gpu: str | None  # name of the GPU it was built on; None when built ahead of time
    precision: str
    # One mapping for each optimization profile: input -> {"min" | "opt" | "max": [batch, length]}.
    profiles: tuple[Mapping[str, Mapping[str, list[int]]], ...]
    onnx_sha256: str
    plan_sha256: str
    options: Mapping[str, Any]  # what was asked of the builder beyond its defaults

    @property
    def is_stripped(self) -> bool:
        """The plan has no weights yet: `export --format trt --weights-into` puts them in."""
        return bool(self.options.get("strip"))


def check_engine(directory: Path) -> EngineRecord:
    """Say whether this machine can run the engine in ``directory``.

    Raises:
        ArtifactError: A file is missing or was changed, or `engine.json` is not ours.
        MissingDependencyError: The library of the engine's flavour is not installed.
        RunnerError: Another library version, no GPU, or a GPU it was not built for; the message
            has the command that rebuilds it.
    """
    manifest = check_export(directory)
    record = read_engine_record(directory)
    _check_plan(manifest, record)
    found = import_tensorrt(record.flavour).__version__
    again = f"rebuild it here: {rebuild_command(manifest)}"
    plan = str(directory / PLAN_FILE)
    if not _is_readable(record, found):
        raise RunnerError(
            f"{plan!r} was built by {record.flavour} {record.version}, but {found} is installed; "
            f"{again}"
        )
    device = cuda_device()
    targets = ", ".join(record.compute_capabilities)
    if record.options.get("hardware") == "ampere+":
        targets = f"{_AMPERE} or newer"
    if device is None:
        raise RunnerError(
            f"{plan!r} needs an NVIDIA GPU of compute capability {targets}, but the CUDA driver "
            "shows none; run it on such a machine, or export --format onnx for the CPU"
        )
    if not _is_target(record, device):
        raise RunnerError(
            f"{plan!r} was built for compute capability {targets}, but {device.name} has "
            f"{device.compute_capability}; {again}"
        )
    return record


def _check_plan(manifest: ExportManifest, record: EngineRecord) -> None:
    """The record must be of this plan and no other, whatever the list of checksums says."""
    got = manifest.files.get(PLAN_FILE)
    if got != record.plan_sha256:
        raise ArtifactError(
            f"{str(manifest.directory / ENGINE_FILE)!r} describes a plan of sha256 "
            f"{record.plan_sha256[:12]}, but {PLAN_FILE!r} has {str(got)[:12]}; export it again: "
            f"{rebuild_command(manifest)}"
        )


def _is_readable(record: EngineRecord, installed: str) -> bool:
    """An engine is for its own version alone, or where it was asked for that, for newer ones."""
    if record.options.get("version_compatible"):
        return _numbers(installed) >= _numbers(record.version)
    return installed == record.version


def _is_target(record: EngineRecord, device: CudaDevice) -> bool:
    if record.options.get("hardware") == "ampere+":
        return _numbers(device.compute_capability) >= _numbers(_AMPERE)
    return device.compute_capability in record.compute_capabilities


def _numbers(version: str) -> list[int]:
    """``10.14.1`` as numbers, to be compared; what is not a number is left out."""
    return [int(part) for part in re.findall(r"\d+", version)]


def read_engine_record(directory: Path) -> EngineRecord:
    """Read `engine.json` without looking at the machine.

    Raises:
        ArtifactError: Missing, of a newer schema, or with a missing or impossible entry.
    """
    path = directory / ENGINE_FILE
    data = read_json(path)
    if data.get("flavour") not in FLAVOURS:
        raise ArtifactError(
            f"{str(path)!r} names flavour {data.get('flavour')!r}, allowed: {', '.join(FLAVOURS)}"
        )
    try:
        return EngineRecord(
            flavour=data["flavour"],
            version=data["version"],
            compute_capabilities=tuple(data["compute_capabilities"]),
            gpu=data["gpu"],
            precision=data["precision"],
            profiles=tuple(_profile(profile) for profile in data["profiles"]),
            onnx_sha256=data["onnx_sha256"],
            plan_sha256=data["plan_sha256"],
            options=dict(data.get("options", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{str(path)!r} has a missing or unknown entry: {error}; export the model again"
        ) from error


def _profile(data: Mapping[str, Any]) -> Mapping[str, Mapping[str, list[int]]]:
    """One profile, refused where it is not shapes (batch, length) of one input or more."""
    if not data:
        raise ValueError("a profile without inputs")
    return {name: {key: _shape(shapes[key]) for key in _SHAPES} for name, shapes in data.items()}


def _shape(sizes: Any) -> list[int]:
    batch, length = sizes
    return [int(batch), int(length)]


def import_tensorrt(flavour: Flavour) -> TensorRt:
    """The Python module of a flavour.

    Raises:
        MissingDependencyError: It is not installed.
    """
    for name in _MODULES[flavour]:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        # Type stubs alone leave a folder of that name, which Python imports as an empty package.
        if hasattr(module, "Builder"):
            return cast("TensorRt", module)
    raise MissingDependencyError(flavour, flavour, f"an engine of flavour {flavour!r}")


def cuda_device() -> CudaDevice | None:
    """Ask the driver for the first visible GPU; None without a driver or without a GPU.

    The driver is asked directly, since PyTorch may well be a build without CUDA.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), device)
    major, minor = (
        _attribute(driver, attribute, device)
        for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR)
    )
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return CudaDevice(
        name=name.value.decode(),
        compute_capability=f"{major}.{minor}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _attribute(driver: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
