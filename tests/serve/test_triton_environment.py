"""The environment of the pip-shipped server: where it lies, when it is made, what stops it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cofi_deploy.caches import cache_root
from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.serve import triton_environment
from cofi_deploy.serve.triton_environment import (
    MARKER,
    TritonEnvironment,
    find_environment,
    planned_environment,
    prepare_environment,
    requirements,
)
from tests.conftest import REPOSITORY

LIBRARIES = "/usr/lib"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def prepared() -> Path:
    """An environment that looks complete."""
    directory = planned_environment().directory
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(sys.executable)
    marker = {"python": [3, 11], "libraries": LIBRARIES}
    (directory / MARKER).write_text(json.dumps(marker), encoding="utf-8")
    return directory


@pytest.fixture
def interpreters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Path]:
    """Interpreters on PATH that answer the probe with a fixed line; there are no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "_base_executable", "")

    def add(name: str, answer: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return add


def test_the_cache_directory_is_ours_else_that_of_the_desktop_else_in_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("COFI_DEPLOY_CACHE")
    assert cache_root() == tmp_path / "xdg" / "cofi-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / "home" / ".cache" / "cofi-deploy"


def test_the_pinned_packages_are_those_that_the_exports_are_tested_with() -> None:
    pinned = dict(line.split("==") for line in requirements())
    assert set(pinned) == {"nvidia-pytriton", "numpy", "onnxruntime", "tokenizers"}
    assert pinned["numpy"].startswith("1.26")
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    for name in ("onnxruntime", "tokenizers"):
        assert pinned[name] == tested[name]


def test_a_complete_environment_is_found(prepared: Path) -> None:
    found = find_environment()
    assert found == TritonEnvironment(directory=prepared, python=(3, 11), libraries=Path(LIBRARIES))
    said: list[str] = []
    assert prepare_environment(said.append) == found
    assert said == []


@pytest.mark.parametrize("gone", ["marker", "interpreter", "libraries"])
def test_an_environment_that_lacks_something_is_none(prepared: Path, gone: str) -> None:
    if gone == "marker":
        (prepared / MARKER).unlink()
    elif gone == "interpreter":
        (prepared / "bin" / "python").unlink()
        (prepared / "bin" / "python").symlink_to("/no/such/python")
    else:
        marker = {"python": [3, 11], "libraries": "/no/such/folder"}
        (prepared / MARKER).write_text(json.dumps(marker), encoding="utf-8")
    assert find_environment() is None


def test_new_requirements_have_a_place_of_their_own(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = tmp_path / "requirements.txt"
    changed.write_text("nvidia-pytriton==0.8.0\n", encoding="utf-8")
    monkeypatch.setattr(triton_environment, "REQUIREMENTS", changed)
    assert find_environment() is None
    assert planned_environment().directory != prepared


def test_the_server_gets_its_own_python_and_libraries_first(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    found = find_environment()
    assert found is not None
    packages = prepared / "lib" / "python3.11" / "site-packages"
    assert found.variables() == {
        "PATH": f"{prepared}/bin:/usr/bin",
        "LD_LIBRARY_PATH": f"{LIBRARIES}:{packages}/nvidia_pytriton.libs:/opt/lib",
        "VIRTUAL_ENV": str(prepared),
    }


def test_another_machine_is_told_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    message = (
        "the server of nvidia-pytriton runs on Linux x86_64, this is Linux aarch64; install "
        "tritonserver, docker or podman, and start again"
    )
    with pytest.raises(EnvironmentProblem, match=re.escape(message)):
        prepare_environment(print)


def test_without_a_python_that_fits_all_that_were_tried_are_named(
    interpreters: Callable[[str, str], Path],
) -> None:
    new = interpreters("python3", '{"version": [3, 13], "libraries": "/usr/lib"}')
    static = interpreters("python3.12", "")
    message = (
        "the Triton server that pip installs needs Python 3.11 or 3.12 with its libpython, found: "
        f"{static} (does not fit), {new} (3.13); install one"
    )
    with pytest.raises(EnvironmentProblem, match=re.escape(message)):
        prepare_environment(print)


def test_a_python_that_fits_is_taken_from_path(interpreters: Callable[[str, str], Path]) -> None:
    interpreters("python3", '{"version": [3, 13], "libraries": "/usr/lib"}')
    interpreters("python3.12", '{"version": [3, 12], "libraries": "/opt/python/lib"}')
    planned = planned_environment()
    assert (planned.python, planned.libraries) == ((3, 12), Path("/opt/python/lib"))
    assert planned.directory.name.startswith("triton-py3.12-")


def test_a_cache_that_cannot_be_written_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(file / "cache"))
    message = f"cannot write below {str(file / 'cache')!r}: "
    with pytest.raises(EnvironmentProblem, match=re.escape(message)) as caught:
        prepare_environment(print)
    assert "name another directory with COFI_DEPLOY_CACHE" in str(caught.value)


def test_a_python_without_venv_is_told_in_its_own_words_and_nothing_is_left(
    interpreters: Callable[[str, str], Path], cache: Path
) -> None:
    python = interpreters("python3.12", '{"version": [3, 12], "libraries": "/usr/lib"}')
    script = python.read_text("utf-8").replace("#!/bin/sh", '#!/bin/sh\n[ "$2" = venv ] && exit 1')
    python.write_text(script.replace("exit 1", "{ echo no ensurepip; exit 1; }"), encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="no ensurepip"):
        prepare_environment(print)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.slow
def test_without_a_network_the_lines_that_help_are_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    with pytest.raises(EnvironmentProblem) as caught:
        prepare_environment(said.append)
    message = str(caught.value)
    assert "No matching distribution found for nvidia-pytriton==0.7.0" in message
    assert "pip download --no-deps --only-binary=:all: --python-version 3." in message
    assert "-d wheels nvidia-pytriton==0.7.0 numpy==1.26.4" in message
    assert message.endswith("PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels cofi-deploy serve")
    assert f"installing a Triton server into {cache}" in said[0]
    assert find_environment() is None
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_second_process_waits_for_the_first(prepared: Path) -> None:
    marker = (prepared / MARKER).read_text("utf-8")
    (prepared / MARKER).unlink()
    lock = prepared.with_name(f"{prepared.name}.lock")
    code = (
        "import fcntl, sys, time\n"
        "stream = open(sys.argv[1], 'w')\n"
        "fcntl.flock(stream, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        said: list[str] = []
        found: list[TritonEnvironment] = []
        second = threading.Thread(target=lambda: found.append(prepare_environment(said.append)))
        second.start()
        while not said:
            time.sleep(0.01)
        (prepared / MARKER).write_text(marker, encoding="utf-8")
        first.kill()
        second.join(timeout=10)
    assert said == [
        f"another process is installing a Triton server into {prepared}; waiting for it"
    ]
    assert found[0].directory == prepared
