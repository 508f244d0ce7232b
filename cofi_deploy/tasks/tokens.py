"""Token classification on the user's own data: named entities, parts of speech.

In: sentences as words with one tag each (CoNLL columns, or lists in JSON lines, JSON, parquet or on
the hub). Out: a `TokenTask`. Next: `token_features.py`, `token_metric.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cofi_deploy.errors import DataError
from cofi_deploy.kinds import TaskKind
from cofi_deploy.tasks.columns import choose_roles
from cofi_deploy.tasks.division import Indices, holdout_size, pick_stratified
from cofi_deploy.tasks.encoding import EncodedSplit, take
from cofi_deploy.tasks.files import Problems, text_problem
from cofi_deploy.tasks.outputs import check_outputs
from cofi_deploy.tasks.own_data import check_columns, find_tables
from cofi_deploy.tasks.rows import MAX_LISTED_LABELS, LabelValueError, label_text
from cofi_deploy.tasks.tables import Row, Table
from cofi_deploy.tasks.task import Example, Outputs, Source, Splits
from cofi_deploy.tasks.token_features import NO_WORD, encode_words
from cofi_deploy.tasks.token_metric import OUTSIDE, marks_entities, tag_order, token_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USUAL_COLUMNS = {
    "tokens": ("tokens", "words", "token", "word", "sentence"),
    "tags": ("ner_tags", "tags", "ner", "labels", "entities", "pos_tags", "tag", "label"),
    "id": ("id",),
}


@dataclass(frozen=True, kw_only=True)
class TokenTask:
    """Tagging of words; see `task.Task` for the contract."""

    name: str
    max_length: int
    splits: Splits
    labels: tuple[str, ...]
    kind: TaskKind = "token-classification"

    @property
    def metric_name(self) -> str:
        """Entity F1 where tags mark entities, else the share of words tagged right."""
        return "f1" if marks_entities(self.labels) else "accuracy"

    def fingerprint(self) -> str:
        """SHA-256 over the train and validation sentences."""
        return self.splits.fingerprint()

    def encode(
        self, split_name: str, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> EncodedSplit:
        """Features with `labels` (batch, sequence) in every batch.

        Raises:
            DataError: the split's data is missing or unusable.
            ConfigError: the tokenizer does not suit, or `limit` (in sentences) is below 1.
        """
        examples = take(self.splits[split_name].examples, limit)
        return encode_words(split_name, examples, tokenizer, max_length=self.max_length)

    def score(self, encoded: EncodedSplit, outputs: Outputs) -> dict[str, float]:
        """Entity `f1`, `precision` and `recall` where tags mark entities, and `accuracy`.

        Raises:
            RunnerError: outputs are missing, of the wrong shape, or not finite.
        """
        gold = [example.tags for example in encoded.examples]
        return token_scores(self._tags(encoded, outputs), gold, self.labels)

    def predictions(self, encoded: EncodedSplit, outputs: Outputs) -> list[Hashable]:
        """The class of every word of each sentence, a tuple.

        Raises:
            RunnerError: as for `score`.
        """
        return list(self._tags(encoded, outputs))

    def _tags(self, encoded: EncodedSplit, outputs: Outputs) -> list[tuple[int, ...]]:
        shapes = [(length, len(self.labels)) for length in encoded.lengths.tolist()]
        check_outputs(outputs, ("logits",), shapes)
        places = encoded.words
        if places is None:
            raise DataError("the features were encoded for another kind of task; encode them anew")
        # A word that is in no feature is outside of every entity.
        outside = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        tags = [np.full(len(example.words), outside) for example in encoded.examples]
        for at, (example, row) in enumerate(zip(places.example.tolist(), outputs, strict=True)):
            word = places.word[encoded.offsets[at] : encoded.offsets[at + 1]]  # (tokens,)
            first = word != NO_WORD
            tags[example][word[first]] = np.asarray(row["logits"])[first].argmax(axis=-1)
        return [tuple(row.tolist()) for row in tags]


def load_tokens(
    *,
    data: str,
    columns: Mapping[str, str],
    max_length: int,
    seed: int,
    holdout: float | None,
) -> TokenTask:
    """A task on the user's tagged sentences; the tags are those that occur in train.

    A folder has a train file and perhaps a dev file (validation, valid, val, dev; else test).
    Where there is none, `validation` is a seeded slice of train of the same size as `selection`;
    both hold their share of sentences with and without a tag other than O.

    Args:
        data: File, folder or hub id.
        columns: The user's names for `tokens`, `tags` and `id`; guessed for the rest.
        max_length: Tokens; longer sentences become several features.
        seed: Of the choice of the held-out sentences.
        holdout: Share of train that becomes `selection` (and `validation`, where it is cut).

    Raises:
        ConfigError: columns that are not there, or not obvious.
        DataError: files that are missing or bad.
        HubUnreachableError: a hub id without a network and without a cached copy.
    """
    tables = find_tables(data)
    chosen = choose_roles(tables.train.columns, columns, _USUAL_COLUMNS, tables.train.origin)
    if tables.validation is not None:
        check_columns(tables.validation, list(chosen.values()))
    labels = _label_names(tables.train, chosen)
    outside = labels.index(OUTSIDE) if OUTSIDE in labels else None

    def source(table: Table) -> Source:
        return Source(table.origin, lambda: _examples(table, chosen, labels))

    def divide(examples: Sequence[Example]) -> Indices:
        size = holdout_size(len(examples), holdout, tables.train.origin)
        has_entity = [float(set(example.tags) != {outside}) for example in examples]
        return pick_stratified(has_entity, size, seed=seed, classes=True)

    validation = source(tables.validation) if tables.validation is not None else None
    return TokenTask(
        name="token-classification",
        max_length=max_length,
        splits=Splits(source(tables.train), validation, divide, divide),
        labels=labels,
    )


def _label_names(table: Table, chosen: Mapping[str, str]) -> tuple[str, ...]:
    """Tags of train: in the hub's order where it has one, else O first, then by type.

    Raises:
        DataError: sentences without tags, or one tag for all words.
    """
    column = chosen["tags"]
    if column in table.label_names:
        return table.label_names[column]
    problems = Problems(table.origin)
    found: set[str] = set()
    for row in table.rows:
        try:
            found.update(map(label_text, _items(row, column)))
        except LabelValueError as error:
            problems.add(row.where, str(error), column)
    problems.raise_if_any()
    if len(found) < 2:
        only = next(iter(found), "no tag")
        raise DataError(
            f"{table.origin!r} column {column!r} holds only {only!r}; "
            "training needs at least two different tags"
        )
    return tag_order(found, table.origin)


def _examples(table: Table, chosen: Mapping[str, str], labels: tuple[str, ...]) -> list[Example]:
    problems = Problems(table.origin)
    index = {name: at for at, name in enumerate(labels)}
    known = table.label_names.get(chosen["tags"])
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for at, row in enumerate(table.rows):
        name = str(row.values.get(chosen.get("id", ""), at))
        if name in seen:
            problems.add(row.where, f"id {name!r} is also in {seen[name]}")
        seen[name] = row.where
        column = "tokens"
        try:
            words = _words(row, chosen["tokens"])
            column = "tags"
            tags = _tags(row, chosen["tags"], index, known)
        except LabelValueError as error:
            problems.add(row.where, str(error), chosen[column])
            continue
        if len(words) != len(tags):
            problems.add(row.where, f"{len(tags)} tags for {len(words)} words", chosen["tags"])
            continue
        examples.append(Example(name, " ".join(words), words=words, tags=tags))
    problems.raise_if_any()
    if not examples:
        raise DataError(f"{table.origin!r} has no sentences; give a file with at least one")
    return examples


def _words(row: Row, column: str) -> tuple[str, ...]:
    words = _items(row, column)
    for place, word in enumerate(words, start=1):
        problem = text_problem(word)
        if problem is not None:
            raise LabelValueError(f"word {place}: {problem}")
    return tuple(map(str, words))


def _tags(
    row: Row, column: str, index: Mapping[str, int], known: Sequence[str] | None
) -> tuple[int, ...]:
    found: list[int] = []
    for place, raw in enumerate(_items(row, column), start=1):
        named = known[raw] if known and isinstance(raw, int) and 0 <= raw < len(known) else raw
        tag = index.get(label_text(named))
        if tag is None:
            listed = ", ".join(list(index)[:MAX_LISTED_LABELS])
            more = len(index) - MAX_LISTED_LABELS
            allowed = f"{listed} and {more} more" if more > 0 else listed
            raise LabelValueError(f"word {place}: got {named!r}, allowed: {allowed}")
        found.append(tag)
    return tuple(found)


def _items(row: Row, column: str) -> list[object]:
    items = row.values.get(column)
    if not isinstance(items, list) or not items:
        raise LabelValueError(
            f"got {items!r}, expected a list with one entry for each word; csv and tsv cannot "
            "hold lists: use CoNLL columns (.conll), JSON lines or parquet"
        )
    return items
