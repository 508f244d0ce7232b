"""What happens to artifacts that must not be opened, and to exports that do not end.

Where each row of the contract that concerns the formats onnx, openvino and triton is tested
(engines of TensorRT: `test_tensorrt.py` and `tests/serve/test_runner_tensorrt.py`):

- An unknown format: `tests/api/test_exporting.py`; precision: here; runtime: here and
  `tests/api/test_runtime_names.py`; backend of Triton: `test_triton.py`; at the command line:
  `tests/test_cli.py`.
- kill -9, a full disk: here; Ctrl-C: `test_onnx.py`, `test_triton.py` and, for OpenVINO, here; any
  directory that is written: `tests/test_artifacts.py`; while a server runs:
  `tests/triton/test_faults.py`.
- A corrupt, truncated or missing file: `test_exports.py`, `tests/serve/test_runner.py`,
  `tests/triton_repository/test_check.py`; a file of another export: here.
- A pickle, code, symlinks and paths that leave: `tests/test_artifacts.py` (models),
  `test_exports.py` (exports), `tests/triton_repository/test_safety.py` (repositories).
- A newer schema: here (exports), `tests/test_loading.py` (models); an impossible entry:
  `test_exports.py`.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cofi_deploy.artifacts import checksums
from cofi_deploy.errors import ArtifactError, ConfigError, RepositoryError, UsageError
from cofi_deploy.export import openvino as openvino_export
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.triton import export_triton
from cofi_deploy.exports import check_export
from cofi_deploy.serve.runner import open_runner
from cofi_deploy.triton_repository import check_repository

pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no extra 'triton'")

Export = Callable[[Path, Path], Path]

FORMATS: dict[str, Export] = {
    "onnx": export_onnx,
    "openvino": export_openvino,
    "triton": lambda model, output: export_triton(model, output, name="tiny"),
}
WEIGHTS = {
    "onnx": "model.onnx",
    "openvino": "openvino_model.bin",
    "triton": "tiny/1/model.onnx",
}


@pytest.fixture(params=FORMATS)
def format_(request):
    return request.param


@pytest.fixture(scope="module")
def exported(write_model, tmp_path_factory):
    """Exports of two models that differ in their weights alone, by format; read only."""
    made: dict[tuple[str, str], Path] = {}

    def export(format_: str, kind: str = "text-classification") -> Path:
        if (format_, kind) not in made:
            output = tmp_path_factory.mktemp("exports") / format_
            made[format_, kind] = FORMATS[format_](write_model(kind), output)
        return made[format_, kind]

    return export


@pytest.fixture
def copied(exported, format_, tmp_path):
    return shutil.copytree(exported(format_), tmp_path / "copy")


def test_the_weights_of_another_export_are_refused_and_named(copied, format_, exported):
    file = copied / WEIGHTS[format_]
    shutil.copy(exported(format_, "token-classification") / WEIGHTS[format_], file)
    words = re.escape(f"{str(file)!r} has sha256 ") + ".* corrupt, truncated or was replaced; "
    with pytest.raises(ArtifactError, match=words + "export it again: cofi-deploy export "):
        check_export(copied)


def test_a_runtime_and_a_server_do_not_open_weights_of_another_export(exported, tmp_path):
    for format_, runtime in (("onnx", "onnxruntime-cpu"), ("openvino", "openvino")):
        copy = shutil.copytree(exported(format_), tmp_path / format_)
        file = copy / WEIGHTS[format_]
        shutil.copy(exported(format_, "token-classification") / WEIGHTS[format_], file)
        with pytest.raises(ArtifactError, match=re.escape(f"{str(file)!r} has sha256")):
            open_runner(copy, runtime, threads=1)
    repository = shutil.copytree(exported("triton"), tmp_path / "triton")
    file = repository / WEIGHTS["triton"]
    shutil.copy(exported("triton", "token-classification") / WEIGHTS["triton"], file)
    with pytest.raises(RepositoryError, match=re.escape(f"{str(file)!r} has sha256")):
        check_repository(repository)


def edit_manifest(directory: Path, **changes: object) -> str:
    """Change entries of `export.json`; returns its path as messages quote it."""
    path = directory / "export.json"
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**data, **changes}), "utf-8")
    return repr(str(path))


@pytest.mark.parametrize(
    ("precision", "flag"), [("fp32", ""), ("int8", " --precision int8")], ids=["fp32", "int8"]
)
def test_an_export_of_a_newer_schema_is_refused_with_the_command_that_makes_it_again(
    precision, flag, copied, format_, write_model
):
    file = edit_manifest(copied, schema_version=2, precision=precision)
    words = (
        f"{file} has schema_version 2, but this cofi-deploy reads up to 1; upgrade cofi-deploy or "
        f"make it again: cofi-deploy export {write_model()} --format {format_}{flag}"
    )
    with pytest.raises(ArtifactError, match=re.escape(words) + "$"):
        check_export(copied)


@pytest.mark.parametrize(
    "changes", [{"source": "elsewhere"}, {"source": {}}, {"format": "tflite"}], ids=str
)
def test_a_newer_schema_that_names_no_source_of_ours_is_refused_all_the_same(
    changes, exported, tmp_path
):
    copy = shutil.copytree(exported("onnx"), tmp_path / "copy")
    file = edit_manifest(copy, schema_version=2, **changes)
    words = f"{file} has schema_version 2, but this cofi-deploy reads up to 1; upgrade "
    with pytest.raises(ArtifactError, match=re.escape(words + "cofi-deploy or export the model ")):
        check_export(copy)


@pytest.mark.parametrize("export", [export_onnx, export_openvino], ids=["onnx", "openvino"])
def test_an_unknown_precision_names_the_nearest(export, write_model, tmp_path):
    words = "precision is 'int4', allowed: fp32, fp16, bf16, int8; did you mean 'int8'?"
    with pytest.raises(ConfigError, match=re.escape(words)):
        export(write_model(), tmp_path / "export", precision="int4")


def test_an_unknown_runtime_names_the_nearest(exported):
    words = "runtime is 'opnvino', allowed: torch, onnxruntime-cpu, onnxruntime-cuda, openvino, "
    with pytest.raises(UsageError, match=re.escape(words) + ".*; did you mean 'openvino'"):
        open_runner(exported("openvino"), "opnvino")


def test_an_interrupted_openvino_export_leaves_nothing(write_model, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(openvino_export, "write_config_and_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_openvino(write_model(), tmp_path / "openvino")
    assert list(tmp_path.iterdir()) == []


# Exports over what lies there: killed before the last file is written, or with files that may not
# grow beyond some KB, which a full disk looks like from inside; of OpenVINO the second time after
# the ONNX file that it starts from.
UNFINISHED = """
import json, os, resource, signal, sys
from pathlib import Path
from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.export import onnx, openvino, triton

