"""Logits -> answers: what a server runs as `<name>_answer`, the last step of `<name>_text`.

Comes in: the encoder's logits, what `tokenizer.py` noted about the tokens, and the texts. Goes
out: labels with scores, entities or answers with their places in the text, as the pipelines of
transformers give them. Settings lie beside this file, which is copied into repositories as it is:
it runs on Python 3.8 and later and needs numpy only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Sequence, Union

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Tensors = Dict[str, Array]  # by tensor name
    Result = Union[Tensors, "Rejected"]

# Values of `token_roles` and `candidates`, as in tokenizer.py.
NO_WORD, WORD_START = 0, 1
NO_CANDIDATE, CANDIDATE = 0, 2

# Stands in for the logit of a token that cannot be in an answer; as in transformers.
MASKED_LOGIT = -10000.0


class Rejected(Exception):  # noqa: N818 - an answer to the caller, not a fault of ours
    """A request that gets an error instead of an answer; others in the same call get theirs."""


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the settings; whatever is raised here, the server tells as the reason."""
        folder = Path(args["model_repository"], args["model_version"])
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self._step = _STEPS[settings["kind"]](settings)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request."""
        read = [self._read(request) for request in requests]
        answers = iter(self._step.answer([item for item in read if isinstance(item, dict)]))
        return [_response(next(answers) if isinstance(item, dict) else item) for item in read]

    def _read(self, request: Any) -> Result:
        try:
            return self._step.read(request)
        except Rejected as problem:
            return problem


class ScoreStep:
    """Regression: the model's number as it is."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Nothing to learn."""

    def read(self, request: Any) -> Tensors:
        """`logits` (rows, labels).

        Raises:
            Rejected: A logit is not a number.
        """
        return _arrays(request, "logits")

    def answer(self, requests: Sequence[Tensors]) -> list[Tensors]:
        """`scores` (rows, 1) of every request."""
        return [{"scores": tensors["logits"]} for tensors in requests]


class LabelStep(ScoreStep):
    """Classification: every label with its probability, the likeliest first."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Keep the labels as the server sends them: encoded."""
        self._labels = _strings(settings["labels"])

    def answer(self, requests: Sequence[Tensors]) -> list[Tensors]:
        """`labels` and `scores` (rows, labels) of every request."""
        if not requests:
            return []
        scores = _softmax(np.concatenate([tensors["logits"] for tensors in requests]))
        order = np.argsort(-scores, axis=-1, kind="stable")
        scores, labels = np.take_along_axis(scores, order, axis=-1), self._labels[order]
        ends = np.cumsum([len(tensors["logits"]) for tensors in requests])
        starts = [0, *ends[:-1]]
        return [
            {"labels": labels[start:end], "scores": scores[start:end]}
            for start, end in zip(starts, ends)
        ]


