"""Whole or absent: directories, files, checksums, and what is refused in a model directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy import artifacts
from cofi_deploy.artifacts import (
    atomic_directory,
    check_checksums,
    check_inside,
    check_model_directory,
    checksums,
    lock_directory,
    newest_run,
    read_json,
    sha256_file,
    size_bytes,
    sweep_leftovers,
    write_bytes,
    write_json,
)
from cofi_deploy.errors import ArtifactError, EnvironmentProblem, UsageError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def artifact(tmp_path):
    """An artifact that was written before: state.json and weights."""
    folder = tmp_path / "artifact"
    with atomic_directory(folder) as temporary:
        write_json(temporary / "state.json", {"number": 1})
        (temporary / "weights").write_bytes(b"old")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_appears_when_its_body_is_done(tmp_path):
    with atomic_directory(tmp_path / "deep" / "new") as temporary:
        (temporary / "file").write_text("x")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "file").read_text() == "x"
    assert names(tmp_path / "deep") == ["new"]


def write_and_fail(folder):
    with atomic_directory(folder) as temporary:
        (temporary / "weights").write_text("new")
        raise ZeroDivisionError


def test_a_failing_body_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "new")
    assert names(tmp_path) == []


def test_a_failing_body_keeps_what_was_there(artifact):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(artifact)
    assert (artifact / "weights").read_bytes() == b"old"
    assert names(artifact.parent) == ["artifact"]


@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchange", "step aside"])
def test_an_artifact_is_replaced_as_a_whole(artifact, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(artifacts, "_exchange", lambda *_: False)
    with atomic_directory(artifact) as temporary:
        (temporary / "config.json").write_text("{}")
        assert (artifact / "weights").read_bytes() == b"old"
    assert names(artifact) == ["config.json"]
    assert names(artifact.parent) == ["artifact"]


def test_a_directory_of_strange_files_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    words = "holds 'thesis.tex' and nothing that cofi-deploy wrote"
    with pytest.raises(UsageError, match=words), atomic_directory(tmp_path / "home"):
        pass
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_place_of_a_directory_is_kept(tmp_path):
    (tmp_path / "model.onnx").write_text("x")
    with pytest.raises(UsageError, match=r"model.onnx' is a file"):
        atomic_directory(tmp_path / "model.onnx").__enter__()
    assert (tmp_path / "model.onnx").read_text() == "x"


def test_an_error_of_the_body_that_is_not_about_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "new"):
        (tmp_path / "absent").read_text()


def test_a_place_below_a_file_is_an_environment_problem(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="cannot write below"):
        atomic_directory(tmp_path / "file" / "new").__enter__()


def test_written_directories_can_be_read_by_others(artifact):
    assert artifact.stat().st_mode & 0o777 == 0o755
    assert (artifact / "weights").stat().st_mode & 0o044 == 0o044


FULL_DISK = """
import resource, sys
from pathlib import Path
from cofi_deploy.artifacts import atomic_directory, write_bytes
from cofi_deploy.errors import EnvironmentProblem
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
place = Path(sys.argv[1])
try:
    if sys.argv[2] == "directory":
        with atomic_directory(place) as temporary:
            (temporary / "weights").write_bytes(bytes(10_000))
    else:
        write_bytes(place / "state.json", bytes(10_000))
except EnvironmentProblem as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["directory", "file"])
def test_a_full_disk_is_said_and_keeps_what_was_there(artifact, what):
    before = checksums(artifact)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(artifact), what],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write" in done.stdout
    assert "free space" in done.stdout
    assert checksums(artifact) == before
    assert names(artifact.parent) == ["artifact"]


KILLED = """
import sys
from pathlib import Path
from cofi_deploy import artifacts
if sys.argv[2] == "renaming":
    artifacts._exchange = lambda *_: False
    rename = Path.rename
    def slow(self, target):
        if self.suffix == ".tmp":
            print("here", flush=True)
            sys.stdin.readline()
        return rename(self, target)
    Path.rename = slow
with artifacts.atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "state.json").write_text("half")
    if sys.argv[2] == "writing":
        print("here", flush=True)
        sys.stdin.readline()
"""


def kill_writer(place, when):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place), when],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_a_writer_killed_at_any_moment_leaves_the_old_artifact(artifact, when):
    before = checksums(artifact)
    kill_writer(artifact, when)
    sweep_leftovers(artifact.parent)
    assert checksums(artifact) == before
    assert names(artifact.parent) == ["artifact"]


def test_a_killed_writer_leaves_nothing_under_a_new_name(tmp_path):
    kill_writer(tmp_path / "new", "writing")
    assert not (tmp_path / "new").exists()
    sweep_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_file_is_replaced_whole(tmp_path):
    write_bytes(tmp_path / "deep" / "file", b"one")
    write_bytes(tmp_path / "deep" / "file", b"two")
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"
    assert names(tmp_path / "deep") == ["file"]


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_json_comes_back_as_it_was_written(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, data)
    assert read_json(path) == {"schema_version": 1, **data} or "schema_version" in data


