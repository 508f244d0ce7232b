"""What stages leave for each other on disk: JSON, settings, checksums, and what is refused.

Next file: `atomic.py`, how they are written.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cofi_deploy.atomic import write_bytes
from cofi_deploy.errors import ArtifactError, ConfigError, UsageError

SCHEMA_VERSION = 1
RUNS_ROOT = Path("runs")
EXPORTS_ROOT = Path("exports")

_PICKLE_SUFFIXES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` with a ``schema_version``, whole or not at all."""
    document = {"schema_version": SCHEMA_VERSION, **data}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def _make_again(_: Mapping[str, Any]) -> str:
    return "make the artifact again"


def read_json(
    path: Path, *, remedy: Callable[[Mapping[str, Any]], str] = _make_again
) -> dict[str, Any]:
    """Read a JSON file that one of our stages wrote.

    Args:
        path: The file.
        remedy: Says of a file of a newer schema how this version makes it again.

    Raises:
        ArtifactError: Absent, not JSON, not an object, or of a newer schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{str(path)!r} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON
        raise ArtifactError(f"{str(path)!r} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{str(path)!r} holds a {type(data).__name__}, expected an object")
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{str(path)!r} has schema_version {version!r}, but this cofi-deploy reads up to "
            f"{SCHEMA_VERSION}; upgrade cofi-deploy or {remedy(data)}"
        )
    return data


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        ConfigError: Absent, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read settings from {str(path)!r}: {error}") from error


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksums(directory: Path, *, exclude: frozenset[str] = frozenset()) -> dict[str, str]:
    """SHA-256 of every file below ``directory``, keyed by POSIX path relative to it."""
    return {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).as_posix() not in exclude
    }


def check_checksums(directory: Path, expected: Mapping[str, str], *, remedy: str) -> None:
    """Compare files with the checksums that were recorded when they were written.

    Raises:
        ArtifactError: A file is missing or its bytes changed; names it and says ``remedy``.
    """
    for name, digest in expected.items():
        path = directory / name
        check_inside(directory, path)
        if not path.is_file():
            raise ArtifactError(f"{str(path)!r} is missing; {remedy}")
        got = sha256_file(path)
        if got != digest:
            raise ArtifactError(
                f"{str(path)!r} has sha256 {got[:12]}, but {digest[:12]} was recorded when it was "
                f"written: it is corrupt, truncated or was replaced; {remedy}"
            )


def check_inside(directory: Path, path: Path) -> None:
    """Refuse paths and symlinks that leave ``directory``.

    Raises:
        ArtifactError: ``path`` resolves to a place outside.
    """
    if not _is_inside(directory, path.resolve()):
        raise ArtifactError(f"{str(path)!r} points outside of {str(directory)!r}; refused")


def check_model_directory(directory: Path) -> None:
    """Refuse what could run code or read elsewhere: pickles as weights, code, stray symlinks.

    Raises:
        ArtifactError: The first offender, and what to do about it.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{str(directory)!r} is not a directory; expected a model directory")
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            _check_symlink(directory, path)
        if path.suffix == ".py":
            raise ArtifactError(
                f"{str(path)!r} is code in a model directory; cofi-deploy never runs it: remove it"
            )
    if not list(directory.glob("*.safetensors")):
        _raise_no_safetensors(directory)


def newest_run(root: Path = RUNS_ROOT) -> Path:
    """The most recent finished run below ``root``.

    Raises:
        UsageError: There is none; says how to make one.
    """
    finished = [
        path.parent
        for path in root.glob("*/run.json")
        if _state_of(path) == "done" and (path.parent / "model").is_dir()
    ]
    if not finished:
        raise UsageError(
            f"no finished run below {str(root)!r}; name a model, or train one first: "
            "cofi-deploy train --task mrpc"
        )
    return max(finished, key=lambda run: (run / "run.json").stat().st_mtime)


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def _is_inside(directory: Path, target: Path) -> bool:
    # A hub cache stores weights as links into its own blobs folder, two levels up; that is not
    # "leaving" in any harmful sense, and it is the only exception.
    real = directory.resolve()
    return target.is_relative_to(real) or target.is_relative_to(real.parent.parent / "blobs")


def _check_symlink(directory: Path, path: Path) -> None:
    target = path.resolve()
    if not _is_inside(directory, target):
        raise ArtifactError(
            f"{str(path)!r} is a symlink to {str(target)!r}, outside of it; refused"
        )


def _raise_no_safetensors(directory: Path) -> None:
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise ArtifactError(
            f"{str(directory)!r} holds its weights as a pickle ({pickles[0]}), which can run code "
            "when opened; convert it once with transformers: "
            "model.save_pretrained(path, safe_serialization=True)"
        )
    raise ArtifactError(f"{str(directory)!r} holds no *.safetensors; expected a model directory")


def _state_of(run_json: Path) -> str | None:
    try:
        state = read_json(run_json).get("state")
    except ArtifactError:
        return None
    return state if isinstance(state, str) else None
