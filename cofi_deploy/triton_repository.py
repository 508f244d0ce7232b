"""Would a Triton server load this model repository, and serve it as meant?

Triton's protobuf schema catches unknown fields and wrong types; it takes a wrong backend, a
negative batch size or shapes of another model. Those are checked here, against the files. Used
when a repository is written (`export/triton.py`) and before a server is started (`serve`).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import onnx
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from onnx import TensorProto

from cofi_deploy.artifacts import check_inside
from cofi_deploy.errors import ArtifactError, MissingDependencyError, RepositoryError, did_you_mean

CONFIG_FILE = "config.pbtxt"
BACKENDS = ("onnxruntime", "tensorrt", "openvino", "python")

ModelConfig: TypeAlias = Any  # a message of tritonclient's generated schema, without types

_ONNX_TYPES: dict[int, str] = {
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.FLOAT16: "TYPE_FP16",
}
_ITEM_BYTES = {"TYPE_INT64": 8, "TYPE_INT32": 4, "TYPE_FP32": 4, "TYPE_FP16": 2}


def check_repository(repository: Path) -> tuple[str, ...]:
    """Check every model of a repository.

    Returns:
        Names of the models.

    Raises:
        RepositoryError: The first problem: file, what it says, what it should say.
        MissingDependencyError: tritonclient is not installed.
    """
    if not repository.is_dir():
        raise RepositoryError(f"{str(repository)!r} is not a directory; expected a repository")
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    if not folders:
        raise RepositoryError(
            f"{str(repository)!r} holds no model folder; run: cofi-deploy export --format triton"
        )
    for folder in folders:
        _check_model(folder)
    return tuple(folder.name for folder in folders)


def read_config(path: Path) -> ModelConfig:
    """Parse a `config.pbtxt` by Triton's schema.

    Raises:
        RepositoryError: Missing, or not what the schema allows; line and column named.
        MissingDependencyError: tritonclient is not installed.
    """
    schema = import_model_config()
    if not path.is_file():
        raise RepositoryError(f"{str(path)!r} is missing; every model needs one")
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{str(path)!r} is no Triton model configuration: {error}") from error


def import_model_config() -> ModuleType:
    """Tritonclient's generated schema of `config.pbtxt`.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingDependencyError(
            "tritonclient", "triton", "a Triton model repository"
        ) from error
    module: ModuleType = model_config_pb2
    return module


def _check_model(folder: Path) -> None:
    path = folder / CONFIG_FILE
    config = read_config(path)
    problem = (
        _name_problem(config, folder)
        or _backend_problem(config)
        or _instance_problem(config)
        or _warmup_problem(config, folder)
    )
    if problem:
        raise RepositoryError(f"{str(path)!r}: {problem}")
    for version in _versions(folder):
        file = version / (config.default_model_filename or "model.onnx")
        _refuse_outside(folder, file)
        if not file.is_file():
            raise RepositoryError(f"{str(file)!r} is missing; {str(path)!r} names it")
        if config.backend == "onnxruntime":
            _check_against_onnx(config, path, file)


def _versions(folder: Path) -> list[Path]:
    """Folders whose name is a positive integer; a server ignores all others."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.isdecimal() and not path.name.startswith("0")
    ]
    if not found:
        raise RepositoryError(
            f"{str(folder)!r} holds no version folder; expected one called 1, 2, ..."
        )
    return found


def _refuse_outside(folder: Path, path: Path) -> None:
    try:
        check_inside(folder, path)
    except ArtifactError as error:
        raise RepositoryError(str(error)) from error


def _name_problem(config: ModelConfig, folder: Path) -> str | None:
    if config.name and config.name != folder.name:
        return f"name is {config.name!r}, but the folder is called {folder.name!r}"
    return None


def _backend_problem(config: ModelConfig) -> str | None:
    if config.backend not in BACKENDS:
        return f"backend is {config.backend!r}, {did_you_mean(config.backend, BACKENDS)}"
    if config.max_batch_size < 0:
        return f"max_batch_size is {config.max_batch_size}, allowed: 0 (no batching) or more"
    if config.HasField("dynamic_batching") and config.max_batch_size == 0:
        return "dynamic_batching needs max_batch_size 1 or more, got 0"
    return None


def _instance_problem(config: ModelConfig) -> str | None:
    for group in config.instance_group:
        if group.count < 1:
            return f"instance_group has count {group.count}, allowed: 1 or more"
    return None


def _warmup_problem(config: ModelConfig, folder: Path) -> str | None:
    names = {item.name for item in config.input}
    for sample in config.model_warmup:
        if not 1 <= sample.batch_size <= max(1, config.max_batch_size):
            return (
                f"warm-up {sample.name!r} has batch_size {sample.batch_size}, allowed: 1 to "
                f"{max(1, config.max_batch_size)}"
            )
        if set(sample.inputs) != names:
            return (
                f"warm-up {sample.name!r} has inputs {sorted(sample.inputs)}, not {sorted(names)}"
            )
        for item in sample.inputs.values():
            problem = _warmup_file_problem(item, folder)
            if problem:
                return f"warm-up {sample.name!r}: {problem}"
    return None


def _warmup_file_problem(item: ModelConfig, folder: Path) -> str | None:
    """The raw data of one input must have exactly the bytes that its shape needs."""
    if not item.input_data_file:
        return None
    file = folder / "warmup" / item.input_data_file
    _refuse_outside(folder, file)
    if not file.is_file():
        return f"{str(file)!r} is missing"
    needed = _ITEM_BYTES.get(_type_name(item.data_type), 1)
    for size in item.dims:
        needed *= size
    got = file.stat().st_size
    return None if got == needed else f"{str(file)!r} has {got} bytes, its shape needs {needed}"


def _check_against_onnx(config: ModelConfig, path: Path, file: Path) -> None:
    """Names, types and dims of the configuration against those of the graph."""
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise RepositoryError(f"{str(file)!r} is no ONNX model: {error}") from error
    for role, told, real in (
        ("input", config.input, graph.input),
        ("output", config.output, graph.output),
    ):
        names, expected = [item.name for item in told], [item.name for item in real]
        if sorted(names) != sorted(expected):
            raise RepositoryError(
                f"{str(path)!r}: {role}s are {sorted(names)}, {file.name} has {sorted(expected)}"
            )
        values = {value.name: value for value in real}
        for item in told:
            problem = _tensor_problem(item, values[item.name], batched=config.max_batch_size > 0)
            if problem:
                raise RepositoryError(f"{str(path)!r}: {role} {item.name!r} {problem}")


def _tensor_problem(told: ModelConfig, real: onnx.ValueInfoProto, *, batched: bool) -> str | None:
    tensor = real.type.tensor_type
    data_type = _ONNX_TYPES.get(tensor.elem_type, "of a type that is not checked")
    if _type_name(told.data_type) != data_type:
        return f"has data_type {_type_name(told.data_type)}, the graph has {data_type}"
    # A named axis is dynamic; -1 is Triton's word for it.
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if batched and shape[0] != -1:
        return f"cannot be batched: the first axis of the graph is fixed at {shape[0]}"
    expected = shape[1:] if batched else shape
    if list(told.dims) != expected:
        return f"has dims {list(told.dims)}, the graph has {expected}"
    return None


def _type_name(data_type: int) -> str:
    name: str = import_model_config().DataType.Name(data_type)
    return name
