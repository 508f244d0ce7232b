"""Files and directories that are either whole or absent, and the checks when they are read back.

Every stage writes through `atomic_directory` or `write_json`, so that kill -9, a full disk or
Ctrl-C never leaves half an artifact under its final name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cofi_deploy.errors import ArtifactError, ConfigError, EnvironmentProblem, UsageError

SCHEMA_VERSION = 1
RUNS_ROOT = Path("runs")
EXPORTS_ROOT = Path("exports")

# What lies at the top of every directory that we write; only such a one, or an empty one, is
# replaced, so that a slip in --output costs nobody their files.
_OUR_MARKS = ("config.json", "export.json", "state.json", "cache.json", "run.json")
_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_PICKLE_SUFFIXES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}


@contextlib.contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside ``final``; on success it takes its place.

    An existing ``final`` is replaced as a whole, and only after the new one is complete. When the
    body raises, the temporary directory is removed and ``final`` stays as it was.

    Raises:
        EnvironmentProblem: The disk is full or the place is not writable.
        UsageError: ``final`` holds files that are not ours.
    """
    _check_replaceable(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
        )
    except OSError as error:
        raise EnvironmentProblem(f"cannot write below {str(final.parent)!r}: {error}") from error
    try:
        temporary.chmod(0o755)
        yield temporary
        _fsync_tree(temporary)
        _replace_directory(temporary, final)
        _fsync(final.parent)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise EnvironmentProblem(
            f"cannot write {str(final)!r}: {error}; free space or choose another --output, "
            "nothing that was there before is lost"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep_leftovers(directory: Path) -> None:
    """Remove what killed writers left in ``directory``, and put back what they had set aside.

    Only for a directory that no other process writes to, such as a run that is resumed.
    """
    for path in directory.glob(".*.old"):
        for old in path.iterdir():
            if not (directory / old.name).exists():
                old.rename(directory / old.name)
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Keep a second process out of ``directory``; the lock dies with the process that holds it.

    Raises:
        UsageError: Another process holds it.
    """
    with (directory / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process is working in {str(directory)!r}; wait for it, or choose "
                "another --output"
            ) from error
        yield


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename.

    Raises:
        EnvironmentProblem: The disk is full or the place is not writable.
    """
    try:
        _write_bytes(path, data)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write {str(path)!r}: {error}; free space or choose another place, "
            "what was there before is kept"
        ) from error


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


def _check_replaceable(final: Path) -> None:
    if final.exists() and not final.is_dir():
        raise UsageError(f"{str(final)!r} is a file, expected a directory; choose another --output")
    if not final.is_dir() or any((final / mark).is_file() for mark in _OUR_MARKS):
        return
    stranger = min((path.name for path in final.iterdir()), default=None)
    if stranger is not None:
        raise UsageError(
            f"{str(final)!r} holds {stranger!r} and nothing that cofi-deploy wrote, and would be "
            "replaced as a whole; choose another --output"
        )


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fsync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            # safetensors writes 0600; a Triton container reads as another user.
            path.chmod(path.stat().st_mode | 0o644)
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_directory(new: Path, final: Path) -> None:
    """Put ``new`` in the place of ``final``, which becomes ``new`` or goes away."""
    if not (final.exists() or final.is_symlink()):
        new.rename(final)
        return
    if final.is_symlink() or not _exchange(new, final):
        _step_aside(new, final)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False where the kernel or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    places = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(rename(*places, _RENAME_EXCHANGE) == 0)


def _step_aside(new: Path, final: Path) -> None:
    """Rename cannot replace a filled directory, so the old one goes first; see sweep_leftovers."""
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
    final.rename(aside / final.name)
    try:
        new.rename(final)
    except OSError:
        (aside / final.name).rename(final)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
