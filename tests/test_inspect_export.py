"""`inspect` on an export: every byte has its part and its file, and what is corrupt is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cofi_deploy.cli import main
from cofi_deploy.errors import ArtifactError, UsageError
from cofi_deploy.inspect_export import check_alone, describe_export

# The tiny export is that of the export tests.
from tests.export.conftest import onnx_directory, write_model

__all__ = ["onnx_directory", "write_model"]


def test_parts_and_files_of_an_export_add_up(onnx_directory: Path) -> None:
    described = describe_export(onnx_directory)
    manifest = json.loads((onnx_directory / "export.json").read_text("utf-8"))
    assert described["size_by_part"] == manifest["size_by_part"]
    on_disk = {
        path.name: path.stat().st_size
        for path in onnx_directory.iterdir()
        if path.name != "export.json"
    }
    assert described["size_by_file"] == on_disk
    assert described["size_bytes"] == sum(on_disk.values())
    parts = {name: size for name, size in described["size_by_part"].items() if name != "tokenizer"}
    assert sum(parts.values()) == on_disk["model.onnx"]


def test_inspect_prints_and_draws_an_export(onnx_directory: Path, tmp_path: Path) -> None:
    svg = tmp_path / "a.svg"
    result = CliRunner().invoke(main, ["inspect", str(onnx_directory), "--svg", str(svg)])
    assert result.exit_code == 0, result.stderr
    assert "word embeddings" in result.stdout
    assert "model.onnx" in result.stdout
    assert svg.read_text("utf-8").startswith("<svg")
    as_json = CliRunner().invoke(main, ["inspect", str(onnx_directory), "--json"])
    assert json.loads(as_json.stdout)["format"] == "onnx"


def test_a_changed_file_is_refused_by_name(onnx_directory: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(onnx_directory, tmp_path / "copy")
    (copied / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json.*export it again"):
        describe_export(copied)


def test_an_export_beside_another_model_is_refused(onnx_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"onnx' is an export, which is inspected alone"):
        check_alone(tmp_path, onnx_directory)
