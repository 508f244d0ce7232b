"""What a client of `<name>_text` gets: the texts of a split, sent as they are, and scored.

In: the artifacts and the answers to token ids of every subject in runtime ``triton``. Out: one more
accuracy row for each, with `requests: "text"`; those of token ids are told apart by
`requests: "token ids"`. Called by `verify.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import RunnerError
from cofi_deploy.kinds import TaskKind
from cofi_deploy.serve.accuracy import Scored, agreement
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.triton_service import RefusedRequestError, TritonService, open_service
from cofi_deploy.tasks import Example, Task
from cofi_deploy.tasks.sequence import SequenceTask
from cofi_deploy.tasks.squad import QuestionTask
from cofi_deploy.tasks.squad_metric import squad_scores

TOKEN_IDS, TEXT = "token ids", "text"

# Long contexts become many windows, all of which must fit into one batch of the server.
_QUESTIONS = 8
# Of a model without a largest batch.
_TEXTS = 32
# As for other runtimes: text that is answered otherwise more often is worth a sentence.
_USUAL_AGREEMENT = 0.99

# Of a row of token ids, and true of text as well.
_SHARED = (
    "task", "split", "size_bytes", "metric_name", "runtime", "precision", "device", "threads"
)  # fmt: skip


class Findings(Protocol):
    """Where rows and notes are gathered."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Accuracy rows, those of token ids among them."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the reader."""


@dataclass(frozen=True, kw_only=True)
class TextAnswers:
    """A prediction for each example, None where it was refused, and why the first one was."""

    predictions: list[Hashable]
    refusal: str | None
    wall_s: float


def is_of_texts(row: Mapping[str, Any]) -> bool:
    """Whether a row is of texts, read by the server's own rules; token ids are what is timed."""
    return row.get("requests") == TEXT


def add_text_rows(
    found: Findings,
    subjects: Sequence[Subject],
    task: Task,
    examples: Sequence[Example],
    scored: Mapping[str, Scored],
    reference: Mapping[str, Scored],
) -> None:
    """Send every text to every subject's `<name>_text`; add a row of each, and notes.

    Args:
        found: Holds the subjects' rows of token ids in runtime ``triton``.
        subjects: The first is the baseline.
        task: Of a kind whose metric can be had from answers; others are left out.
        examples: The split.
        scored: Answers of the runtime to token ids, by label.
        reference: Those of PyTorch, by label, where there are any.

    Raises:
        RunnerError: A server gives no answer, or refuses every text.
    """
    if not isinstance(task, SequenceTask | QuestionTask):
        return
    dense: float | None = None
    for subject in subjects:
        row = next(
            row
            for row in found.rows
            if row["runtime"] == "triton" and row["model"] == subject.label
        )
        row["requests"] = TOKEN_IDS
        with contextlib.closing(open_service(subject.artifacts["triton"])) as service:
            answers = predict_texts(service, examples)
        answered = [at for at, value in enumerate(answers.predictions) if value is not None]
        metric = _metric(
            task, [examples[at] for at in answered], [answers.predictions[at] for at in answered]
        )
        dense = metric if dense is None else dense
        text_row = {
            **{key: row[key] for key in _SHARED if key in row},
            **subject.row(),
            "requests": TEXT,
            "examples": len(answered),
            "metric": metric,
            "metric_dense": dense,
            "agreement_token_ids": _agreement(scored[subject.label], answers, answered),
            "wall_s": answers.wall_s,
        }
        if subject.label in reference:
            text_row["agreement"] = _agreement(reference[subject.label], answers, answered)
        found.rows.append(text_row)
        found.notes.extend(_notes(text_row, answers, subject, task))


def predict_texts(service: TritonService, examples: Sequence[Example]) -> TextAnswers:
    """Ask `<name>_text` for every example, as many at a time as the server takes.

    Raises:
        RunnerError: The server gives no answer, or refuses every text.
    """
    start = time.perf_counter()
    kind = service.manifest.kind
    size = _QUESTIONS if kind == "question-answering" else service.config.max_batch_size or _TEXTS
    predictions: list[Hashable] = [None] * len(examples)
    refusals: list[str] = []
    # Texts and pairs are of another shape, so they never share a request.
    order = sorted(range(len(examples)), key=lambda at: examples[at].text_pair is None)
    alone = sum(example.text_pair is not None for example in examples)
    for group in (order[:alone], order[alone:]):
        for first in range(0, len(group), size):
            places = group[first : first + size]
            _ask(service, kind, examples, places, (predictions, refusals))
    if len(refusals) == len(examples):
        raise RunnerError(f"{service.name}_text refuses every text: {refusals[0]}")
    return TextAnswers(
        predictions=predictions,
        refusal=refusals[0] if refusals else None,
        wall_s=time.perf_counter() - start,
    )


