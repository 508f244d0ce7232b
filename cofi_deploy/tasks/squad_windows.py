"""Questions and contexts to features: a context that is too long becomes overlapping windows.

In: examples and a fast tokenizer. Out: an `EncodedSplit` whose `windows` say which characters
of which context each feature covers. Next: `squad_spans.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import ConfigError
from cofi_deploy.tasks.encoding import (
    TOKENIZER_ROWS,
    EncodedSplit,
    check_tokenizer,
    offsets_of,
)
from cofi_deploy.tasks.task import Answer, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = npt.NDArray[np.int32]

# As in the original BERT run_squad and its successors. The stride is meant as Hugging Face means
# it: tokens that two neighbouring windows share. (BERT's own code moves the window by 128.)
MAX_QUESTION_TOKENS = 64
STRIDE_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which part of which context each feature holds.

    Attributes:
        example: Index of the question, per feature.
        first: Index into `char_start` of the first context token, per feature.
        position: Where in the feature that token is, per feature.
        length: Context tokens, per feature.
        char_start: First character of every context token, all contexts end to end.
        char_end: One past its last character.
    """

    example: Ints
    first: npt.NDArray[np.int64]
    position: Ints
    length: Ints
    char_start: Ints
    char_end: Ints


@dataclass(frozen=True)
class _Tokens:
    """Texts end to end as tokens; a text's own are those from its offset to the next."""

    ids: Ints
    char_start: Ints
    char_end: Ints
    offsets: npt.NDArray[np.int64]

    def ids_of(self, text: int) -> Ints:
        return self.ids[self.offsets[text] : self.offsets[text + 1]]


@dataclass(frozen=True)
class _Template:
    """Special tokens and token types that a tokenizer puts around a question and a context."""

    before: Ints
    between: Ints
    after: Ints
    question_type: int
    context_type: int

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def feature(self, question: Ints, context: Ints) -> tuple[Ints, npt.NDArray[np.int8]]:
        ids = np.concatenate([self.before, question, self.between, context, self.after])
        types = np.full(len(ids), self.question_type, dtype=np.int8)
        types[len(self.before) + len(question) + len(self.between) :] = self.context_type
        return ids, types


def encode_questions(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> EncodedSplit:
    """Windows of at most `max_length` tokens, each with its whole question.

    Follows the BERT recipe: questions are cut after 64 tokens (a third of `max_length` where that
    is less); neighbouring windows share 128 context tokens (half of the room where that is
    less). Every context is tokenised once, however many questions are asked about it.

    Targets are the first and last token of the first accepted answer, counted in the feature; the
    first token (position 0) stands for an answer outside the window, and for no answer.

    Raises:
        ConfigError: the tokenizer is not a fast one or does not suit otherwise.
    """
    pad_token_id = check_tokenizer(tokenizer, max_length)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} does not tell character offsets; "
            "question answering needs a fast tokenizer (a tokenizer.json)"
        )
    texts = [example.text_pair or "" for example in examples]
    number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    contexts = _tokenize(list(number), tokenizer)
    questions = _tokenize([example.text for example in examples], tokenizer)
    template = _template(tokenizer)
    question_limit = min(MAX_QUESTION_TOKENS, max_length // 3)

    ids: list[Ints] = []
    types: list[npt.NDArray[np.int8]] = []
    places: list[tuple[int, int, int, int]] = []
    targets: list[tuple[int, int]] = []
    for at, example in enumerate(examples):
        question = questions.ids_of(at)[:question_limit]
        position = len(template.before) + len(question) + len(template.between)
        answer = _answer_tokens(example.answers, contexts, number[texts[at]])
        room = max_length - template.special_tokens - len(question)
        for first, length in _window_bounds(contexts, number[texts[at]], room):
            row = template.feature(question, contexts.ids[first : first + length])
            ids.append(row[0])
            types.append(row[1])
            places.append((at, first, position, length))
            targets.append(_target(answer, first, length, position))
    starts, ends = np.asarray(targets, dtype=np.int64).T
    return EncodedSplit(
        name=name,
        examples=examples,
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(types),
        offsets=offsets_of([len(row) for row in ids]),
        pad_token_id=pad_token_id,
        targets={"start_positions": starts, "end_positions": ends},
        windows=_windows(places, contexts),
    )


def _windows(places: list[tuple[int, int, int, int]], contexts: _Tokens) -> Windows:
    example, first, position, length = np.asarray(places, dtype=np.int64).T
    return Windows(
        example=example.astype(np.int32),
        first=first,
        position=position.astype(np.int32),
        length=length.astype(np.int32),
        char_start=contexts.char_start,
        char_end=contexts.char_end,
    )


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> _Tokens:
    ids: list[Ints] = []
    spans: list[Ints] = []
    for start in range(0, len(texts), TOKENIZER_ROWS):
        encoded = tokenizer(
            texts[start : start + TOKENIZER_ROWS],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids += [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        spans += [
            np.asarray(row, dtype=np.int32).reshape(-1, 2) for row in encoded["offset_mapping"]
        ]
    flat = np.concatenate(spans)  # (tokens, 2)
    offsets = offsets_of([len(row) for row in ids])
    return _Tokens(np.concatenate(ids), flat[:, 0].copy(), flat[:, 1].copy(), offsets)


def _template(tokenizer: PreTrainedTokenizerBase) -> _Template:
    encoded = tokenizer("a", "b", return_special_tokens_mask=True, return_token_type_ids=True)
    ids = np.asarray(encoded["input_ids"], dtype=np.int32)
    types = encoded["token_type_ids"]
    content = np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    gap = int(np.argmax(np.diff(content)))
    question_start, question_end = int(content[0]), int(content[gap]) + 1
    context_start, context_end = int(content[gap + 1]), int(content[-1]) + 1
    return _Template(
        before=ids[:question_start],
        between=ids[question_end:context_start],
        after=ids[context_end:],
        question_type=int(types[question_start]),
        context_type=int(types[context_start]),
    )


def _window_bounds(contexts: _Tokens, context: int, room: int) -> Iterator[tuple[int, int]]:
    """First token (in the flat arrays) and number of tokens of each window of one context."""
    first, end = (int(contexts.offsets[context + step]) for step in (0, 1))
    step = room - min(STRIDE_TOKENS, room // 2)
    while end - first > room:
        yield first, room
        first += step
    yield first, end - first


def _answer_tokens(
    answers: tuple[Answer, ...], contexts: _Tokens, context: int
) -> tuple[int, int] | None:
    """First and last token (in the flat arrays) that hold characters of the first answer."""
    if not answers:
        return None
    begin, end = (int(contexts.offsets[context + step]) for step in (0, 1))
    start_char = answers[0].start
    end_char = start_char + len(answers[0].text)
    # Byte-level tokenizers give one character several tokens, and spaces tokens of no width.
    first = int(np.searchsorted(contexts.char_end[begin:end], start_char, side="right"))
    last = int(np.searchsorted(contexts.char_start[begin:end], end_char, side="left")) - 1
    return None if first > last else (begin + first, begin + last)


def _target(
    answer: tuple[int, int] | None, first: int, length: int, position: int
) -> tuple[int, int]:
    if answer is None or answer[0] < first or answer[1] >= first + length:
        return 0, 0
    return answer[0] - first + position, answer[1] - first + position
