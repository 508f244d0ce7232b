"""Does a configuration fit the model files in a version folder?

Comes in: a configuration, and a version folder with an ONNX graph, an OpenVINO graph or TensorRT
engines. Goes out: sentences about names, types, dims and profiles that differ. What an engine takes
stands in the `export.json` of its version, since the engine itself opens only on its GPU.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from google.protobuf.message import DecodeError

from cofi_deploy.arch import Arch
from cofi_deploy.errors import CheckpointError, RepositoryError
from cofi_deploy.exports import ExportManifest
from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.triton_repository.schema import ModelConfig, leaves_folder, type_name

if TYPE_CHECKING:
    import onnx

ONNX_FILE, IR_FILE = "model.onnx", "model.xml"
ARCH_KEY = "cofi_deploy.arch"  # in the metadata of an ONNX file

_ONNX_TYPES = {
    "INT64": "TYPE_INT64",
    "INT32": "TYPE_INT32",
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
}
_IR_TYPES = {"I64": "TYPE_INT64", "I32": "TYPE_INT32", "FP32": "TYPE_FP32", "FP16": "TYPE_FP16"}
_OTHER_TYPE = "a type that is not checked"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a model file; -1 is an axis of any size."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What a model file takes and gives."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arch: str | None = None  # what the file says about itself, as JSON


class Version:
    """One version folder of the encoder; its graphs are read once, whichever backends run them."""

    def __init__(self, directory: Path, manifest: ExportManifest) -> None:
        """Take a folder whose files have been compared with their checksums."""
        self.directory = directory
        self.manifest = manifest

    @functools.cached_property
    def onnx(self) -> Graph:
        """What ONNX Runtime, our Python code and the engines take and give."""
        return onnx_graph(self.directory / ONNX_FILE)

    @functools.cached_property
    def ir(self) -> Graph:
        """What OpenVINO takes and gives."""
        return ir_graph(self.directory / IR_FILE)


def version_problems(config: ModelConfig, version: Version) -> Iterator[str]:
    """Where the configuration does not fit one version of the encoder."""
    directory, manifest = version.directory, version.manifest
    files = [config.default_model_filename, *config.cc_model_filenames.values()]
    for file in files:
        if leaves_folder(file):
            yield f"names {file!r}, expected the plain name of a file in {str(directory)!r}"
            return
        if not (directory / file).is_file():
            yield f"names {file!r}, but {str(directory / file)!r} is missing"
            return
    if config.backend == "tensorrt":
        yield from _engine_problems(config, files, manifest)
    yield from _arch_problems(version)
    yield from _graph_problems(config, version.ir if config.backend == "openvino" else version.onnx)
    yield from _length_problems(config, manifest)


def onnx_graph(file: Path) -> Graph:
    """Inputs and outputs of an ONNX file, without its weights.

    Raises:
        RepositoryError: It is missing or no ONNX model.
    """
    import onnx  # noqa: PLC0415 - `doctor` imports this package, and answers at once

    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise RepositoryError(f"{str(file)!r} is no ONNX model: {error}") from error
    return Graph(
        file=file.name,
        inputs=tuple(map(_onnx_tensor, model.graph.input)),
        outputs=tuple(map(_onnx_tensor, model.graph.output)),
        arch=next((prop.value for prop in model.metadata_props if prop.key == ARCH_KEY), None),
    )


def ir_graph(file: Path) -> Graph:
    """Inputs and outputs of an OpenVINO graph.

    Raises:
        RepositoryError: It is missing or no OpenVINO model, or its weights are not beside it.
    """
    try:
        layers = ElementTree.parse(file).getroot().findall("layers/layer")
    except (ElementTree.ParseError, OSError) as error:
        raise RepositoryError(f"{str(file)!r} is no OpenVINO model: {error}") from error
    weights = file.with_suffix(".bin")
    if not layers or not weights.is_file():
        missing = f"{str(weights)!r} is missing" if layers else "it has no layers"
        raise RepositoryError(f"{str(file)!r} is no whole OpenVINO model: {missing}")
    ports = {
        kind: tuple(_ir_tensor(layer) for layer in layers if layer.get("type") == kind)
        for kind in ("Parameter", "Result")
    }
    return Graph(file=file.name, inputs=ports["Parameter"], outputs=ports["Result"])


def _onnx_tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    # A named axis is dynamic; -1 is Triton's word for it.
    return Tensor(
        name=value.name,
        data_type=_ONNX_TYPES.get(_type_name(tensor.elem_type), _OTHER_TYPE),
        shape=tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim),
    )


def _type_name(number: int) -> str:
    from onnx import TensorProto  # noqa: PLC0415 - as in `onnx_graph`

    return TensorProto.DataType.Name(number)


def _ir_tensor(layer: ElementTree.Element) -> Tensor:
    port = next(layer.iter("port"))
    # Writers before 2025 keep the name of an output in the name of its layer alone.
    name = layer.get("output_names") or str(layer.get("name")).split("/sink_port")[0]
    return Tensor(
        name=name,
        data_type=_IR_TYPES.get(str(port.get("precision")), _OTHER_TYPE),
        shape=tuple(int(dim.text or -1) for dim in port.findall("dim")),
    )


def _arch_problems(version: Version) -> Iterator[str]:
    """The graph and the manifest must be about the same model."""
    if version.onnx.arch is None:
        return
    try:
        same = Arch.from_json(json.loads(version.onnx.arch)) == version.manifest.arch
    except (CheckpointError, ValueError, TypeError):  # torn metadata is another Arch
        same = False
    if not same:
        yield (
            f"{str(version.directory / ONNX_FILE)!r} was made from another Arch than the "
            "export.json beside it says; export the model again"
        )


def _graph_problems(config: ModelConfig, graph: Graph) -> Iterator[str]:
    """Names, types and dims of the configuration against those of the graph."""
    for role, told, real in (
        ("input", config.input, graph.inputs),
        ("output", config.output, graph.outputs),
    ):
        tensors = {tensor.name: tensor for tensor in real}
        names = sorted(item.name for item in told)
        if names != sorted(tensors):
            yield f"{role}s are {names}, {graph.file} has {sorted(tensors)}"
            continue
        for item in told:
            for problem in _tensor_problems(item, tensors[item.name], config.max_batch_size):
                yield f"{role} {item.name!r} {problem}"


def _tensor_problems(told: ModelConfig, real: Tensor, max_batch_size: int) -> Iterator[str]:
    if type_name(told.data_type) != real.data_type:
        yield f"has data_type {type_name(told.data_type)}, the graph has {real.data_type}"
    if max_batch_size > 0 and real.shape[0] != -1:
        yield f"cannot be batched: the first axis of the graph is fixed at {real.shape[0]}"
    expected = list(real.shape[1:] if max_batch_size > 0 else real.shape)
    if list(told.dims) != expected:
        yield f"has dims {list(told.dims)}, the graph has {expected}"


def _length_problems(config: ModelConfig, manifest: ExportManifest) -> Iterator[str]:
    """Warm-up must stay within the model's positions."""
    longest = manifest.arch.max_positions
    for sample in config.model_warmup:
        lengths = [item.dims[-1] for item in sample.inputs.values() if item.dims]
        if max(lengths, default=0) > longest:
            yield f"warm-up {sample.name!r} has {max(lengths)} tokens, the model takes {longest}"


