"""Extractive question answering on SQuAD 1.1 and 2.0, from the hub or from its JSON files.

In: a task name and perhaps a data directory. Out: a `QuestionTask`. Next: `squad_files.py`,
`squad_windows.py`, `squad_spans.py`, `squad_metric.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cofi_deploy.errors import DataError
from cofi_deploy.kinds import TaskKind, output_names
from cofi_deploy.tasks.division import Indices, holdout_size, pick_groups
from cofi_deploy.tasks.encoding import EncodedSplit, take
from cofi_deploy.tasks.files import Problems, check_data_dir, find_file, missing_file
from cofi_deploy.tasks.hub import load_hub_dataset
from cofi_deploy.tasks.outputs import check_outputs
from cofi_deploy.tasks.squad_files import RawQuestion, examples_from_questions, read_squad_file
from cofi_deploy.tasks.squad_metric import squad_scores
from cofi_deploy.tasks.squad_spans import span_texts
from cofi_deploy.tasks.squad_windows import encode_questions
from cofi_deploy.tasks.task import Example, Outputs, Source, Splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_ARTICLES = 10


@dataclass(frozen=True)
class SquadSpec:
    """What differs between the two versions."""

    hub_id: str
    file_suffix: str
    no_answers: bool


SQUAD: Mapping[str, SquadSpec] = {
    "squad": SquadSpec("rajpurkar/squad", "v1.1", no_answers=False),
    "squad_v2": SquadSpec("rajpurkar/squad_v2", "v2.0", no_answers=True),
}


@dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """SQuAD 1.1 or 2.0, or data like it; see `task.Task` for the contract."""

    name: str
    max_length: int
    splits: Splits
    no_answers: bool
    kind: TaskKind = "question-answering"
    labels: tuple[str, ...] = ()
    metric_name: str = "f1"

    def fingerprint(self) -> str:
        """SHA-256 over the official train and validation questions."""
        return self.splits.fingerprint()

    def encode(
        self, split_name: str, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> EncodedSplit:
        """One feature per window, with `start_positions` and `end_positions` in every batch.

        Raises:
            DataError: the split's data is missing or unusable.
            ConfigError: the tokenizer does not suit, or `limit` (in questions) is below 1.
        """
        examples = take(self.splits[split_name].examples, limit)
        return encode_questions(split_name, examples, tokenizer, max_length=self.max_length)

    def score(self, encoded: EncodedSplit, outputs: Outputs) -> dict[str, float]:
        """The official `f1` and `exact_match`, as fractions.

        Raises:
            RunnerError: outputs are missing, of the wrong shape, or not finite.
        """
        golds = [[answer.text for answer in row.answers] for row in encoded.examples]
        texts = self._texts(encoded, outputs)
        return squad_scores(texts, golds, no_answers=self.no_answers)

    def predictions(self, encoded: EncodedSplit, outputs: Outputs) -> list[Hashable]:
        """The answer text of each question.

        Raises:
            RunnerError: as for `score`.
        """
        return list(self._texts(encoded, outputs))

    def _texts(self, encoded: EncodedSplit, outputs: Outputs) -> list[str]:
        shapes = [(length,) for length in encoded.lengths.tolist()]
        check_outputs(outputs, output_names(self.kind), shapes)
        return span_texts(encoded, outputs, no_answers=self.no_answers)


def load_squad(
    name: str, *, data_dir: Path | None, max_length: int, seed: int, holdout: float | None
) -> QuestionTask:
    """SQuAD 1.1 (`squad`) or 2.0 (`squad_v2`).

    `selection` holds whole articles of train (paragraphs, where there are fewer than ten
    articles), so that no context is on both sides.

    Args:
        name: A key of `SQUAD`.
        data_dir: Holds the JSON files, or a folder `squad` with them; None for the hub.
        max_length: Tokens of a window, question included.
        seed: Of the choice of the held-out articles.
        holdout: Share of train that becomes `selection`; None for the default.

    Raises:
        DataError: the data directory or its dev file is missing. A missing train file is told
            when the train split is asked for.
        HubUnreachableError: no data directory, no network, and nothing cached.
    """
    spec = SQUAD[name]
    if data_dir is None:
        train, validation = _hub_sources(spec)
    else:
        train, validation = _file_sources(name, spec, data_dir)

    divide = article_divider(train.description, seed=seed, holdout=holdout)
    return QuestionTask(
        name=name,
        max_length=max_length,
        splits=Splits(train, validation, divide),
        no_answers=spec.no_answers,
    )


def article_divider(
    origin: str, *, seed: int, holdout: float | None
) -> Callable[[Sequence[Example]], Indices]:
    """The rule by which questions are held out: whole articles, else whole paragraphs.

    Paragraphs where there are fewer than ten articles; no context is ever on both sides.

    Args:
        origin: Of the training data, for error messages.
        seed: Of the choice.
        holdout: Share that is held out; None for the default.
    """

    def divide(examples: Sequence[Example]) -> Indices:
        size = holdout_size(len(examples), holdout, origin)
        articles = [example.group for example in examples]
        paragraphs = [example.text_pair or "" for example in examples]
        names = articles if len(set(articles)) >= MIN_ARTICLES else paragraphs
        number = {text: at for at, text in enumerate(dict.fromkeys(names))}
        if len(number) < 2:
            raise DataError(
                f"{origin!r} asks all its questions about one paragraph; "
                "at least two are needed, so that one can be held out"
            )
        return pick_groups([number[text] for text in names], size, seed=seed)

    return divide


def _file_sources(name: str, spec: SquadSpec, data_dir: Path) -> tuple[Source, Source]:
    check_data_dir(data_dir)
    folders = [data_dir, data_dir / "squad", data_dir / name]
    dev_name, train_name = (f"{part}-{spec.file_suffix}.json" for part in ("dev", "train"))
    dev_file = find_file(folders, [dev_name])
    if dev_file is None:
        raise missing_file(f"dev file of {name}", folders, [dev_name])
    train_file = find_file([dev_file.parent], [train_name])

    def read_train() -> list[Example]:
        if train_file is None:
            raise missing_file(f"train file of {name}", [dev_file.parent], [train_name])
        return read_squad_file(train_file, no_answers=spec.no_answers)

    train = Source(str(train_file or dev_file.parent / train_name), read_train)
    return train, Source(
        str(dev_file), lambda: read_squad_file(dev_file, no_answers=spec.no_answers)
    )


def _hub_sources(spec: SquadSpec) -> tuple[Source, Source]:
    way_on = f"point --data-dir at a folder with train-{spec.file_suffix}.json and its dev file"
    loaded = load_hub_dataset(spec.hub_id, None, way_on=way_on)

    def source(split: str) -> Source:
        origin = f"{spec.hub_id}[{split}]"
        return Source(origin, lambda: hub_questions(loaded[split], origin, spec))

    return source("train"), source("validation")


def hub_questions(rows: Sequence[Mapping[str, Any]], origin: str, spec: SquadSpec) -> list[Example]:
    """Examples of one hub split, with the checks that files get.

    Raises:
        DataError: rows are wrong.
    """

    def questions() -> Iterator[RawQuestion]:
        for at, row in enumerate(rows):
            answers = [
                {"text": text, "answer_start": start}
                for text, start in zip(
                    row["answers"]["text"], row["answers"]["answer_start"], strict=True
                )
            ]
            fields = {"id": row["id"], "question": row["question"], "answers": answers}
            yield RawQuestion(f"row {at + 1}", row["title"], row["context"], fields)

    return examples_from_questions(questions(), Problems(origin), no_answers=spec.no_answers)
