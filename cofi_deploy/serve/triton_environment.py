"""The virtual environment of the Triton server that the package nvidia-pytriton ships.

In: `triton_requirements.txt` and a Python that this server has a stub for. Out: a
`TritonEnvironment`, made once below the cache directory and found again afterwards: the server,
its Python backend, and the packages that served models import. It is apart from our own environment
because its models need numpy 1. `triton_launchers.py` starts a server from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.caches import cache_root
from cofi_deploy.errors import ArtifactError, EnvironmentProblem

REQUIREMENTS = Path(__file__).with_name("triton_requirements.txt")
MARKER = "environment.json"

# The server has stubs for Python 3.8 to 3.13; numpy 1.26 has wheels up to 3.12, and the pinned
# onnxruntime from 3.11 on.
PYTHONS = ((3, 12), (3, 11))
_PYTHON_WORDS = "3.11 or 3.12"
_PROBE_TIMEOUT_S = 20.0

# Run by the interpreter in question. The stub is linked against libpython, which a statically
# linked interpreter may come without.
_PROBE = """
import ctypes, json, os, sys, sysconfig
library = sysconfig.get_config_var("INSTSONAME") or ""
folder = sysconfig.get_config_var("LIBDIR") or ""
try:
    ctypes.CDLL(os.path.join(folder, library))
except OSError:
    ctypes.CDLL(library)
print(json.dumps({"version": sys.version_info[:2], "libraries": folder}))
"""


@dataclass(frozen=True, kw_only=True)
class TritonEnvironment:
    """Where an environment lies (or will lie), and the Python that it was made with.

    ``libraries`` is the directory of that Python's libpython.
    """

    directory: Path
    python: tuple[int, int]
    libraries: Path

    @property
    def binary(self) -> Path:
        """The server."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """What `--backend-directory` takes; holds the Python backend alone."""
        return self.directory / "backends"

    @property
    def caches(self) -> Path:
        """What `--cache-directory` takes; holds the local response cache."""
        return self.packages / "pytriton" / "tritonserver" / "caches"

    def variables(self) -> dict[str, str]:
        """What the server's process needs beside the variables of ours."""
        # The stub takes its packages from the `python3` that PATH finds, and ignores PYTHONPATH.
        path = f"{self.directory / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        libraries = [str(self.libraries), str(self.packages / "nvidia_pytriton.libs")]
        inherited = os.environ.get("LD_LIBRARY_PATH")
        return {
            "PATH": path,
            "LD_LIBRARY_PATH": os.pathsep.join(libraries + ([inherited] if inherited else [])),
            "VIRTUAL_ENV": str(self.directory),
        }

    @property
    def packages(self) -> Path:
        """What its interpreter imports from."""
        return self.directory / "lib" / f"python{_dotted(self.python)}" / "site-packages"


@dataclass(frozen=True, kw_only=True)
class _Interpreter:
    path: str
    python: tuple[int, int]
    libraries: Path


def unsupported_reason() -> str | None:
    """Why the pip-shipped server cannot run on this machine; None where it can."""
    system, processor = platform.system(), platform.machine()
    if (system, processor) == ("Linux", "x86_64"):
        return None
    return f"the server of nvidia-pytriton runs on Linux x86_64, this is {system} {processor}"


def find_environment() -> TritonEnvironment | None:
    """The environment that an earlier call prepared, if it is whole and of these requirements."""
    found = (_open(_directory(python)) for python in PYTHONS)
    return next((environment for environment in found if environment is not None), None)


def planned_environment() -> TritonEnvironment:
    """The environment that is there, or the one that `prepare_environment` would make.

    Raises:
        EnvironmentProblem: Not Linux x86_64, or no Python that fits.
    """
    return find_environment() or _planned(_find_interpreter())


def prepare_environment(say: Callable[[str], None]) -> TritonEnvironment:
    """Find the environment, or make it: about 340 MB, in a quarter of a minute where pip is fast.

    Args:
        say: Called with a line for a person before anything that takes long.

    Raises:
        EnvironmentProblem: Not Linux x86_64, no Python that fits, no network, or a full disk.
    """
    found = find_environment()
    if found is not None:
        return found
    interpreter = _find_interpreter()
    planned = _planned(interpreter)
    with _lock(planned.directory, say):
        return _open(planned.directory) or _make(planned, interpreter, say)


def _planned(interpreter: _Interpreter) -> TritonEnvironment:
    return TritonEnvironment(
        directory=_directory(interpreter.python),
        python=interpreter.python,
        libraries=interpreter.libraries,
    )


def _directory(python: tuple[int, int]) -> Path:
    """Each recipe has a place of its own: a server may still run from the old one."""
    recipe = REQUIREMENTS.read_bytes() + _NO_BYTECODE.encode()
    digest = hashlib.sha256(recipe).hexdigest()[:12]
    return cache_root() / f"triton-py{_dotted(python)}-{digest}"


