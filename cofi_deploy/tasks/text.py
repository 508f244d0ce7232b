"""Text classification and regression on the user's own data.

In: a file, a folder or a hub data set id. Out: a `SequenceTask`. Next: `tables.py` for the
formats, `columns.py` for the columns, `rows.py` for the checks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cofi_deploy.errors import ConfigError, DataError, did_you_mean
from cofi_deploy.tasks import metrics
from cofi_deploy.tasks.columns import Columns, choose_columns
from cofi_deploy.tasks.division import Indices, holdout_size, pick_stratified
from cofi_deploy.tasks.files import Problems
from cofi_deploy.tasks.hub import load_hub_dataset
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
from cofi_deploy.tasks.tables import SUFFIXES, Row, Table, format_of, read_table
from cofi_deploy.tasks.task import Example, Source, Splits

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

TextKind = Literal["text-classification", "text-regression"]
TEXT_KINDS: tuple[TextKind, ...] = ("text-classification", "text-regression")

TRAIN_NAMES = ("train", "training")
DEV_NAMES = ("validation", "valid", "val", "dev", "test")
MIN_ROWS_FOR_SCORE_HINT = 20


@dataclass(frozen=True)
class _Tables:
    train: Table
    validation: Table | None


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
    tables = _find_tables(data)
    chosen = choose_columns(tables.train.columns, columns, tables.train.origin)
    if tables.validation is not None:
        _check_columns(tables.validation, chosen)
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


def _find_tables(data: str) -> _Tables:
    path = Path(data).expanduser()
    if path.is_file():
        return _Tables(read_table(path), None)
    if path.is_dir():
        return _folder_tables(path)
    looks_like_path = data.startswith((".", "/", "~")) or data.count("/") > 1
    if looks_like_path or format_of(path) is not None:
        raise DataError(f"--data {data!r} does not exist; give a file, a folder or a hub id")
    return _hub_tables(data)


def _folder_tables(folder: Path) -> _Tables:
    files = sorted(path for path in folder.iterdir() if path.is_file() and format_of(path))
    train = _named(files, TRAIN_NAMES) or (files[0] if len(files) == 1 else None)
    if train is None:
        listed = ", ".join(path.name for path in files) or "none"
        raise DataError(
            f"--data {str(folder)!r}: looked for train with one of {', '.join(SUFFIXES)} (or .gz), "
            f"found data files: {listed}; name the training file train, or give one file"
        )
    dev = _named(files, DEV_NAMES)
    return _Tables(read_table(train), read_table(dev) if dev is not None else None)


def _named(files: Sequence[Path], names: Sequence[str]) -> Path | None:
    for name in names:
        matching = [path for path in files if path.name.lower().split(".")[0] == name]
        if len(matching) > 1:
            raise DataError(
                f"{str(matching[0].parent)!r} has {len(matching)} files named {name} "
                f"({', '.join(path.name for path in matching)}); keep one"
            )
        if matching:
            return matching[0]
    return None


def _hub_tables(dataset_id: str) -> _Tables:
    way_on = "point --data at a local file or folder"
    loaded = load_hub_dataset(dataset_id, None, way_on=way_on)
    if "train" not in loaded:
        raise DataError(f"{dataset_id!r}: no split 'train', {did_you_mean('train', loaded)}")
    dev = next((name for name in DEV_NAMES if name in loaded), None)
    validation = table_from_hub(loaded[dev], f"{dataset_id}[{dev}]") if dev else None
    return _Tables(table_from_hub(loaded["train"], f"{dataset_id}[train]"), validation)


def table_from_hub(dataset: Dataset, origin: str) -> Table:
    """A hub split as a table; integer labels with known names keep these."""
    names = {
        column: tuple(feature.names)
        for column, feature in dataset.features.items()
        if getattr(feature, "names", None)
    }
    rows = [Row(f"row {at}", dict(values)) for at, values in enumerate(dataset, start=1)]
    return Table(origin, tuple(dataset.column_names), rows, names)


def _check_columns(table: Table, chosen: Columns) -> None:
    for name in (chosen.text, chosen.text_pair, chosen.label):
        if name is not None and name not in table.columns:
            raise ConfigError(
                f"{table.origin!r} has no column {name!r}, which the train data has; "
                f"{did_you_mean(name, table.columns)}"
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
