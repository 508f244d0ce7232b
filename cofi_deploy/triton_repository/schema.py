"""`config.pbtxt` by Triton's own schema.

Comes in: a path. Goes out: a `ModelConfig` message, or an error with line and column. Next file:
`check.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from google.protobuf import text_format

from cofi_deploy.errors import MissingDependencyError, RepositoryError

CONFIG_FILE = "config.pbtxt"
CONFIGS_FOLDER = "configs"  # others of the same model; --model-config-name picks one
BACKENDS = ("onnxruntime", "tensorrt", "openvino", "python")

ModelConfig: TypeAlias = Any  # a message of tritonclient's generated schema, without types


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


def config_files(folder: Path) -> list[Path]:
    """`config.pbtxt` of a model folder, then the files that stand beside it in `configs`."""
    return [folder / CONFIG_FILE, *sorted((folder / CONFIGS_FOLDER).glob("*.pbtxt"))]


def version_folders(folder: Path) -> list[Path]:
    """Folders whose name is a positive integer, oldest first; a server ignores all others."""
    found = [
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name.isdecimal() and not path.name.startswith("0")
    ]
    return sorted(found, key=lambda path: int(path.name))


def leaves_folder(name: str) -> bool:
    """True when a file name in a configuration is a path, which may lead anywhere."""
    return bool(name) and Path(name).name != name


def type_name(data_type: int) -> str:
    """`TYPE_INT64` and the like."""
    name: str = import_model_config().DataType.Name(data_type)
    return name