class EntityStep:
    """Token classification: neighbouring tokens with one label become one entity.

    As transformers' TokenClassificationPipeline with an aggregation strategy, but for `words`,
    which are cut from the text instead of being put together from tokens.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Take the labels apart: prefix B- or I-, and the tag behind it."""
        labels = settings["labels"]
        tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
        self._tags = np.array([tags.index(tag) for tag in tags])
        self._begins = np.array([label.startswith("B-") for label in labels])
        names = [label.split("-", 1)[-1] for label in labels]
        self._names = _strings(names)
        self._is_entity = np.array([name != "O" for name in names])
        self._scores_of_words = _AGGREGATIONS[settings["aggregation"]]

    def read(self, request: Any) -> Tensors:
        """What was found out about the tokens of some texts.

        Raises:
            Rejected: Shapes that do not fit each other, or a logit that is not a number.
        """
        tensors = _arrays(request, "logits", "token_roles", "spans", "text")
        shape = tensors["logits"].shape[:2]
        _check_shape(tensors, "logits", (*shape, len(self._names)))
        _check_shape(tensors, "token_roles", shape)
        _check_shape(tensors, "spans", (*shape, 2))
        _check_shape(tensors, "text", (shape[0], 1))
        return tensors

    def answer(self, requests: Sequence[Tensors]) -> list[Tensors]:
        """`labels`, `words`, `scores`, `starts`, `ends` (rows, entities) of every request."""
        return [self._entities(tensors) for tensors in requests]

    def _entities(self, tensors: Tensors) -> Tensors:
        scores = _softmax(tensors["logits"])
        rows = [
            self._row(scores[row], tensors["token_roles"][row], tensors["spans"][row])
            for row in range(len(scores))
        ]
        texts = [value.decode("utf-8", "replace") for value in tensors["text"][:, 0]]
        return _table(
            [
                [
                    (self._names[label], text[start:end].encode(), score, start, end)
                    for label, score, start, end in zip(*(column.tolist() for column in row))
                ]
                for row, text in zip(rows, texts)
            ],
            ("labels", "words", "scores", "starts", "ends"),
        )

    def _row(self, scores: Any, roles: Any, spans: Any) -> tuple[Any, ...]:
        """Label, score, start and end of every entity in one text."""
        kept = roles != NO_WORD
        scores, starts, ends = scores[kept], spans[kept, 0], spans[kept, 1]
        if not len(scores):
            return (np.empty(0, dtype=np.int64),) * 4
        if self._scores_of_words is not None:
            first, last = _runs(roles[kept] == WORD_START)
            scores = self._scores_of_words(scores, first, last)
            starts, ends = starts[first], ends[last]
        best = scores.argmax(axis=-1)
        another_tag = np.append(True, self._tags[best[1:]] != self._tags[best[:-1]])
        first, last = _runs(another_tag | self._begins[best])
        means = np.add.reduceat(scores.max(axis=-1), first) / (last - first + 1)
        label = best[first]
        found = self._is_entity[label]
        return label[found], means[found], starts[first][found], ends[last][found]


