"""The eight GLUE tasks, from the hub or from files in GLUE's own TSV layout.

In: a task name and perhaps a data directory. Out: a `SequenceTask`. GLUE's test sets have no
labels and are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cofi_deploy.errors import DataError, did_you_mean
from cofi_deploy.tasks import metrics
from cofi_deploy.tasks.division import Indices, holdout_size, pick_stratified
from cofi_deploy.tasks.files import (
    Problems,
    check_data_dir,
    find_file,
    missing_file,
    read_text,
    text_lines,
)
from cofi_deploy.tasks.hub import load_hub_dataset
from cofi_deploy.tasks.rows import (
    MAX_TOLERATED_SHARE,
    ColumnNames,
    LabelParser,
    RawRow,
    check_classes,
    class_parser,
    examples_from_rows,
    score_parser,
)
from cofi_deploy.tasks.sequence import SequenceTask
from cofi_deploy.tasks.task import Example, Source, Splits

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

HUB_ID = "nyu-mll/glue"
MAX_SCORE = 5.0


@dataclass(frozen=True, kw_only=True)
class GlueSpec:
    """What is particular to one GLUE task.

    Attributes:
        folder: Its folder in the GLUE download.
        labels: Class names in the hub's order; empty for scores.
        columns: Header names in the TSV files.
        hub_columns: The same on the hub.
        metric_name: Primary metric, a key of what `metric` returns.
        metric: Official metrics.
        numbered: True where the TSV files hold 0 and 1 instead of class names.
        fields_without_header: Names of the fields of a file without a header.
        tolerated: Broken rows that the official file is known to have, at most.
    """

    folder: str
    labels: tuple[str, ...]
    columns: ColumnNames
    hub_columns: ColumnNames
    metric_name: str = "accuracy"
    metric: metrics.MetricFunction = metrics.accuracy
    numbered: bool = False
    fields_without_header: tuple[str, ...] = ()
    tolerated: int = 0


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ColumnNames("sentence1", "sentence2", "label")

GLUE: Mapping[str, GlueSpec] = {
    "cola": GlueSpec(
        folder="CoLA",
        labels=("unacceptable", "acceptable"),
        columns=ColumnNames("sentence", None, "label"),
        hub_columns=ColumnNames("sentence", None, "label"),
        metric_name="matthews_correlation",
        metric=metrics.matthews_correlation,
        numbered=True,
        fields_without_header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueSpec(
        folder="SST-2",
        labels=("negative", "positive"),
        columns=ColumnNames("sentence", None, "label"),
        hub_columns=ColumnNames("sentence", None, "label"),
        numbered=True,
    ),
    "mrpc": GlueSpec(
        folder="MRPC",
        labels=("not_equivalent", "equivalent"),
        columns=ColumnNames("#1 String", "#2 String", "Quality"),
        hub_columns=_SENTENCES,
        metric=metrics.accuracy_and_f1,
        numbered=True,
    ),
    "stsb": GlueSpec(
        folder="STS-B",
        labels=(),
        columns=ColumnNames("sentence1", "sentence2", "score"),
        hub_columns=_SENTENCES,
        metric_name="pearson",
        metric=metrics.correlations,
    ),
    "qqp": GlueSpec(
        folder="QQP",
        labels=("not_duplicate", "duplicate"),
        columns=ColumnNames("question1", "question2", "is_duplicate"),
        hub_columns=ColumnNames("question1", "question2", "label"),
        metric=metrics.accuracy_and_f1,
        numbered=True,
        tolerated=30,
    ),
    "mnli": GlueSpec(
        folder="MNLI",
        labels=("entailment", "neutral", "contradiction"),
        columns=ColumnNames("sentence1", "sentence2", "gold_label"),
        hub_columns=ColumnNames("premise", "hypothesis", "label"),
    ),
    "qnli": GlueSpec(
        folder="QNLI",
        labels=_ENTAILMENT,
        columns=ColumnNames("question", "sentence", "label"),
        hub_columns=ColumnNames("question", "sentence", "label"),
    ),
    "rte": GlueSpec(folder="RTE", labels=_ENTAILMENT, columns=_SENTENCES, hub_columns=_SENTENCES),
}


def load_glue(
    name: str, *, data_dir: Path | None, max_length: int, seed: int, holdout: float | None
) -> SequenceTask:
    """One GLUE task.

    Args:
        name: A key of `GLUE`.
        data_dir: Holds the task's folder, or a folder `glue` with it, or is it; None for the hub.
        max_length: Tokens.
        seed: Of the choice of the held-out examples.
        holdout: Share of train that becomes `selection`; None for the default.

    Raises:
        DataError: the data directory or its dev file is missing. A missing train file is told
            when the train split is asked for.
        HubUnreachableError: no data directory, no network, and nothing cached.
    """
    spec = GLUE[name]
    if data_dir is None:
        train, validation = _hub_sources(name, spec)
    else:
        train, validation = _file_sources(name, spec, data_dir)

    def divide(examples: Sequence[Example]) -> Indices:
        check_classes(examples, spec.labels, train.description)
        size = holdout_size(len(examples), holdout, train.description)
        labels = [float(example.label or 0) for example in examples]
        return pick_stratified(labels, size, seed=seed, classes=bool(spec.labels))

    return SequenceTask(
        name=name,
        kind="text-classification" if spec.labels else "text-regression",
        labels=spec.labels,
        metric_name=spec.metric_name,
        max_length=max_length,
        splits=Splits(train, validation, divide),
        metrics=spec.metric,
    )


def _file_sources(name: str, spec: GlueSpec, data_dir: Path) -> tuple[Source, Source]:
    check_data_dir(data_dir)
    folders = [data_dir / spec.folder, data_dir / "glue" / spec.folder, data_dir / name, data_dir]
    dev_names = ["dev_matched.tsv", "dev.tsv"] if name == "mnli" else ["dev.tsv"]
    dev_file = find_file(folders, dev_names)
    if dev_file is None:
        raise missing_file(f"dev file of {name}", folders, dev_names)
    train_file = find_file([dev_file.parent], ["train.tsv"])

    def read_train() -> list[Example]:
        if train_file is None:
            raise missing_file(f"train file of {name}", [dev_file.parent], ["train.tsv"])
        return read_glue_file(train_file, spec)

    train = Source(str(train_file or dev_file.parent / "train.tsv"), read_train)
    return train, Source(str(dev_file), lambda: read_glue_file(dev_file, spec))


def read_glue_file(path: Path, spec: GlueSpec) -> list[Example]:
    """Parse one TSV file; a `"` is an ordinary character, columns are found by their names.

    Raises:
        DataError: the file is unreadable, or rows of it are wrong: up to ten are listed.
    """
    lines = text_lines(read_text(path))
    problems = Problems(str(path))
    rows = _split_rows(lines, spec, problems)
    return examples_from_rows(
        rows, spec.columns, _label_parser(spec), problems, tolerated=spec.tolerated
    )


def _split_rows(lines: list[str], spec: GlueSpec, problems: Problems) -> Iterator[RawRow]:
    header = list(spec.fields_without_header) or lines[0].split("\t")
    first = 0 if spec.fields_without_header else 1
    columns = spec.columns
    text, label = (_position(header, name, problems) for name in (columns.text, columns.label))
    pair = text if columns.text_pair is None else _position(header, columns.text_pair, problems)
    broken: list[tuple[str, str]] = []
    for at, line in enumerate(lines[first:]):
        fields = line.split("\t")
        where = f"line {at + first + 1}"
        if len(fields) != len(header):
            broken.append((where, f"{len(fields)} columns, expected {len(header)}"))
            continue
        yield RawRow(where, str(at), fields[text], fields[pair], fields[label])
    if broken and len(broken) <= min(spec.tolerated, len(lines) * MAX_TOLERATED_SHARE):
        places = ", ".join(where for where, _ in broken)
        logger.warning("%r: dropped broken rows (%s)", problems.origin, places)
        return
    for where, text_of_problem in broken:
        problems.add(where, text_of_problem)


def _position(header: list[str], name: str, problems: Problems) -> int:
    if name not in header:
        raise DataError(
            f"{problems.origin!r} line 1: no column {name!r} in the header, "
            f"{did_you_mean(name, header)}"
        )
    return header.index(name)


def _label_parser(spec: GlueSpec) -> LabelParser:
    if not spec.labels:
        return score_parser(0.0, MAX_SCORE)
    if spec.numbered:
        return class_parser({str(index): index for index in range(len(spec.labels))})
    return class_parser({label: index for index, label in enumerate(spec.labels)})


def _hub_sources(name: str, spec: GlueSpec) -> tuple[Source, Source]:
    way_on = "point --data-dir at a local copy of GLUE (its TSV layout)"
    loaded = load_hub_dataset(HUB_ID, name, way_on=way_on)
    dev = "validation_matched" if name == "mnli" else "validation"

    def source(split: str) -> Source:
        origin = f"{HUB_ID}/{name}[{split}]"
        return Source(origin, lambda: hub_examples(loaded, split, spec, origin))

    return source("train"), source(dev)


def hub_examples(loaded: DatasetDict, split: str, spec: GlueSpec, origin: str) -> list[Example]:
    """Examples of one split in the hub's columns, with the checks that files get.

    Raises:
        DataError: a split or column is missing, or rows are wrong.
    """
    if split not in loaded:
        raise DataError(f"{origin!r}: no split {split!r}, {did_you_mean(split, loaded)}")
    columns = spec.hub_columns
    table = loaded[split]
    texts = table[columns.text][:]
    pairs = table[columns.text_pair][:] if columns.text_pair else texts
    numbers = {str(index): index for index in range(len(spec.labels))}
    parse = class_parser(numbers) if spec.labels else score_parser(0.0, MAX_SCORE)
    rows = (
        RawRow(f"row {at + 1}", str(at), text, pair, label)
        for at, (text, pair, label) in enumerate(
            zip(texts, pairs, table[columns.label][:], strict=True)
        )
    )
    return examples_from_rows(rows, columns, parse, Problems(origin), tolerated=spec.tolerated)