def _ask(
    service: TritonService,
    kind: TaskKind,
    examples: Sequence[Example],
    places: Sequence[int],
    into: tuple[list[Hashable], list[str]],
) -> None:
    """One request; where it is refused, its halves, so that a bad text fails alone."""
    predictions, refusals = into
    inputs = _inputs(kind, [examples[at] for at in places])
    try:
        answer = service.ask(f"{service.name}_text", inputs)
    except RefusedRequestError as refusal:
        if len(places) == 1:
            refusals.append(f"{examples[places[0]].id!r}: {refusal}")
            return
        middle = len(places) // 2
        for half in (places[:middle], places[middle:]):
            _ask(service, kind, examples, half, into)
        return
    for at, prediction in zip(places, _read(answer, service), strict=True):
        predictions[at] = prediction


def _inputs(kind: TaskKind, examples: Sequence[Example]) -> dict[str, npt.NDArray[Any]]:
    """What a client sends: (rows, 1) or (rows, 2) texts; questions and contexts of (rows,)."""
    if kind == "question-answering":
        return {
            "question": _strings([example.text for example in examples]),
            "context": _strings([example.text_pair or "" for example in examples]),
        }
    texts = [
        text
        for example in examples
        for text in (example.text, example.text_pair)
        if text is not None
    ]
    return {"text": _strings(texts).reshape(len(examples), -1)}


def _strings(texts: Sequence[str]) -> npt.NDArray[Any]:
    # Half a surrogate pair is refused by the server, in its words.
    return np.array([text.encode("utf-8", "surrogatepass") for text in texts], dtype=object)


def _read(answer: Mapping[str, Any], service: TritonService) -> list[Hashable]:
    """Predictions as `Task.predictions` gives them; the best answer stands first."""
    kind = service.manifest.kind
    if kind == "text-regression":
        return [float(score) for score in answer["scores"][:, 0]]
    column = "answers" if kind == "question-answering" else "labels"
    best = [value.decode() for value in answer[column][:, 0]]
    if kind == "question-answering":
        return list(best)
    return [service.manifest.labels.index(label) for label in best]


def _metric(
    task: SequenceTask | QuestionTask, examples: Sequence[Example], predictions: Sequence[Any]
) -> float:
    if isinstance(task, QuestionTask):
        accepted = [[answer.text for answer in example.answers] for example in examples]
        found = squad_scores(predictions, accepted, no_answers=task.no_answers)
    else:
        gold = np.asarray([example.label for example in examples])
        found = task.metrics(np.asarray(predictions), gold)
    return found[task.metric_name]


def _agreement(scored: Scored, answers: TextAnswers, answered: Sequence[int]) -> float:
    return agreement(
        [scored.predictions[at] for at in answered], [answers.predictions[at] for at in answered]
    )


def _notes(row: Mapping[str, Any], answers: TextAnswers, subject: Subject, task: Task) -> list[str]:
    notes = []
    if answers.refusal is not None:
        count = len(answers.predictions)
        notes.append(
            f"{subject.label} in triton refuses {count - row['examples']} of {count} texts, which "
            f"are not scored; the first is {answers.refusal}"
        )
    if row["agreement_token_ids"] < _USUAL_AGREEMENT:
        notes.append(
            f"{subject.label} in triton answers {1 - row['agreement_token_ids']:.1%} of the texts "
            f"otherwise than their token ids: {_reading(subject.artifacts['triton'], task)}"
        )
    return notes


def _reading(artifact: Path, task: Task) -> str:
    """How the server reads texts and answers, where the task does it otherwise."""
    tokenizer, answer = (
        read_json(next(artifact.glob(f"*_{step}/*/settings.json")))
        for step in ("tokenizer", "answer")
    )
    told = f"the server reads {tokenizer['max_length']} tokens at once, the task {task.max_length}"
    if task.kind != "question-answering":
        return told
    return f"{told}, and it always answers, with up to {answer['max_answer_tokens']} tokens"
