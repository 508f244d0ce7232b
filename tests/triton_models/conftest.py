"""The code that a server runs, imported as the server imports it, without a server."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import json_format

from cofi_deploy.triton_repository import read_config
from tests.export.conftest import onnx_directory, write_model
from tests.triton_models import fake_backend_utils

__all__ = ["onnx_directory", "write_model"]

OpenServed = Callable[..., Any]


@pytest.fixture
def triton_utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Triton's module for Python models, in memory."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_backend_utils)
    fake_backend_utils.Logger.lines.clear()
    return fake_backend_utils


@pytest.fixture
def open_served(triton_utils: ModuleType) -> OpenServed:
    """Load `<model folder>/<version>/model.py` and initialise it with its configuration.

    ``config`` is the configuration file that the server would have picked.
    """

    def open_model(
        folder: Path, *, version: str = "1", config: str = "config.pbtxt", kind: str = "CPU"
    ) -> Any:
        module = load_module(folder / version / "model.py")
        message = read_config(folder / config)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(
                    json_format.MessageToDict(message, preserving_proto_field_name=True)
                ),
                "model_repository": str(folder),
                "model_version": version,
                "model_name": folder.name,
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
                "model_instance_name": f"{folder.name}_0",
            }
        )
        return model

    return open_model


def load_module(path: Path) -> ModuleType:
    """Import a file under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"served_{path.parent.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
