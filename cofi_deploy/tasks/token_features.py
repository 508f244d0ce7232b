"""Tagged sentences to features: every token, and which of them begins which word.

In: examples and a fast tokenizer. Out: an `EncodedSplit` whose `words` say where the words are. The
tokenizer reads the words with spaces between them, as a server reads plain text. Next: `tokens.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import ConfigError
from cofi_deploy.tasks.encoding import (
    IGNORED,
    TOKENIZER_ROWS,
    EncodedSplit,
    check_tokenizer,
    offsets_of,
)
from cofi_deploy.tasks.task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = npt.NDArray[np.int64]

NO_WORD = -1


@dataclass(frozen=True, kw_only=True)
class WordPlaces:
    """Which words a feature answers for.

    Attributes:
        example: Index of the sentence, per feature.
        word: Per token, the word of that sentence that begins with it; -1 for all other tokens.
    """

    example: Ints
    word: Ints


class _Sentence(NamedTuple):
    """A tokenised sentence: ids, and the word that each token is a part of, ascending."""

    ids: Ints
    word: Ints


class _Frame(NamedTuple):
    """Special tokens around a sentence, and the token type of all of them."""

    before: Ints
    after: Ints
    token_type: int


def encode_words(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> EncodedSplit:
    """Features of at most `max_length` tokens; a longer sentence is cut between two words.

    Target of a word's first token is the word's class; all other tokens are ignored, as in BERT's
    own named entity recognition (Devlin et al. 2019, 5.3). A word that the tokenizer has no token
    for (a lone control character) is in no feature.

    Raises:
        ConfigError: the tokenizer is not a fast one or does not suit otherwise.
    """
    pad_token_id = check_tokenizer(tokenizer, max_length)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} does not tell character offsets; "
            "token classification needs a fast tokenizer (a tokenizer.json)"
        )
    frame = _frame(tokenizer)
    room = max_length - len(frame.before) - len(frame.after)
    ids: list[Ints] = []
    words: list[Ints] = []
    labels: list[Ints] = []
    places: list[int] = []
    for at, sentence in enumerate(_tokenize(examples, tokenizer)):
        tags = np.asarray(examples[at].tags, dtype=np.int64)
        for start, end in _pieces(sentence.word, room):
            word = _framed(frame, _first_tokens(sentence.word[start:end]), NO_WORD)
            ids.append(np.concatenate([frame.before, sentence.ids[start:end], frame.after]))
            words.append(word)
            labels.append(np.where(word == NO_WORD, IGNORED, tags[word]))
            places.append(at)
    lengths = [len(row) for row in ids]
    return EncodedSplit(
        name=name,
        examples=examples,
        input_ids=np.concatenate(ids).astype(np.int32),
        token_type_ids=np.full(sum(lengths), frame.token_type, dtype=np.int8),
        offsets=offsets_of(lengths),
        pad_token_id=pad_token_id,
        token_targets={"labels": np.concatenate(labels)},
        words=WordPlaces(example=np.asarray(places), word=np.concatenate(words)),
    )


def _tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> Iterator[_Sentence]:
    for start in range(0, len(examples), TOKENIZER_ROWS):
        rows = examples[start : start + TOKENIZER_ROWS]
        encoded = tokenizer(
            [row.text for row in rows],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for row, ids, spans in zip(
            rows, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            # The last character decides: byte-level tokens may include the space before a word.
            ends = np.asarray(spans, dtype=np.int64).reshape(-1, 2)[:, 1]  # (tokens,)
            starts = offsets_of([len(word) + 1 for word in row.words])[:-1]  # (words,)
            word = np.searchsorted(starts, np.maximum(ends - 1, 0), side="right") - 1
            yield _Sentence(np.asarray(ids, dtype=np.int64), word)


def _frame(tokenizer: PreTrainedTokenizerBase) -> _Frame:
    encoded = tokenizer("a", return_special_tokens_mask=True, return_token_type_ids=True)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    content = np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    return _Frame(
        ids[: content[0]], ids[content[-1] + 1 :], int(encoded["token_type_ids"][content[0]])
    )


def _pieces(word: Ints, room: int) -> Iterator[tuple[int, int]]:
    """First token and end of each piece of a sentence; none where it has no tokens.

    A piece ends between two words; of a word that is longer than a piece, the rest is dropped.
    """
    start = 0
    while start < len(word):
        end = min(start + room, len(word))
        if end < len(word) and word[end] == word[end - 1]:
            cut = int(np.searchsorted(word, word[end], side="left"))
            end = cut if cut > start else end
        yield start, end
        # Past the rest of a word that alone was longer than the piece.
        start = max(end, int(np.searchsorted(word, word[end - 1], side="right")))


def _first_tokens(word: Ints) -> Ints:
    """The word where a token begins one, else -1."""
    begins = np.diff(word, prepend=NO_WORD) != 0
    return np.where(begins, word, NO_WORD)


def _framed(frame: _Frame, values: Ints, outside: int) -> Ints:
    return np.concatenate(
        [np.full(len(frame.before), outside), values, np.full(len(frame.after), outside)]
    )
