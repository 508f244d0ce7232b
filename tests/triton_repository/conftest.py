"""A repository that a server would load, and ways to spoil it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format

from cofi_deploy.artifacts import checksums, read_json
from cofi_deploy.export.triton import write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import MANIFEST
from cofi_deploy.triton_repository import ModelConfig, read_config
from tests.export.conftest import onnx_directory, write_model

__all__ = ["onnx_directory", "write_model"]

pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra 'triton' is not installed"
)

EditConfig = Callable[..., None]


@pytest.fixture(scope="session")
def written(onnx_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as it is written; copy it before changing anything."""
    directory = tmp_path_factory.mktemp("models")
    write_models(directory, onnx_directory, name="tiny", options=TritonOptions())
    return directory


@pytest.fixture
def repository(written: Path, tmp_path: Path) -> Path:
    """A copy of the written repository."""
    return shutil.copytree(written, tmp_path / "repository")


@pytest.fixture
def edit(repository: Path) -> EditConfig:
    """Change the message of one configuration file."""

    def change(
        how: Callable[[ModelConfig], object], model: str = "tiny", file: str = "config.pbtxt"
    ) -> None:
        path = repository / model / file
        config = read_config(path)
        how(config)
        path.write_text(text_format.MessageToString(config))

    return change


def rewrite_checksums(version: Path) -> None:
    """Make a changed version look as if it had been exported so."""
    data = read_json(version / MANIFEST)
    data["files"] = checksums(version, exclude=frozenset({MANIFEST}))
    (version / MANIFEST).write_text(json.dumps(data))
