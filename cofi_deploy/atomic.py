"""Files and directories that are either whole or absent.

Every stage writes through `atomic_directory`, `write_bytes` or `artifacts.write_json`, so that
kill -9, a full disk or Ctrl-C never leaves half an artifact under its final name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cofi_deploy.errors import EnvironmentProblem, UsageError

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
