"""Raw rows of any file format to checked examples.

In: text, second text and label as the file has them. Out: `Example`s, or one `DataError` that
lists up to ten bad rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cofi_deploy.errors import DataError
from cofi_deploy.tasks.files import EMPTY_TEXT, Problems, text_problem
from cofi_deploy.tasks.task import Example

logger = logging.getLogger(__name__)

MAX_LISTED_LABELS = 12
MAX_TOLERATED_SHARE = 0.001


class RawRow(NamedTuple):
    """A row before any check; `where` is the words for its place in the file."""

    where: str
    id: str
    text: object
    text_pair: object
    label: object


@dataclass(frozen=True)
class ColumnNames:
    """What the columns are called in the file, for error messages."""

    text: str
    text_pair: str | None
    label: str


LabelParser = Callable[[object], int | float]


class LabelValueError(ValueError):
    """A label that the task does not have; the text says what is allowed."""


def examples_from_rows(
    rows: Iterable[RawRow],
    names: ColumnNames,
    parse_label: LabelParser,
    problems: Problems,
    *,
    tolerated: int = 0,
) -> list[Example]:
    """Check every row.

    Args:
        rows: Of one file, in order.
        names: Its columns; without a `text_pair` the rows are single sentences.
        parse_label: Class index or score of a raw label; raises `LabelValueError`.
        problems: Of the file; may already hold some.
        tolerated: So many rows with an empty text are dropped with a warning, as long as they
            are below 0.1 % of the file. For official files that are known to have them.

    Raises:
        DataError: empty text, a label outside the allowed values, a repeated id, or no row.
    """
    examples: list[Example] = []
    empty: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for row in rows:
        wrong = _wrong_text(row, names)
        if wrong is not None and wrong[1] == EMPTY_TEXT:
            empty.append((row.where, wrong[0]))
            continue
        if wrong is not None:
            problems.add(row.where, wrong[1], wrong[0])
            continue
        if row.id in seen:
            problems.add(row.where, f"id {row.id!r} is also in {seen[row.id]}")
        seen[row.id] = row.where
        try:
            label = parse_label(row.label)
        except LabelValueError as error:
            problems.add(row.where, str(error), names.label)
            continue
        pair = str(row.text_pair) if names.text_pair is not None else None
        examples.append(Example(row.id, str(row.text), pair, label))
    _settle_empty(empty, problems, rows_read=len(seen) + len(empty), tolerated=tolerated)
    problems.raise_if_any()
    if not examples:
        raise DataError(f"{problems.origin!r} has no rows; give a file with at least one")
    return examples


def class_parser(values: Mapping[str, int]) -> LabelParser:
    """Parser of labels that must be one of `values`; integers count as their digits."""
    allowed = ", ".join(list(values)[:MAX_LISTED_LABELS])
    more = f" and {len(values) - MAX_LISTED_LABELS} more" if len(values) > MAX_LISTED_LABELS else ""

    def parse(raw: object) -> int:
        index = values.get(label_text(raw))
        if index is None:
            raise LabelValueError(f"got {raw!r}, allowed: {allowed}{more}")
        return index

    return parse


def score_parser(low: float | None = None, high: float | None = None) -> LabelParser:
    """Parser of finite scores, within [low, high] where these are given."""
    within = f"a number from {low:g} to {high:g}" if low is not None and high is not None else ""

    def parse(raw: object) -> float:
        allowed = within or "a finite number"
        try:
            score = float(raw) if isinstance(raw, str | int | float) else math.nan
        except ValueError:
            score = math.nan
        out_of_range = (low is not None and score < low) or (high is not None and score > high)
        if not math.isfinite(score) or out_of_range:
            raise LabelValueError(f"got {raw!r}, allowed: {allowed}")
        return score

    return parse


def label_text(raw: object) -> str:
    """A label as the text that names its class: `1`, `1.0` and `True` give `1`, `1`, `True`.

    Raises:
        LabelValueError: the label is empty, NaN or no single value.
    """
    if isinstance(raw, bool):
        return str(raw)
    if isinstance(raw, float) and math.isfinite(raw) and raw.is_integer():
        return str(int(raw))
    if isinstance(raw, str) and raw.strip() and raw.strip().lower() != "nan":
        return raw.strip()
    if isinstance(raw, int):
        return str(raw)
    if raw is None or isinstance(raw, str | float):
        raise LabelValueError(f"got {raw!r}, which is no label; fill it in or drop the row")
    raise LabelValueError(f"got a {type(raw).__name__}, allowed: text or a number")


def check_classes(examples: Iterable[Example], labels: tuple[str, ...], origin: str) -> None:
    """Refuse training data of one class: nothing can be learnt from it.

    Raises:
        DataError: fewer than two classes occur.
    """
    found = {example.label for example in examples}
    if len(found) < 2:
        only = next(iter(found), None)
        name = labels[only] if isinstance(only, int) else only
        raise DataError(
            f"{origin!r} column of labels holds only {name!r} in every row; "
            "training needs at least two different labels"
        )


def _wrong_text(row: RawRow, names: ColumnNames) -> tuple[str, str] | None:
    """Column and problem of the first text of a row that cannot be used."""
    for column, value in ((names.text, row.text), (names.text_pair, row.text_pair)):
        problem = text_problem(value) if column is not None else None
        if column is not None and problem is not None:
            return column, problem
    return None


def _settle_empty(
    empty: list[tuple[str, str]], problems: Problems, *, rows_read: int, tolerated: int
) -> None:
    if empty and len(empty) <= min(tolerated, rows_read * MAX_TOLERATED_SHARE):
        where = ", ".join(place for place, _ in empty)
        logger.warning("%r: dropped %d rows without text (%s)", problems.origin, len(empty), where)
        return
    for place, column in empty:
        problems.add(place, EMPTY_TEXT, column)
