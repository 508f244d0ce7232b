"""How an engine is built: what `export --format trt` was asked for beside model and precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from cofi_deploy.engines import FLAVOURS, Flavour, cuda_device, import_tensorrt
from cofi_deploy.errors import ConfigError, EnvironmentProblem

Triple = tuple[int, int, int]

BUILDER_LEVELS = range(6)

# Which GPUs beside its own a `tensorrt` engine runs on.
Hardware = Literal["same", "ampere+", "same-capability"]
HARDWARE: tuple[Hardware, ...] = get_args(Hardware)

# Found by trying, with TensorRT-RTX 1.7: "FP32 GEMM is not supported" there, and the head is fp32.
_TURING = "7.5"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings of the builder; None and empty mean the library's default.

    Attributes:
        flavour: ``auto`` takes TensorRT where it and a GPU are present, else TensorRT-RTX.
        buckets: Longest input in tokens of every optimization profile, in place of one profile.
        builder_level: 0 to 5: how long the builder may search for faster kernels.
        compute_capabilities: GPUs that TensorRT-RTX compiles for, such as "8.9".
        hardware: GPUs that a TensorRT engine runs on beside its own.
        version_compatible: Runs on newer versions of the library, too.
        refit: The weights can be replaced later by others of the same shapes.
        strip: Refittable, and the plan is stored without its weights.
    """

    flavour: Flavour | Literal["auto"] = "auto"
    buckets: tuple[int, ...] = ()
    builder_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware: Hardware = "same"
    version_compatible: bool = False
    refit: bool = False
    strip: bool = False

    def problems(self) -> Iterator[str]:
        """What is out of range, one sentence for each."""
        if self.flavour != "auto" and self.flavour not in FLAVOURS:
            yield f"flavour is {self.flavour!r}, allowed: auto, {', '.join(FLAVOURS)}"
        if any(length < 1 for length in self.buckets):
            yield f"buckets has {min(self.buckets)}, allowed: lengths of 1 token or more"
        if self.builder_level is not None and self.builder_level not in BUILDER_LEVELS:
            yield f"builder_level is {self.builder_level}, allowed: 0 to {BUILDER_LEVELS[-1]}"
        if self.hardware not in HARDWARE:
            yield f"hardware is {self.hardware!r}, allowed: {', '.join(HARDWARE)}"

    def to_json(self) -> dict[str, Any]:
        """What was asked for beyond the defaults, for `engine.json` and the rebuild command."""
        plain = EngineOptions()
        given = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
            if name != "flavour" and value != getattr(plain, name)
        }


def check_flavour(options: EngineOptions, flavour: Flavour) -> None:
    """Refuse what a flavour has not, before the work starts.

    Raises:
        MissingDependencyError: The library is not installed.
        ConfigError: An option that this flavour has not; all problems at once.
        EnvironmentProblem: What is asked for needs a GPU, and the driver shows none.
    """
    version = import_tensorrt(flavour).__version__
    problems = list(_rtx_lacks(options) if flavour == "tensorrt-rtx" else _tensorrt_lacks(options))
    if problems:
        raise ConfigError(f"{flavour} {version}: {'; '.join(problems)}")
    if cuda_device() is not None:
        return
    if flavour == "tensorrt":
        raise EnvironmentProblem(
            "flavour 'tensorrt' builds on the GPU that will run the engine, but the CUDA driver "
            "shows none; run this on that machine, or use flavour 'tensorrt-rtx'"
        )
    if options.refit or options.strip:
        flag = "--strip" if options.strip else "--refit"
        raise EnvironmentProblem(
            f"{flag} needs an NVIDIA GPU: tensorrt-rtx {version} compiles ahead of time without "
            "one, except for refittable engines, which its builder makes on a device; run this on "
            f"such a machine, or leave {flag} out"
        )


def _rtx_lacks(options: EngineOptions) -> Iterator[str]:
    if options.version_compatible:
        yield (
            "--version-compatible needs the lean runtime (libnvinfer_lean), which TensorRT-RTX "
            "does not ship; build again after an upgrade, or use --flavour tensorrt"
        )
    if options.hardware != "same":
        yield (
            f"--hardware {options.hardware} is unsupported in TensorRT-RTX, whose engines are for "
            "every --compute-capability that is named; name them instead"
        )
    known = rtx_capabilities()
    for capability in options.compute_capabilities:
        if capability == _TURING:
            yield (
                f"--compute-capability is {_TURING} (Turing), where TensorRT-RTX has no matrix "
                f"products in fp32, which the head of a model needs, allowed: {', '.join(known)}"
            )
        elif capability not in known:
            yield f"--compute-capability is {capability!r}, allowed: {', '.join(known)}"


def _tensorrt_lacks(options: EngineOptions) -> Iterator[str]:
    if options.compute_capabilities:
        yield (
            "--compute-capability is for TensorRT-RTX; TensorRT builds for the GPU at hand, and "
            "with --hardware for others"
        )


def rtx_capabilities() -> dict[str, Any]:
    """What TensorRT-RTX can build a model for: {"8.9": ComputeCapability.SM89}.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    # Not in TensorRT, hence not in the published types.
    rtx: Any = import_tensorrt("tensorrt-rtx")
    return {
        dotted(name): member
        for name, member in rtx.ComputeCapability.__members__.items()
        if name.startswith("SM") and dotted(name) != _TURING
    }


def dotted(name: str) -> str:
    """``SM89`` to ``8.9``, ``SM120`` to ``12.0``."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"