model, place, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
modules = {"onnx": onnx, "openvino": openvino, "triton": triton}
exports = {
    "onnx": onnx.export_onnx,
    "openvino": openvino.export_openvino,
    "triton": lambda model, output: triton.export_triton(model, output, name="tiny"),
}
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
convert = openvino._ir_from_onnx

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def fill_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, unlimited[1]))

def convert_and_fill_disk(*arguments):
    ir = convert(*arguments)
    fill_disk()
    return ir

def attempt(name, output):
    try:
        exports[name](model, output)
    except EnvironmentProblem as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return "it was written"

if what in modules:
    modules[what].write_manifest = die
    attempt(what, place / what)
told = {}
for name in exports:
    for output in (place / name, place / f"new-{name}"):
        fill_disk()
        told[output.name] = attempt(name, output)
openvino._ir_from_onnx = convert_and_fill_disk
told["late"] = attempt("openvino", place / "openvino")
print(json.dumps(told))
"""


@pytest.mark.slow
def test_killed_exports_and_full_disks_leave_what_was_there_and_nothing_else(
    exported, write_model, tmp_path
):
    for name in FORMATS:
        shutil.copytree(exported(name), tmp_path / name)
    before = checksums(tmp_path)
    cases = {
        what: subprocess.Popen(
            [sys.executable, "-c", UNFINISHED, write_model(), tmp_path, what],
            stdout=subprocess.PIPE,
            text=True,
        )
        for what in (*FORMATS, "full disk")
    }
    said = {what: process.communicate()[0] for what, process in cases.items()}
    for name in FORMATS:
        assert (cases[name].returncode, said[name]) == (-signal.SIGKILL, ""), name
    assert cases["full disk"].returncode == 0
    told = json.loads(said["full disk"])
    assert len(told) == 2 * len(FORMATS) + 1
    for case, words in told.items():
        assert "cannot write" in words, case
        assert "free space or choose another --output, nothing that was" in words, case
    assert "OpenVINO cannot write 'openvino_model.xml': " in told["late"]
    # What a killed process could not remove has a hidden name, which nothing opens.
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(visible) == sorted(FORMATS)
    for name in FORMATS:
        check_export(tmp_path / name)
    assert {name: d for name, d in checksums(tmp_path).items() if name[0] != "."} == before
