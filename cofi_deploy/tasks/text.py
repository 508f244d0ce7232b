"""Text classification and regression on the user's own data.

In: a file, a folder or a hub data set id. Out: a `SequenceTask`. Next: `own_data.py` finds the
files, `columns.py` the columns, `rows.py` has the checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from cofi_deploy.errors import DataError
from cofi_deploy.tasks import metrics
from cofi_deploy.tasks.columns import Columns, choose_columns
from cofi_deploy.tasks.division import Indices, holdout_size, pick_stratified
from cofi_deploy.tasks.files import Problems
from cofi_deploy.tasks.own_data import check_columns, find_tables
from cofi_deploy.tasks.rows import (
    ColumnNames,
    LabelParser,
    LabelValueError,
    RawRow,
    check_classes,
    class_parser,
    examples_from_rows,
    label_text,
    score_parser,
)
from cofi_deploy.tasks.sequence import SequenceTask
from cofi_deploy.tasks.tables import Table
from cofi_deploy.tasks.task import Example, Source, Splits

TextKind = Literal["text-classification", "text-regression"]
TEXT_KINDS: tuple[TextKind, ...] = ("text-classification", "text-regression")

MIN_ROWS_FOR_SCORE_HINT = 20


def load_text(
    kind: str,
    *,
    data: str,
    columns: Mapping[str, str],
    max_length: int,
    seed: int,
    holdout: float | None,
) -> SequenceTask:
    """A task on the user's data; classes are those that occur in train, by their names.

    A folder has a train file and perhaps a dev file (validation, valid, val, dev; else test).
    Where there is none, `validation` is a seeded slice of train, stratified by label, of the same
    size as `selection`.

    Args:
        kind: `text-classification` or `text-regression`.
        data: File, folder or hub id.
        columns: The user's column names; guessed for the rest.
        max_length: Tokens.
        seed: Of the choice of the held-out examples.
        holdout: Share of train that becomes `selection` (and `validation`, where it is cut).

    Raises:
        ConfigError: columns that are not there, or not obvious.
        DataError: files that are missing or bad.
        HubUnreachableError: a hub id without a network and without a cached copy.
    """
    tables = find_tables(data)
    chosen = choose_columns(tables.train.columns, columns, tables.train.origin)
    if tables.validation is not None:
        check_columns(tables.validation, (chosen.text, chosen.text_pair, chosen.label))
    classes = kind == "text-classification"
    labels = _label_names(tables.train, chosen) if classes else ()
    parse = (
        class_parser({name: at for at, name in enumerate(labels)}) if classes else score_parser()
    )

    def source(table: Table) -> Source:
        return Source(table.origin, lambda: _examples(table, chosen, parse))

    def divide(examples: Sequence[Example]) -> Indices:
        check_classes(examples, labels, tables.train.origin)
        size = holdout_size(len(examples), holdout, tables.train.origin)
        values = [float(example.label or 0) for example in examples]
        return pick_stratified(values, size, seed=seed, classes=classes)

    return SequenceTask(
        name=kind,
        kind=cast("TextKind", kind),
        labels=labels,
        metric_name="accuracy" if classes else "pearson",
        max_length=max_length,
        splits=Splits(
            source(tables.train),
            source(tables.validation) if tables.validation is not None else None,
            divide,
            divide,
        ),
        metrics=metrics.accuracy_and_macro_f1 if classes else metrics.correlations,
    )


def _label_names(table: Table, chosen: Columns) -> tuple[str, ...]:
    """Distinct labels: in the hub's order where it has one, else by number, else by name."""
    if chosen.label in table.label_names:
        return table.label_names[chosen.label]
    problems = Problems(table.origin)
    found: set[str] = set()
    for row in table.rows:
        try:
            found.add(label_text(row.values.get(chosen.label)))
        except LabelValueError as error:
            problems.add(row.where, str(error), chosen.label)
    problems.raise_if_any()
    if len(table.rows) >= MIN_ROWS_FOR_SCORE_HINT and 2 * len(found) > len(table.rows):
        raise DataError(
            f"{table.origin!r} column {chosen.label!r} has {len(found)} different labels in "
            f"{len(table.rows)} rows; name the right label column, "
            "or use text-regression for scores"
        )
    return tuple(sorted(found, key=_by_number_then_name))


def _by_number_then_name(label: str) -> tuple[float, str]:
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label


def _examples(table: Table, chosen: Columns, parse: LabelParser) -> list[Example]:
    known = table.label_names.get(chosen.label)
    names = ColumnNames(chosen.text, chosen.text_pair, chosen.label)

    def label(values: Mapping[str, Any]) -> object:
        raw = values.get(chosen.label)
        return known[raw] if known and isinstance(raw, int) and 0 <= raw < len(known) else raw

    rows = (
        RawRow(
            row.where,
            str(row.values.get(chosen.id, at)) if chosen.id is not None else str(at),
            row.values.get(chosen.text),
            row.values.get(chosen.text_pair) if chosen.text_pair is not None else None,
            label(row.values),
        )
        for at, row in enumerate(table.rows)
    )
    return examples_from_rows(rows, names, parse, Problems(table.origin))