def test_nan_never_gets_into_a_json_file(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"metric": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": ', "is not readable JSON"),
        (b'{"a": "\xff"}', "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[1]", "holds a list, expected an object"),
        (b'{"schema_version": 2}', "has schema_version 2, but this cofi-deploy reads up to 1"),
        (b'{"schema_version": "x"}', "has schema_version 'x'"),
    ],
    ids=["truncated", "encoding", "nesting", "list", "newer", "no number"],
)
def test_unreadable_json_names_the_file_and_the_reason(tmp_path, content, words):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(repr(str(path))) + ".*" + re.escape(words)):
        read_json(path)


def test_absent_json_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"run.json' does not exist"):
        read_json(tmp_path / "run.json")


def damage(folder, how):
    path = folder / "weights"
    if how == "changed":
        path.write_bytes(b"olD")
    if how == "truncated":
        path.write_bytes(b"ol")
    if how == "swapped":
        path.write_bytes((folder / "state.json").read_bytes())
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["changed", "truncated", "swapped", "missing"])
def test_checksums_name_the_file_that_is_not_as_written(artifact, how):
    recorded = checksums(artifact)
    check_checksums(artifact, recorded, remedy="export again")
    damage(artifact, how)
    words = "is missing" if how == "missing" else f"but {recorded['weights'][:12]} was recorded"
    with pytest.raises(ArtifactError, match=rf"artifact/weights'.*{words}.*; export again"):
        check_checksums(artifact, recorded, remedy="export again")


def test_checksums_are_of_all_files_but_those_left_out(artifact):
    assert set(checksums(artifact)) == {"state.json", "weights"}
    assert set(checksums(artifact, exclude=frozenset({"weights"}))) == {"state.json"}
    assert checksums(artifact)["weights"] == sha256_file(artifact / "weights")
    assert size_bytes(artifact) == sum(path.stat().st_size for path in artifact.iterdir())


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_recorded_path_outside_is_refused(artifact, name):
    (artifact.parent / "secret").write_text("x")
    with pytest.raises(ArtifactError, match="points outside of"):
        check_checksums(artifact, {name: "0" * 64}, remedy="")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def test_a_directory_with_safetensors_is_a_model_directory(model):
    check_model_directory(model)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    words = r"weights as a pickle \(pytorch_model.bin\).*safe_serialization=True"
    with pytest.raises(ArtifactError, match=words):
        check_model_directory(model)


def test_a_directory_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"holds no \*.safetensors"):
        check_model_directory(model)
    with pytest.raises(ArtifactError, match="is not a directory"):
        check_model_directory(model / "absent")


def test_code_in_a_model_directory_is_refused(model):
    (model / "modeling_evil.py").write_text("raise SystemExit")
    with pytest.raises(ArtifactError, match=r"modeling_evil.py' is code in a model directory"):
        check_model_directory(model)


def test_a_symlink_that_leaves_the_model_directory_is_refused(model):
    (model.parent / "secret").write_text("x")
    (model / "vocab.txt").symlink_to(model.parent / "secret")
    with pytest.raises(ArtifactError, match=r"vocab.txt' is a symlink to '.*secret', outside"):
        check_model_directory(model)
    with pytest.raises(ArtifactError, match="points outside of"):
        check_inside(model, model / "vocab.txt")


def test_a_symlink_within_the_model_directory_is_allowed(model):
    (model / "alias").symlink_to("model.safetensors")
    check_model_directory(model)


def test_the_symlinks_of_a_hub_cache_are_allowed(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_bytes(b"x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    check_model_directory(snapshot)
    check_checksums(snapshot, checksums(snapshot), remedy="")


def test_the_newest_finished_run_is_found(tmp_path):
    for at, (name, state) in enumerate([("a", "done"), ("b", "done"), ("c", "failed"), ("d", "")]):
        write_json(tmp_path / name / "run.json", {"state": state})
        (tmp_path / name / "model").mkdir()
        os.utime(tmp_path / name / "run.json", (at, at))
    (tmp_path / "d" / "run.json").write_text("{broken")
    write_json(tmp_path / "e" / "run.json", {"state": "done"})  # its model is gone
    assert newest_run(tmp_path).name == "b"


def test_without_a_finished_run_the_way_to_make_one_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"no finished run below .*cofi-deploy train --task mrpc"):
        newest_run(tmp_path)


def test_a_written_file_is_json_for_everyone(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Käse"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"schema_version": 1, "name": "Käse"}


def test_a_second_process_is_kept_out_of_a_locked_directory(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cofi_deploy.artifacts import lock_directory\n"
        "from cofi_deploy.errors import UsageError\n"
        "try:\n"
        "    with lock_directory(Path(sys.argv[1])):\n"
        "        print('entered')\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )

    def enter():
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with lock_directory(tmp_path):
        assert f"another process is working in {str(tmp_path)!r}" in enter()
    assert enter() == "entered\n"
