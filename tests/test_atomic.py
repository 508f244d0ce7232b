"""Directories and files are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from cofi_deploy import atomic
from cofi_deploy.artifacts import checksums, write_json
from cofi_deploy.atomic import atomic_directory, lock_directory, sweep_leftovers, write_bytes
from cofi_deploy.errors import EnvironmentProblem, UsageError


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
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
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
from cofi_deploy.atomic import atomic_directory, write_bytes
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
from cofi_deploy import atomic
if sys.argv[2] == "renaming":
    atomic._exchange = lambda *_: False
    rename = Path.rename
    def slow(self, target):
        if self.suffix == ".tmp":
            print("here", flush=True)
            sys.stdin.readline()
        return rename(self, target)
    Path.rename = slow
with atomic.atomic_directory(Path(sys.argv[1])) as temporary:
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


def test_a_second_process_is_kept_out_of_a_locked_directory(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cofi_deploy.atomic import lock_directory\n"
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