def _open(directory: Path) -> TritonEnvironment | None:
    """The environment in ``directory``; None when it is not whole, or its interpreter is gone."""
    try:
        marker = read_json(directory / MARKER)
        major, minor = marker["python"]
        libraries = Path(marker["libraries"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return None
    # `bin/python` is a link to the interpreter that it was made with.
    if not (directory / "bin" / "python").exists() or not libraries.is_dir():
        return None
    return TritonEnvironment(directory=directory, python=(major, minor), libraries=libraries)


@contextlib.contextmanager
def _lock(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process makes it, others wait; the lock dies with the process that holds it."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stream = directory.with_name(f"{directory.name}.lock").open("w")
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write below {str(directory.parent)!r}: {error}; name another directory with "
            "COFI_DEPLOY_CACHE"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is installing a Triton server into {directory}; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make(
    environment: TritonEnvironment, interpreter: _Interpreter, say: Callable[[str], None]
) -> TritonEnvironment:
    directory = environment.directory
    say(
        f"installing a Triton server into {directory} with {interpreter.path}: once, about 340 MB "
        "(COFI_DEPLOY_CACHE names another place)"
    )
    shutil.rmtree(directory, ignore_errors=True)
    _run([interpreter.path, "-m", "venv", str(directory)], environment)
    install = [str(directory / "bin" / "python"), "-m", "pip", "install", *_PIP_OPTIONS]
    _run([*install, "--requirement", str(REQUIREMENTS)], environment)
    try:
        _gather_backend(environment)
        (environment.packages / "no_bytecode.pth").write_text(_NO_BYTECODE, encoding="utf-8")
        marker = {"python": list(environment.python), "libraries": str(environment.libraries)}
        write_json(directory / MARKER, marker)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write {str(directory)!r}: {error}; free space, or name another directory with "
            "COFI_DEPLOY_CACHE"
        ) from error
    return environment


# Read by Python at its start. A server that polls takes a new __pycache__ in a version folder for a
# new version, and the stub heeds no PYTHONDONTWRITEBYTECODE.
_NO_BYTECODE = "import sys; sys.dont_write_bytecode = True\n"

# Fewer retries than pip's own five: without a network they would take minutes.
_PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--retries=1", "--disable-pip-version-check")


def _run(command: list[str], environment: TritonEnvironment) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    shutil.rmtree(environment.directory, ignore_errors=True)
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-3:]
    raise EnvironmentProblem(
        f"{' '.join(command)!r} failed: {' '.join(errors)}; without a network, fetch the packages "
        f"on another machine: pip download --no-deps --only-binary=:all: --python-version "
        f"{_dotted(environment.python)} --platform manylinux_2_35_x86_64 "
        f"--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d wheels "
        f"{' '.join(requirements())}; then here: "
        "PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels cofi-deploy serve"
    )


def requirements() -> list[str]:
    """The pinned packages, each as `name==version`."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _gather_backend(environment: TritonEnvironment) -> None:
    """The package keeps the stubs of all Pythons beside the backend; a server wants one in it."""
    shipped = environment.binary.parent.parent
    target = environment.backends / "python"
    shutil.copytree(
        shipped / "backends" / "python", target, ignore=shutil.ignore_patterns("__pycache__")
    )
    stubs = shipped / "python_backend_stubs" / _dotted(environment.python)
    shutil.copy2(stubs / "triton_python_backend_stub", target)


def _find_interpreter() -> _Interpreter:
    """This Python where it fits, else one on PATH.

    Raises:
        EnvironmentProblem: None fits, or this is no machine for the server.
    """
    reason = unsupported_reason()
    if reason is not None:
        raise EnvironmentProblem(
            f"{reason}; install tritonserver, docker or podman, and start again"
        )
    own = getattr(sys, "_base_executable", sys.executable)
    names = [own, *(f"python{_dotted(python)}" for python in PYTHONS), "python3"]
    tried = []
    for path in dict.fromkeys(found for found in map(shutil.which, names) if found):
        facts = _ask(path)
        python = None if facts is None else (facts["version"][0], facts["version"][1])
        if facts is not None and python in PYTHONS:
            return _Interpreter(path=path, python=python, libraries=Path(facts["libraries"]))
        tried.append(f"{path} ({'does not fit' if python is None else _dotted(python)})")
    raise EnvironmentProblem(
        f"the Triton server that pip installs needs Python {_PYTHON_WORDS} with its libpython, "
        f"found: {', '.join(tried) or 'none'}; install one (Debian, Ubuntu: "
        "apt install python3.12-venv libpython3.12), or tritonserver, docker or podman"
    )


def _ask(path: str) -> dict[str, Any] | None:
    try:
        done = subprocess.run(
            [path, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
        facts: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return facts


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