class SpanStep:
    """Question answering: the likeliest spans of each context, over all of its windows.

    As transformers' QuestionAnsweringPipeline (4.x; version 5 has none), with two differences in
    what no trained model should show: spans of probability zero, which it may add to fill up
    ``top_k``, are left out, and so is a "[CLS]" that the question itself spells out.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """How many answers, and how long they may be in tokens."""
        self._top_k = settings["top_k"]
        self._max_tokens = settings["max_answer_tokens"]

    def read(self, request: Any) -> Tensors:
        """Logits and places of all windows, and the contexts.

        Raises:
            Rejected: Shapes that do not fit each other, or a logit that is not a number.
        """
        tensors = _arrays(
            request, "start_logits", "end_logits", "candidates", "spans", "owners", "context"
        )
        shape = tensors["start_logits"].shape
        _check_shape(tensors, "end_logits", shape)
        _check_shape(tensors, "candidates", shape)
        _check_shape(tensors, "spans", (*shape, 2))
        _check_shape(tensors, "owners", shape[:1])
        last = len(tensors["context"]) - 1
        if ((tensors["owners"] < 0) | (tensors["owners"] > last)).any():
            raise Rejected(f"'owners' names a context that is not there, allowed: 0 to {last}")
        return tensors

    def answer(self, requests: Sequence[Tensors]) -> list[Tensors]:
        """`answers`, `scores`, `starts`, `ends` (questions, top_k) of every request."""
        return [self._answers(tensors) for tensors in requests]

    def _answers(self, tensors: Tensors) -> Tensors:
        contexts = [value.decode("utf-8", "replace") for value in tensors["context"]]
        found: list[dict[str, list[Any]]] = [{} for _ in contexts]
        spans = tensors["spans"]
        for window, first, last, score in self._likeliest(tensors):
            owner = tensors["owners"][window]
            start, end = int(spans[window, first, 0]), int(spans[window, last, 1])
            answer = contexts[owner][start:end]
            # Answers of the same words are one answer, wherever they stand; the first place stays.
            known = found[owner].setdefault(answer.lower(), [answer.encode(), 0.0, start, end])
            known[1] += score
        rows = [sorted(row.values(), key=lambda known: -known[1])[: self._top_k] for row in found]
        return _table(rows, ("answers", "scores", "starts", "ends"), width=self._top_k)

    def _likeliest(self, tensors: Tensors) -> list[tuple[int, int, int, float]]:
        """Window, first and last token and probability of the best spans of every window."""
        candidates = tensors["candidates"]
        start = _probabilities(tensors["start_logits"], candidates)
        end = _probabilities(tensors["end_logits"], candidates)
        # Only spans of up to max_tokens: entry [w, i, k] is the one from token i to i + k.
        padded = np.pad(end, ((0, 0), (0, self._max_tokens - 1)))
        ends = np.lib.stride_tricks.sliding_window_view(padded, self._max_tokens, axis=1)
        scores = (start[:, :, None] * ends).reshape(len(start), -1)
        # Widening spans to whole words makes some of them equal, so more are taken than wanted.
        wanted = min(self._top_k * 2 + 10, scores.shape[1])
        places = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
        best = np.take_along_axis(scores, places, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")
        return [
            (window, place // self._max_tokens, sum(divmod(place, self._max_tokens)), float(score))
            for window in range(len(scores))
            for place, score in zip(
                places[window, order[window]].tolist(), best[window, order[window]]
            )
            if score > 0
        ]


_STEPS: dict[str, type[ScoreStep] | type[EntityStep] | type[SpanStep]] = {
    "text-classification": LabelStep,
    "text-regression": ScoreStep,
    "token-classification": EntityStep,
    "question-answering": SpanStep,
}


def _first_token(scores: Any, first: Any, last: Any) -> Any:
    return scores[first]


def _likeliest_token(scores: Any, first: Any, last: Any) -> Any:
    """Scores of the token of each word that is surest of its label; of equals, the first."""
    word = np.repeat(np.arange(len(first)), last - first + 1)
    order = np.lexsort((-scores.max(axis=-1), word))  # stable
    return scores[order[first]]


def _average_token(scores: Any, first: Any, last: Any) -> Any:
    return np.add.reduceat(scores, first, axis=0) / (last - first + 1)[:, None]


# Scores of a word from those of its tokens; `simple` labels tokens, not words.
_AGGREGATIONS: dict[str, Any] = {
    "simple": None,
    "first": _first_token,
    "average": _average_token,
    "max": _likeliest_token,
}


def _arrays(request: Any, *names: str) -> Tensors:
    arrays = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}
    for name, array in arrays.items():
        if not array.size:
            raise Rejected(f"{name!r} has shape {list(array.shape)}, allowed: no axis of length 0")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Rejected(
                f"{name!r} holds a value that is not a number: the model gave no answer; try "
                "another text"
            )
    return arrays


def _check_shape(tensors: Tensors, name: str, expected: tuple[int, ...]) -> None:
    if tensors[name].shape != expected:
        raise Rejected(
            f"{name!r} has shape {list(tensors[name].shape)}, allowed: {list(expected)}, which "
            "fits the other inputs; send texts to the model whose name ends with '_text'"
        )


def _softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _probabilities(logits: Any, candidates: Any) -> Any:
    """Softmax of every window over what counts; then zero wherever no answer can start or end."""
    counted = np.where(candidates == NO_CANDIDATE, np.float32(MASKED_LOGIT), logits)
    return np.where(candidates == CANDIDATE, _softmax(counted), np.float32(0))


def _runs(starts: Any) -> tuple[Any, Any]:
    """First and last place of every run, one beginning at each True and at the first place."""
    first = np.flatnonzero(np.append(True, starts[1:]))
    return first, np.append(first[1:], len(starts)) - 1


def _strings(texts: Sequence[str]) -> Any:
    return np.array([text.encode() for text in texts], dtype=object)


def _table(rows: Sequence[Sequence[Any]], names: Sequence[str], width: int = 0) -> Tensors:
    """One array (rows, width) for each name; short rows are filled up with "", 0.0 and -1."""
    width = width or max(map(len, rows))
    columns = {name: _empty(name, (len(rows), width)) for name in names}
    for at, row in enumerate(rows):
        for place, entry in enumerate(row):
            for name, value in zip(names, entry):
                columns[name][at, place] = value
    return columns


def _empty(name: str, shape: tuple[int, int]) -> Any:
    if name == "scores":
        return np.zeros(shape, dtype=np.float32)
    if name in {"starts", "ends"}:
        return np.full(shape, -1, dtype=np.int64)
    return np.full(shape, b"", dtype=object)


def _response(result: Result) -> Any:
    if isinstance(result, Rejected):
        error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in result.items()]
    )
