"""Engines that were changed, or that this machine cannot run: refused before a runtime sees them.

Engines need a GPU to be opened, so the machine is pretended; the engine itself is real.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest

from cofi_deploy import engines
from cofi_deploy.artifacts import sha256_file
from cofi_deploy.engines import CudaDevice, check_engine, import_tensorrt
from cofi_deploy.errors import (
    ArtifactError,
    ConfigError,
    MissingDependencyError,
    RunnerError,
)
from cofi_deploy.export.engine_options import EngineOptions
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.refit import refittable_engine
from cofi_deploy.export.tensorrt import export_tensorrt
from cofi_deploy.serve.runner import RunnerSettings
from cofi_deploy.serve.runner_tensorrt import open_session

rtx = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="the extra 'tensorrt-rtx' is not installed"
)


@pytest.fixture(scope="module")
def engine(write_model, tmp_path_factory):
    return export_tensorrt(
        write_model(),
        tmp_path_factory.mktemp("engine") / "trt",
        batch_size=(1, 2, 4),
        seq_len=(8, 16, 32),
        options=EngineOptions(flavour="tensorrt-rtx"),
    )


@pytest.fixture
def copied(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(
        engines, "cuda_device", lambda: CudaDevice(name="NVIDIA L4", compute_capability="8.9")
    )
    return shutil.copytree(engine, tmp_path / "copy")


def _rewrite(directory, name="engine.json", **changes):
    """Change a record, and its checksum with it, as somebody would who knows of checksums."""
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    _checksum(directory, name)


def _checksum(directory, name):
    manifest = json.loads((directory / "export.json").read_text())
    manifest["files"][name] = sha256_file(directory / name)
    (directory / "export.json").write_text(json.dumps(manifest))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _corrupt(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _swap(path):
    path.write_bytes(b"the plan of another engine")


@pytest.mark.parametrize("change", [_truncate, _corrupt, _swap])
@pytest.mark.parametrize("name", ["model.plan", "engine.json", "layers.json"])
def test_a_changed_file_is_refused_by_name(change, name, copied):
    assert check_engine(copied)
    change(copied / name)
    words = rf"{re.escape(name)}' has sha256 .*; export it again: cofi-deploy export .*--format trt"
    with pytest.raises(ArtifactError, match=words):
        check_engine(copied)


def test_a_missing_plan_is_refused_by_name(copied):
    (copied / "model.plan").unlink()
    with pytest.raises(ArtifactError, match=r"model\.plan"):
        check_engine(copied)


def test_a_swapped_plan_is_refused_even_with_its_checksum(copied):
    _swap(copied / "model.plan")
    _checksum(copied, "model.plan")
    with pytest.raises(
        ArtifactError, match=r"engine\.json' describes a plan of sha256 .* but 'mod"
    ):
        check_engine(copied)


@pytest.mark.parametrize("name", ["engine.json", "export.json"])
def test_a_newer_schema_is_refused_with_the_way_on(name, copied):
    _rewrite(copied, name, schema_version=2)
    words = r"has schema_version 2, but this cofi-deploy reads up to 1; upgrade cofi-deploy or make"
    with pytest.raises(ArtifactError, match=words):
        check_engine(copied)


@pytest.mark.parametrize(
    ("built", "installed", "is_taken"),
    [("1.6.0", "1.7.1", True), ("1.7.1", "1.7.1", True), ("1.10.0", "1.7.1", False)],
)
def test_a_version_compatible_engine_runs_on_newer_versions_only(
    built, installed, is_taken, copied, monkeypatch
):
    _rewrite(copied, version=built, options={"version_compatible": True})
    monkeypatch.setattr(rtx, "__version__", installed)
    if is_taken:
        assert check_engine(copied).version == built
        return
    with pytest.raises(
        RunnerError, match=r"built by tensorrt-rtx 1\.10\.0, but 1\.7\.1 is installed"
    ):
        check_engine(copied)


@pytest.mark.parametrize(
    ("capability", "is_taken"), [("7.5", False), ("8.0", True), ("12.0", True)]
)
def test_hardware_from_ampere_on_runs_an_engine_that_was_built_so(
    capability, is_taken, copied, monkeypatch
):
    _rewrite(copied, compute_capabilities=["8.6"], options={"hardware": "ampere+"})
    device = CudaDevice(name="a GPU", compute_capability=capability)
    monkeypatch.setattr(engines, "cuda_device", lambda: device)
    if is_taken:
        assert check_engine(copied)
        return
    with pytest.raises(
        RunnerError, match=r"built for compute capability 8\.0 or newer, but a GPU ha"
    ):
        check_engine(copied)


def test_a_stripped_engine_is_not_run_and_the_command_that_fills_it_is_told(copied, write_model):
    _rewrite(copied, options={"strip": True})
    words = (
        "was stripped of its weights; put them in: cofi-deploy export "
        f"{write_model()} --format trt --weights-into {copied}"
    )
    with pytest.raises(RunnerError, match=re.escape(words)):
        open_session(copied, RunnerSettings(runtime="tensorrt-rtx", threads=1, precision=None))


def test_weights_go_into_a_refittable_engine_of_the_same_structure_only(
    copied, write_model, onnx_directory
):
    same, _ = open_source(write_model())
    other, _ = open_source(write_model(hidden=31))
    with pytest.raises(ConfigError, match="built with fixed weights; build it again with --refit"):
        refittable_engine(copied, same)
    with pytest.raises(ConfigError, match="is of another structure or kind of task than"):
        refittable_engine(copied, other)
    with pytest.raises(ConfigError, match="is an export of format 'onnx', expected 'trt'"):
        refittable_engine(onnx_directory, same)
    _rewrite(copied, options={"refit": True})
    manifest, record = refittable_engine(copied, same)
    assert (manifest.format, record.is_stripped) == ("trt", False)


def test_type_stubs_alone_are_no_library(monkeypatch, tmp_path):
    (tmp_path / "only_stubs_are_here").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(engines._MODULES, "tensorrt", ("only_stubs_are_here",))
    with pytest.raises(MissingDependencyError, match="needs the package 'tensorrt'"):
        import_tensorrt("tensorrt")
