"""What every task offers: labelled splits, tensors for a model, and a score of its answers.

Read `load.py` for how a task is found by its name, `sequence.py`, `tokens.py` and `squad.py` for
the kinds of task, `encoding.py` for the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import UsageError, did_you_mean
from cofi_deploy.tasks.files import MissingDataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cofi_deploy.kinds import TaskKind
    from cofi_deploy.tasks.encoding import EncodedSplit

SPLIT_NAMES = ("train", "selection", "validation")
Outputs = Sequence[Mapping[str, npt.NDArray[np.floating]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One accepted answer of a question: its text, and the character where it starts."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        id: Unique in its split.
        text: The sentence; for question answering the question.
        text_pair: The second sentence, or the context of a question.
        label: A class index, a score, or None where that is not what is asked for.
        answers: Accepted answers of a question; empty when it has none.
        words: Of a sentence whose words are tagged; `text` is these with spaces between.
        tags: Class index of every word.
        group: Examples of one group (an article) are held out together.
    """

    id: str
    text: str
    text_pair: str | None = None
    label: int | float | None = None
    answers: tuple[Answer, ...] = ()
    words: tuple[str, ...] = ()
    tags: tuple[int, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """The examples of one split, and in words where they come from."""

    name: str
    examples: Sequence[Example]
    source: str

    def __len__(self) -> int:
        return len(self.examples)


class Task(Protocol):
    """A labelled data set with its metric, whatever its kind.

    `metric_name` is the primary metric: one of the keys that `score` returns, higher is better.
    `labels` is empty for scores and for question answering.
    """

    @property
    def name(self) -> str:
        """As the user typed it: `sst2`, `squad`, `text-classification`."""

    @property
    def kind(self) -> TaskKind:
        """Which head and which outputs a model of this task has."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the model's logits."""

    @property
    def metric_name(self) -> str:
        """The primary metric."""

    @property
    def max_length(self) -> int:
        """Longest feature, in tokens, special tokens included."""

    @property
    def splits(self) -> Mapping[str, Split]:
        """`train`, `selection` and `validation`; read from disk when first asked for.

        Raises:
            DataError: on the first access, if that split's file is missing or unusable.
        """

    def fingerprint(self) -> str:
        """SHA-256, in hex, over the examples of the official train and validation data.

        It depends neither on the seed nor on what is held out; data that this copy lacks
        (a local folder without a train file) counts as absent.
        """

    def encode(
        self, split_name: str, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> EncodedSplit:
        """Tokenise one split.

        Args:
            split_name: `train`, `selection` or `validation`.
            tokenizer: Of the model that will read the features.
            limit: Take only so many examples, evenly spaced over the split, so that a file
                sorted by class still gives all classes.
        """

    def score(self, encoded: EncodedSplit, outputs: Outputs) -> dict[str, float]:
        """The task's official metrics, as fractions.

        Args:
            encoded: What `encode` returned.
            outputs: One mapping per feature, without a batch axis and without padding.

        Raises:
            RunnerError: outputs are missing, of the wrong shape, or not finite.
        """

    def predictions(self, encoded: EncodedSplit, outputs: Outputs) -> list[Hashable]:
        """One prediction per example: class index, score, span text, or a class for each word.

        Raises:
            RunnerError: as for `score`.
        """


@dataclass(frozen=True)
class Source:
    """Official data of one split, not read yet.

    Attributes:
        description: File or hub split.
        read: Parses and checks it; called once.
    """

    description: str
    read: Callable[[], Sequence[Example]]


class Splits(Mapping[str, Split]):
    """The three splits of a task, read and divided on first use."""

    def __init__(
        self,
        train: Source,
        validation: Source | None,
        divide: Callable[[Sequence[Example]], npt.NDArray[np.int64]],
        divide_validation: Callable[[Sequence[Example]], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        """Name the sources and the rule by which examples are held out.

        Args:
            train: Official training data.
            validation: Official dev data; None when it is to be cut from `train`.
            divide: Indices of the examples that become `selection`.
            divide_validation: Indices that become `validation` where there is no official one;
                needed exactly when `validation` is None.
        """
        self._train = train
        self._validation = validation
        self._divide = divide
        self._divide_validation = divide_validation
        self._raw: dict[str, Sequence[Example]] = {}
        self._splits: dict[str, Split] = {}

    def __getitem__(self, name: str) -> Split:
        if name not in SPLIT_NAMES:
            raise UnknownSplitError(f"unknown split {name!r}, {did_you_mean(name, SPLIT_NAMES)}")
        if name not in self._splits:
            self._read(name)
        return self._splits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SPLIT_NAMES)

    def __len__(self) -> int:
        return len(SPLIT_NAMES)

    def fingerprint(self) -> str:
        """SHA-256 over all examples as read, before anything is held out."""
        digest = hashlib.sha256()
        for name, source in (("train", self._train), ("validation", self._validation)):
            digest.update(f"{name}\n".encode())
            if source is not None:
                _update(digest, self._examples_or_none(name, source))
        return digest.hexdigest()

    def _read(self, name: str) -> None:
        if name == "validation" and self._validation is not None:
            examples = self._examples("validation", self._validation)
            self._splits[name] = Split(name, examples, self._validation.description)
            return
        examples = self._examples("train", self._train)
        if self._validation is None and self._divide_validation is not None:
            examples, cut = _divided(examples, self._divide_validation(examples))
            source = f"{len(cut)} rows held out of {self._train.description}"
            self._splits["validation"] = Split("validation", cut, source)
        kept, held_out = _divided(examples, self._divide(examples))
        self._splits["train"] = Split("train", kept, self._train.description)
        source = f"{len(held_out)} rows held out of {self._train.description}"
        self._splits["selection"] = Split("selection", held_out, source)

    def _examples(self, name: str, source: Source) -> Sequence[Example]:
        if name not in self._raw:
            self._raw[name] = source.read()
        return self._raw[name]

    def _examples_or_none(self, name: str, source: Source) -> Sequence[Example] | None:
        try:
            return self._examples(name, source)
        except MissingDataError:
            return None


class UnknownSplitError(UsageError, KeyError):
    """A split name other than `train`, `selection` and `validation`."""

    __str__ = UsageError.__str__


def _divided(
    examples: Sequence[Example], held_out: npt.NDArray[np.int64]
) -> tuple[list[Example], list[Example]]:
    chosen = set(held_out.tolist())
    kept = [example for at, example in enumerate(examples) if at not in chosen]
    return kept, [examples[at] for at in held_out.tolist()]


def _update(digest: hashlib._Hash, examples: Sequence[Example] | None) -> None:
    for example in examples or ():
        answers = [(answer.text, answer.start) for answer in example.answers]
        row: list[object] = [example.id, example.text, example.text_pair, example.label, answers]
        if example.words:
            row += [example.words, example.tags]
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
