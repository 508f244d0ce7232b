"""Where the user's own data is: a file, a folder with a train file, or a hub data set.

In: what follows `--data`. Out: `Tables`. Next: `tables.py` for the formats; `text.py`, `tokens.py`
and `questions.py` make tasks of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cofi_deploy.errors import ConfigError, DataError, did_you_mean
from cofi_deploy.tasks.hub import load_hub_dataset
from cofi_deploy.tasks.tables import SUFFIXES, Row, Table, format_of, read_table

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN_NAMES = ("train", "training")
DEV_NAMES = ("validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class Tables:
    """Training data, and dev data where there is some."""

    train: Table
    validation: Table | None


def find_tables(data: str) -> Tables:
    """Read what `--data` names; of a folder the train file and perhaps a dev file.

    Raises:
        DataError: files that are missing or bad.
        HubUnreachableError: a hub id without a network and without a cached copy.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return Tables(read_table(path), None)
    if path.is_dir():
        return _folder_tables(path)
    looks_like_path = data.startswith((".", "/", "~")) or data.count("/") > 1
    if looks_like_path or format_of(path) is not None:
        raise DataError(f"--data {data!r} does not exist; give a file, a folder or a hub id")
    return _hub_tables(data)


def _folder_tables(folder: Path) -> Tables:
    files = sorted(path for path in folder.iterdir() if path.is_file() and format_of(path))
    train = _named(files, TRAIN_NAMES) or (files[0] if len(files) == 1 else None)
    if train is None:
        listed = ", ".join(path.name for path in files) or "none"
        raise DataError(
            f"--data {str(folder)!r}: looked for train with one of {', '.join(SUFFIXES)} (or .gz), "
            f"found data files: {listed}; name the training file train, or give one file"
        )
    dev = _named(files, DEV_NAMES)
    return Tables(read_table(train), read_table(dev) if dev is not None else None)


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


def _hub_tables(dataset_id: str) -> Tables:
    way_on = "point --data at a local file or folder"
    loaded = load_hub_dataset(dataset_id, None, way_on=way_on)
    if "train" not in loaded:
        raise DataError(f"{dataset_id!r}: no split 'train', {did_you_mean('train', loaded)}")
    dev = next((name for name in DEV_NAMES if name in loaded), None)
    validation = table_from_hub(loaded[dev], f"{dataset_id}[{dev}]") if dev else None
    return Tables(table_from_hub(loaded["train"], f"{dataset_id}[train]"), validation)


def table_from_hub(dataset: Dataset, origin: str) -> Table:
    """A hub split as a table; integer labels with known names keep these."""
    names = {
        column: tuple(names)
        for column, feature in dataset.features.items()
        if (names := _class_names(feature)) is not None
    }
    rows = [Row(f"row {at}", dict(values)) for at, values in enumerate(dataset, start=1)]
    return Table(origin, tuple(dataset.column_names), rows, names)


def check_columns(table: Table, names: Sequence[str | None]) -> None:
    """Refuse a dev file without a column of the train file.

    Raises:
        ConfigError: names the column.
    """
    for name in names:
        if name is not None and name not in table.columns:
            raise ConfigError(
                f"{table.origin!r} has no column {name!r}, which the train data has; "
                f"{did_you_mean(name, table.columns)}"
            )


def _class_names(feature: object) -> Sequence[str] | None:
    """Of a class label, or of a list of class labels as token tags are."""
    names: Sequence[str] | None = getattr(feature, "names", None)
    return names or getattr(getattr(feature, "feature", None), "names", None)
