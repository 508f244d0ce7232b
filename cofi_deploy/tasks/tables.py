"""The user's own files as tables: csv, tsv, JSON lines, JSON, parquet and CoNLL columns.

In: a file. Out: column names and rows as the file has them, each with the words for its place.
Next: `text.py`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.errors import DataError
from cofi_deploy.tasks.files import Problems, read_text, text_lines

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".conll")


@dataclass(frozen=True)
class Row:
    """One record; `where` is the words for its place in the file."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A file or hub split, unchecked beyond its format.

    Attributes:
        origin: File or hub split.
        columns: In the file's order.
        rows: In the file's order.
        label_names: Names of integer labels, by column, where the hub knows them.
    """

    origin: str
    columns: tuple[str, ...]
    rows: list[Row]
    label_names: Mapping[str, tuple[str, ...]]


def format_of(path: Path) -> str | None:
    """The suffix that says how to read a file, without `.gz`; None if it is none of ours."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    suffix = {".ndjson": ".jsonl", ".bio": ".conll", ".iob": ".conll"}.get(suffix, suffix)
    return suffix if suffix in SUFFIXES else None


def read_table(path: Path) -> Table:
    """Read one file; lines of csv and tsv are counted from 1, with the header.

    csv is comma-separated (semicolons, where the header has only these) with `"` as quote; tsv is
    split on tabs, and a `"` in it is an ordinary character. A line of a CoNLL file is a word and,
    last, its tag; an empty line ends a sentence. The table's columns are `tokens` and `tags`.

    Raises:
        DataError: unknown suffix, or a file that is not what its suffix says.
    """
    suffix = format_of(path)
    if suffix is None:
        raise DataError(f"{str(path)!r} has none of the suffixes {', '.join(SUFFIXES)} (or .gz)")
    if suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if suffix == ".csv":
        return _separated(path, _csv_records(path, text))
    if suffix == ".tsv":
        lines = enumerate(text_lines(text), start=1)
        return _separated(path, ((at, line.split("\t")) for at, line in lines))
    if suffix == ".conll":
        return _conll(path, text)
    rows = _json_lines(path, text) if suffix == ".jsonl" else _json_rows(path, text)
    return _from_objects(path, rows)


def _separated(path: Path, records: Iterator[tuple[int, list[str]]]) -> Table:
    _, header = next(records)
    problems = Problems(str(path))
    columns = [name.strip() for name in header]
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        problems.add("line 1", f"the header repeats {', '.join(map(repr, repeated))}")
    rows: list[Row] = []
    for line, fields in records:
        where = f"line {line}"
        if len(fields) == len(columns):
            rows.append(Row(where, dict(zip(columns, fields, strict=True))))
        elif any(field.strip() for field in fields):
            problems.add(where, f"{len(fields)} columns, expected {len(columns)}")
    problems.raise_if_any()
    return Table(str(path), tuple(columns), rows, {})


def _csv_records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each starts on; a quoted field may span lines."""
    header = text.split("\n", 1)[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r} line {line}: not csv ({error}); is a quote left open?"
        ) from error


def _json_lines(path: Path, text: str) -> list[Row]:
    problems = Problems(str(path))
    rows: list[Row] = []
    for at, line in enumerate(text_lines(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(f"line {at}", f"not JSON ({error.msg} at column {error.colno})")
            continue
        if isinstance(value, dict):
            rows.append(Row(f"line {at}", value))
        else:
            problems.add(f"line {at}", f"got a JSON {type(value).__name__}, expected an object")
    problems.raise_if_any()
    return rows


def _json_rows(path: Path, text: str) -> list[Row]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, text)
        raise DataError(
            f"{str(path)!r} line {error.lineno}, column {error.colno} is not JSON ({error.msg}); "
            "the file may be cut off"
        ) from error
    items = content.get("data", [content]) if isinstance(content, dict) else content
    problems = Problems(str(path))
    if not isinstance(items, list):
        raise DataError(
            f"{str(path)!r} holds no list of objects; give [{{...}}, ...] or JSON lines"
        )
    rows: list[Row] = []
    for at, item in enumerate(items, start=1):
        if isinstance(item, dict):
            rows.append(Row(f"row {at}", item))
        else:
            problems.add(f"row {at}", f"got a JSON {type(item).__name__}, expected an object")
    problems.raise_if_any()
    return rows


def _conll(path: Path, text: str) -> Table:
    """Sentences of (word, ..., tag) lines; columns are divided by tabs, or else by spaces."""
    problems = Problems(str(path))
    rows: list[Row] = []
    words: list[str] = []
    tags: list[str] = []
    first = 0
    for at, line in enumerate([*text_lines(text), ""], start=1):
        if line.strip() and not line.startswith("-DOCSTART-"):
            fields = line.split("\t") if "\t" in line else line.split()
            if len(fields) < 2:
                problems.add(f"line {at}", f"got {line!r}, expected a word and its tag")
                continue
            first = first or at
            words.append(fields[0])
            tags.append(fields[-1].strip())
        elif words:
            rows.append(Row(f"line {first}", {"tokens": words, "tags": tags}))
            words, tags, first = [], [], 0
    problems.raise_if_any()
    return Table(str(path), ("tokens", "tags"), rows, {})


def _from_objects(path: Path, rows: list[Row]) -> Table:
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    return Table(str(path), columns, rows, {})


def _parquet(path: Path) -> Table:
    # Takes half a second to import, and only parquet needs it.
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    try:
        content = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} is not a whole parquet file ({error})") from error
    rows = [Row(f"row {at}", values) for at, values in enumerate(content.to_pylist(), start=1)]
    return Table(str(path), tuple(content.column_names), rows, {})
