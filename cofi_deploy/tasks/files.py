"""Data files as text, and what is wrong with them in words: file, row and column.

In: a path, `.gz` or not. Out: decoded text, or a `DataError`. The readers of the formats
(`glue.py`, `tables.py`, `squad.py`) build on this file.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from cofi_deploy.errors import DataError

MAX_PROBLEMS = 10
EMPTY_TEXT = "the text is empty; fill it in or drop the row"


class MissingDataError(DataError):
    """A file that this copy of a data set does not have."""


class Problems:
    """Collects what is wrong with one file, so that the user learns of up to ten at once."""

    def __init__(self, origin: str) -> None:
        """Name the file (or hub split) that the problems are in."""
        self.origin = origin
        self._found: list[str] = []

    def add(self, where: str, text: str, column: str | None = None) -> None:
        """Note one problem of a row.

        Raises:
            DataError: this is the tenth, and reading on would teach no more.
        """
        place = where if column is None else f"{where}, column {column!r}"
        self._found.append(f"{place}: {text}")
        if len(self._found) >= MAX_PROBLEMS:
            self.raise_if_any(cut_short=True)

    def raise_if_any(self, *, cut_short: bool = False) -> None:
        """Report everything found so far.

        Raises:
            DataError: there was at least one problem.
        """
        if not self._found:
            return
        listed = "; ".join(self._found)
        tail = f" (stopped after {MAX_PROBLEMS} problems)" if cut_short else ""
        raise DataError(f"{self.origin!r} {listed}{tail}")


def read_text(path: Path) -> str:
    """The whole file as text: UTF-8, unpacked when its name ends in `.gz`, without a BOM.

    Raises:
        DataError: the file cannot be read, is empty, is cut off, or is not UTF-8.
    """
    content = _read_bytes(path)
    if not content.strip():
        raise DataError(f"{str(path)!r} is empty; give a file with at least one row")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{str(path)!r} line {line}: byte 0x{content[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from error


def text_lines(text: str) -> list[str]:
    r"""Lines ended by `\n` or `\r\n` only, without empty ones at the end.

    `str.splitlines` also breaks at form feeds and U+2028, which sentences may contain.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def text_problem(value: object) -> str | None:
    """Why a value of a file cannot be a text to learn from, or None."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return EMPTY_TEXT
    if not isinstance(value, str):
        return f"got {value!r}, expected text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"character {error.start + 1} is half of a surrogate pair, expected Unicode text"
    return None


def find_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of `names`, plain or with `.gz`, in the first of `folders` that has one."""
    for folder in folders:
        for name in names:
            for candidate in (folder / name, folder / f"{name}.gz"):
                if candidate.is_file():
                    return candidate
    return None


def missing_file(what: str, folders: Sequence[Path], names: Sequence[str]) -> MissingDataError:
    """The error for a file that `find_file` did not find: what was looked for, and where."""
    looked = ", ".join(repr(str(folder)) for folder in folders)
    wanted = " or ".join(names)
    return MissingDataError(
        f"no {what}: looked for {wanted} (or .gz) in {looked}; check --data-dir"
    )


def check_data_dir(data_dir: Path) -> None:
    """Refuse a data directory that is not there.

    Raises:
        DataError: the path does not exist or is a file.
    """
    if not data_dir.exists():
        raise DataError(f"--data-dir {str(data_dir)!r} does not exist; give an existing folder")
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {str(data_dir)!r} is a file; give the folder it lies in")


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{str(path)!r} is not a whole gzip file ({error}); fetch it again"
        ) from error