def _engine_problems(
    config: ModelConfig, files: Iterable[str], manifest: ExportManifest
) -> Iterator[str]:
    plans = {plan["file"]: plan for plan in manifest.options.get("plans", ())}
    for capability, file in config.cc_model_filenames.items():
        built_for = plans.get(file, {}).get("compute_capability")
        if built_for != capability:
            yield (
                f"cc_model_filenames gives {file!r} to compute capability {capability!r}, it was "
                f"built for {built_for!r}"
            )
    for file in dict.fromkeys(files):
        if file not in plans:
            yield f"names {file!r}, about which {str(manifest.directory)!r} says nothing"
            continue
        profiles = plans[file]["profiles"]
        used = _used_profiles(config, profiles)
        yield from _profile_problems(config, file, profiles)
        yield from _shape_problems(config, file, used)


def _used_profiles(
    config: ModelConfig, profiles: Iterable[Mapping[str, list[int]]]
) -> list[Mapping[str, list[int]]]:
    """The profiles that the instances open; the first one where none is named."""
    numbered = {str(index): profile for index, profile in enumerate(profiles)}
    named = [name for group in config.instance_group for name in group.profile] or ["0"]
    return [numbered[name] for name in dict.fromkeys(named) if name in numbered]


def _profile_problems(
    config: ModelConfig, file: str, profiles: Iterable[Mapping[str, list[int]]]
) -> Iterator[str]:
    known = [str(index) for index, _ in enumerate(profiles)]
    for group in config.instance_group:
        for name in group.profile:
            if name not in known:
                yield f"instance_group names profile {name!r}, {file} has {', '.join(known)}"


def _shape_problems(
    config: ModelConfig, file: str, profiles: Iterable[Mapping[str, list[int]]]
) -> Iterator[str]:
    """Batches that Triton forms, and warm-up, must lie inside the profiles."""
    for profile in profiles:
        smallest, largest = profile["min"][0], profile["max"][0]
        if smallest > 1 or largest < config.max_batch_size:
            yield (
                f"max_batch_size is {config.max_batch_size}, so batches of 1 to "
                f"{config.max_batch_size} come, but {file} takes {smallest} to {largest}"
            )
    shortest = min((profile["min"][1] for profile in profiles), default=1)
    longest = max((profile["max"][1] for profile in profiles), default=1)
    for sample in config.model_warmup:
        for name in INPUT_NAMES:
            length = sample.inputs[name].dims[-1] if name in sample.inputs else shortest
            if not shortest <= length <= longest:
                yield (
                    f"warm-up {sample.name!r} has {length} tokens, {file} takes {shortest} to "
                    f"{longest}"
                )
