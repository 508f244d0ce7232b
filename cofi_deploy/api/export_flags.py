"""Flags of `export` that belong to one format or to the search, and those that do not go together.

In: what was typed. Out: a sentence for the first thing that says nothing about this export: it is
refused, not ignored. `exporting.py` calls it before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from cofi_deploy.errors import UsageError
from cofi_deploy.export.engine_options import EngineOptions
from cofi_deploy.export.opsets import DEFAULT_OPSETS
from cofi_deploy.pieces import ONE_TEXT

Triple = tuple[int, int, int]


class TuningFlags(TypedDict, total=False):
    """Of a search for the fastest artifact.

    Attributes:
        tune: Try several graphs and ways of opening them, and keep the fastest that is right.
        target: Where it is tuned for, such as `onnxruntime-cpu@1x128`.
        max_drop: Points of the metric that the tuned artifact may lose on held-out text; by
            default as much as any lossy export.
    """

    tune: bool
    target: str | None
    max_drop: float | None


class TritonFlags(TypedDict, total=False):
    """Of a model repository.

    Attributes:
        backend: By default onnxruntime, or as in the version before.
        repository: One to add the model to, as the next version of a known ``name``; instead of
            ``output``.
        name: Of the model on the server; by default made from the run.
        url: HTTP address of the server that runs from ``repository``; it must load the version,
            else the version is taken back.
        kserve: Also write Kubernetes manifests, to `<repository>-kubernetes` beside it.
        plans: Engine directories, for backend tensorrt.
        settings: More of `TritonOptions`, by name. What is not given is as in the version before,
            where there is one.
    """

    backend: str | None
    repository: Path | None
    name: str | None
    url: str | None
    kserve: bool
    plans: tuple[Path, ...]
    settings: Mapping[str, Any] | None


class EngineFlags(TypedDict, total=False):
    """How a TensorRT engine is built, see `EngineOptions`.

    Attributes:
        weights_into: A refittable engine that is given the weights instead.
    """

    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"]
    buckets: tuple[int, ...] | None
    builder_level: int | None
    compute_capabilities: tuple[str, ...]
    hardware: Literal["same", "ampere+", "same-capability"]
    version_compatible: bool
    refit: bool
    strip: bool
    weights_into: Path | None


class ExportFlags(TuningFlags, TritonFlags, EngineFlags, total=False):
    """All of them."""


# What was typed by other names than those of the arguments.
_NAMES = {"plans": "plan", "settings": "set", "compute_capabilities": "compute-capability"}


def check_triton(format: str, flags: ExportFlags, output: Path | None) -> None:
    """Refuse flags of a model repository where none is written, and those that contradict."""
    given = [_flag(name) for name in TritonFlags.__annotations__ if flags.get(name)]
    if format != "triton" and given:
        raise UsageError(f"{given[0]} is for --format triton, got --format {format}; leave it out")
    if output is not None and "--repository" in given:
        raise UsageError(
            "give --output for a repository of its own, or --repository to add to one; not both"
        )
    if "--url" in given and "--repository" not in given:
        raise UsageError("--url names the server of a --repository, and none is given")


def engine_options(
    format: str, flags: ExportFlags, built_before: Mapping[str, Any]
) -> tuple[EngineOptions, Path | None]:
    """The builder's options, and the engine that is only given new weights.

    Args:
        format: Of the export.
        flags: What was typed.
        built_before: More flags that a finished engine has answered already, with their values.

    Raises:
        UsageError: Flags of an engine where none is built, and those that contradict.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in flags.items()
        if name in EngineFlags.__annotations__ and value is not None
    }
    into = given.pop("weights_into", None)
    options = EngineOptions(**given)
    named = [_flag(name) for name in options.to_json()]
    if options.flavour != "auto":
        named.insert(0, "--flavour")
    settled = [*named, *(flag for flag, value in built_before.items() if value)]
    if format == "trt" and into is not None and settled:
        raise UsageError(f"--weights-into keeps how the engine was built; leave {settled[0]} out")
    if format != "trt" and (named or into is not None):
        flag = (named or ["--weights-into"])[0]
        raise UsageError(f"{flag} is for --format trt, got --format {format}; leave it out")
    if options.buckets and built_before["--seq-len"]:
        raise UsageError("give --buckets for several profiles, or --seq-len for one; not both")
    return options, into


def check_numbers(
    format: str,
    precision: str,
    *,
    shrink_embeddings: bool,
    calibration: Path | None,
    is_needed: bool,
) -> None:
    """Refuse precisions and cut vocabularies that a format has not, and text without a use.

    Args:
        format: Of the export.
        precision: Of its numbers.
        shrink_embeddings: Whether a vocabulary is to be cut.
        calibration: Text.
        is_needed: Whether the export has a use for text.
    """
    onnx_first = (
        "cofi-deploy export [MODEL] --format onnx with it, then "
        "cofi-deploy export <that directory> --format triton"
    )
    also = f"; run: {onnx_first}" if format == "triton" else ""
    if format == "triton" and precision != "fp32":
        raise UsageError(f"--precision {precision} is for the model itself; run: {onnx_first}")
    if format == "triton" and calibration is not None:
        raise UsageError(f"--calibration is for --format onnx, openvino and trt, got triton{also}")
    if format in {"trt", "triton"} and shrink_embeddings:
        raise UsageError(
            f"--shrink-embeddings is for --format onnx and openvino, got {format}{also}"
        )
    if calibration is not None and not is_needed:
        raise UsageError(
            "--calibration is what lossy numbers are fitted to and judged on; give a --precision "
            "below fp32, --shrink-embeddings or --tune, or leave it out"
        )


def check_opset(format: str, opset: int | None) -> None:
    """Refuse an operator set that would be ignored."""
    if format == "onnx" or opset is None or opset == DEFAULT_OPSETS[format]:
        return
    onnx_first = (
        f"; run: cofi-deploy export [MODEL] --format onnx --opset {opset}, then "
        "cofi-deploy export <that directory> --format triton"
    )
    way_on = onnx_first if format == "triton" else "; leave it out"
    raise UsageError(f"--opset {opset} is for --format onnx, got --format {format}{way_on}")


def check_shapes(format: str, batch_size: Triple | None, seq_len: Triple | None) -> None:
    """Refuse shapes that an ONNX graph does not have, and half of OpenVINO's one shape."""
    if format == "onnx" and seq_len is not None:
        raise UsageError(
            "--seq-len is for --format openvino, trt and triton; an ONNX graph takes every length, "
            "leave it out"
        )
    if format == "onnx" and batch_size is not None and batch_size != ONE_TEXT:
        raise UsageError(
            "an ONNX graph takes every batch, or one text at a time: give --batch-size 1, or leave "
            "it out"
        )
    is_given = batch_size is not None or seq_len is not None
    if format == "openvino" and is_given and fixed_shape(batch_size, seq_len) is None:
        raise UsageError(
            "an OpenVINO graph takes every shape, or one: give --batch-size and --seq-len with one "
            "number each, such as --batch-size 1 --seq-len 128, or neither"
        )


def fixed_shape(batch_size: Triple | None, seq_len: Triple | None) -> tuple[int, int] | None:
    """A static shape where the least and the largest are the same."""
    if batch_size is None or seq_len is None:
        return None
    if batch_size[0] != batch_size[2] or seq_len[0] != seq_len[2]:
        return None
    return batch_size[0], seq_len[0]


def _flag(name: str) -> str:
    """The flag of an argument, as it was typed."""
    return "--" + _NAMES.get(name, name.replace("_", "-"))
