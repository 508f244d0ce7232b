"""Text -> token ids: what a server runs as `<name>_tokenizer`, the first step of `<name>_text`.

Comes in: strings. Goes out: what the encoder takes, padded to one of a few lengths so that the
server can merge requests, and what `answer.py` needs to find an answer in the text again. Settings
and tokenizer lie beside this file, which is copied into repositories as it is: it runs on Python
3.8 and later and needs numpy and tokenizers only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Sequence, Tuple, Union

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Encoding, Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Tensors = Dict[str, Array]  # by tensor name
    Item = Union[str, Tuple[str, str]]  # a text, or a text and its pair
    Result = Union[Tensors, "Rejected"]

# Values of `token_roles`: is a token part of a word, and does it start it?
NO_WORD, WORD_START, WORD_INSIDE = 0, 1, 2
# Values of `candidates`: may an answer hold the token? The softmax counts [CLS], too.
NO_CANDIDATE, COUNTED, CANDIDATE = 0, 1, 2


class Rejected(Exception):  # noqa: N818 - an answer to the caller, not a fault of ours
    """A request that gets an error instead of an answer; others in the same call get theirs."""


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open tokenizer and settings; whatever is raised here, the server tells as the reason."""
        # The cores belong to the encoder; more instances of this model tokenise in parallel.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        folder = Path(args["model_repository"], args["model_version"])
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._step = _STEPS[settings["kind"]](tokenizer, settings)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; all texts go through the tokenizer together."""
        read = [self._read(request) for request in requests]
        encoded = iter(self._step.encode([item for item in read if isinstance(item, list)]))
        return [_response(next(encoded) if isinstance(item, list) else item) for item in read]

    def _read(self, request: Any) -> list[Item] | Rejected:
        try:
            return self._step.read(request)
        except Rejected as problem:
            return problem


class TextStep:
    """Rows of one text, or of a text and its pair: classification and regression."""

    strings_in_a_row: tuple[int, ...] = (1, 2)

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        """Cut long texts as transformers does with ``truncation=True``."""
        self._tokenizer, self._settings = tokenizer, settings
        tokenizer.enable_truncation(
            settings["max_length"],
            strategy="longest_first",
            direction=settings["truncation_side"],
        )

    def read(self, request: Any) -> list[Item]:
        """The texts of one request, one entry for each row.

        Raises:
            Rejected: A string, or the number of strings in a row, is not as it should be.
        """
        rows = _input(request, "text")
        strings = _strings("text", rows, self._settings["max_characters"])
        width = rows.shape[-1]
        if width not in self.strings_in_a_row:
            allowed = " or ".join(str(number) for number in self.strings_in_a_row)
            raise Rejected(
                f"a row of 'text' holds {width} strings, allowed: {allowed}; send each text in a "
                "row of its own"
            )
        if width == 1:
            return list(strings)
        return list(zip(strings[::2], strings[1::2]))

    def encode(self, requests: Sequence[list[Item]]) -> list[Result]:
        """Tensors of every request."""
        # Without offsets, which nobody needs here, the tokenizer is about twice as fast.
        encodings = self._tokenizer.encode_batch_fast(
            [item for items in requests for item in items]
        )
        return [self.tensors(part) for part in _split(encodings, requests)]

    def tensors(self, encodings: Sequence[Encoding]) -> Tensors:
        """What the encoder takes, (rows, length)."""
        return _padded(encodings, self._settings)


class TokenStep(TextStep):
    """Rows of one text whose tokens get a label each."""

    strings_in_a_row = (1,)

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        """Learn how tokens that continue a word are told from those that start one."""
        super().__init__(tokenizer, settings)
        self._token_lengths = None
        if getattr(tokenizer.model, "continuing_subword_prefix", None):
            vocabulary = tokenizer.get_vocab(with_added_tokens=True)
            self._token_lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
            for token, index in vocabulary.items():
                self._token_lengths[index] = len(token)

    def encode(self, requests: Sequence[list[Item]]) -> list[Result]:
        """Tensors of every request: the encoder's, `spans` (rows, length, 2) and `token_roles`."""
        flat = [item for items in requests for item in items]
        encodings = _split(self._tokenizer.encode_batch(flat), requests)
        return [self._with_spans(part, items) for part, items in zip(encodings, requests)]

    def _with_spans(self, encodings: Sequence[Encoding], texts: Sequence[Item]) -> Tensors:
        tensors = self.tensors(encodings)
        shape = tensors["input_ids"].shape
        spans = np.zeros((*shape, 2), dtype=np.int32)  # (rows, length, 2), in characters
        special = np.ones(shape, dtype=bool)
        spaces = np.zeros(shape, dtype=bool)
        for row, encoding in enumerate(encodings):
            spans[row, : len(encoding)] = encoding.offsets
            special[row, : len(encoding)] = encoding.special_tokens_mask
            spaces[row] = _after_space(texts[row], spans[row, :, 0])
        inside = self._continues(tensors["input_ids"], spans, spaces)
        roles = np.where(inside, WORD_INSIDE, WORD_START)
        tensors["token_roles"] = np.where(special, NO_WORD, roles).astype(np.int8)
        tensors["spans"] = spans
        return tensors

    def _continues(self, ids: Any, spans: Any, after_space: Any) -> Any:
        """Which tokens continue a word, by the rules of transformers' TokenClassificationPipeline.

        Where the tokenizer marks such tokens ("##ing"), a token that is longer than its text is
        marked; else a token continues a word unless a space stands at or before its start.
        """
        if self._token_lengths is None:
            inside = (spans[..., 0] > 0) & ~after_space
        else:
            inside = self._token_lengths[ids] != spans[..., 1] - spans[..., 0]
        return inside & (ids != self._settings["unk_id"])


class QuestionStep:
    """Questions, each with a context; a context that is too long becomes overlapping windows."""

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        """Count the special tokens that every window holds."""
        self._tokenizer, self._settings = tokenizer, settings
        self._room = settings["max_length"] - tokenizer.num_special_tokens_to_add(True)

    def read(self, request: Any) -> list[Item]:
        """The pairs of question and context of one request.

        Raises:
            Rejected: A string is not as it should be, or one has no partner.
        """
        limit = self._settings["max_characters"]
        questions = _strings("question", _input(request, "question"), limit)
        contexts = _strings("context", _input(request, "context"), limit)
        if len(questions) != len(contexts):
            raise Rejected(
                f"'question' holds {len(questions)} strings and 'context' {len(contexts)}, "
                "allowed: as many of each; send a context with every question"
            )
        return list(zip(questions, contexts))

    def encode(self, requests: Sequence[list[Item]]) -> list[Result]:
        """Tensors of every request, or why there are none."""
        windows = self._windows([pair for pairs in requests for pair in pairs])
        return [self._tensors(part) for part in _split(windows, requests)]

    def _windows(self, pairs: Sequence[Item]) -> list[list[Encoding]]:
        """Windows of every pair; none where the question leaves no room for a context."""
        self._tokenizer.no_truncation()
        questions = self._tokenizer.encode_batch_fast(
            [pair[0] for pair in pairs], add_special_tokens=False
        )
        rooms = [self._room - len(question) for question in questions]
        windows: list[list[Encoding]] = [[] for _ in pairs]
        # The overlap is a setting of the tokenizer, nearly always the same for all pairs.
        for overlap in {self._overlap(room) for room in rooms if room > 0}:
            rows = [
                at for at, room in enumerate(rooms) if room > 0 and self._overlap(room) == overlap
            ]
            self._tokenizer.enable_truncation(
                self._settings["max_length"],
                stride=overlap,
                strategy="only_second",
                direction=self._settings["truncation_side"],
            )
            for at, encoding in zip(rows, self._tokenizer.encode_batch([pairs[at] for at in rows])):
                windows[at] = [encoding, *encoding.overflowing]
        return windows

    def _overlap(self, room: int) -> int:
        """Tokens that neighbouring windows share; fewer where a long question leaves less room."""
        overlap: int = self._settings["overlap"]
        return overlap if overlap < room else room // 2

    def _tensors(self, windows: Sequence[list[Encoding]]) -> Result:
        for at, of_pair in enumerate(windows):
            if not of_pair:
                return Rejected(
                    f"question[{at}] has more than {self._room - 1} tokens, which leaves no room "
                    "for its context; ask in fewer words"
                )
        total, fitting = sum(map(len, windows)), self._settings["max_windows"]
        longest = self._settings["max_length"]
        if total > fitting:
            return Rejected(
                f"the contexts make {total} windows of up to {longest} tokens, allowed: {fitting} "
                "in a request; send fewer questions or shorter contexts"
            )
        flat = [encoding for of_pair in windows for encoding in of_pair]
        tensors = _padded(flat, self._settings)
        tensors["owners"] = np.repeat(np.arange(len(windows)), [len(part) for part in windows])
        return _with_candidates(tensors, flat, self._settings["cls_id"])


_STEPS: dict[str, type[TextStep] | type[QuestionStep]] = {
    "text-classification": TextStep,
    "text-regression": TextStep,
    "token-classification": TokenStep,
    "question-answering": QuestionStep,
}


def _input(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _strings(name: str, array: Any, max_characters: int) -> list[str]:
    """Decode all strings of a tensor, row by row.

    Raises:
        Rejected: The first one that is empty, too long or not UTF-8; its place is named.
    """
    if not array.size:
        raise Rejected(f"{name!r} holds no string, allowed: 1 or more; send a text")
    strings = []
    for index, value in np.ndenumerate(array):
        place = f"{name}{list(index)}"
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected(
                f"{place} is not UTF-8 (byte 0x{value[error.start]:02x} at position "
                f"{error.start}); encode it as UTF-8"
            ) from error
        if not text.strip():
            raise Rejected(f"{place} is empty or blank; send a text")
        if len(text) > max_characters:
            raise Rejected(
                f"{place} has {len(text)} characters, allowed: {max_characters}; send a shorter "
                "text"
            )
        strings.append(text)
    return strings


def _split(items: Sequence[Any], requests: Sequence[list[Item]]) -> list[Sequence[Any]]:
    """Hand every request its own part of what all made together."""
    parts, start = [], 0
    for request in requests:
        parts.append(items[start : start + len(request)])
        start += len(request)
    return parts


def _padded(encodings: Sequence[Encoding], settings: Mapping[str, Any]) -> Tensors:
    """Ids, mask and token types, (rows, length), padded on the right to a length bucket."""
    lengths = np.array([len(encoding) for encoding in encodings])
    width = min(bucket for bucket in settings["length_buckets"] if bucket >= lengths.max())
    ids = np.full((len(encodings), width), settings["pad_id"], dtype=np.int64)
    types = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : lengths[row]] = encoding.ids
        types[row, : lengths[row]] = encoding.type_ids
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def _after_space(text: Item, starts: Any) -> Any:
    """For every token, whether a space is its first character or the one before it."""
    # One character more at either end: a token may start at the end of the text.
    characters = np.frombuffer(f"_{text}_".encode("utf-32-le"), dtype=np.uint32)
    return (characters[starts] == ord(" ")) | (characters[starts + 1] == ord(" "))


def _with_candidates(tensors: Tensors, encodings: Sequence[Encoding], cls_id: int) -> Tensors:
    """Add `candidates` (windows, length) and `spans` (windows, length, 2).

    A span is in characters of the context and that of the whole word that a token belongs to: an
    answer starts and ends with words.
    """
    shape = tensors["input_ids"].shape
    candidates = np.full(shape, NO_CANDIDATE, dtype=np.int8)
    candidates[(tensors["input_ids"] == cls_id) & (tensors["attention_mask"] == 1)] = COUNTED
    spans = np.zeros((*shape, 2), dtype=np.int32)
    for row, encoding in enumerate(encodings):
        # None, which special tokens have instead of a number, becomes NaN: equal to nothing.
        sequences = np.array(encoding.sequence_ids, dtype=np.float64)
        context = np.flatnonzero(sequences == 1)
        if len(context):
            inside = slice(context[0], context[-1] + 1)
            words = np.array(encoding.word_ids, dtype=np.float64)[inside]
            spans[row, inside] = _word_spans(np.array(encoding.offsets)[inside], words)
            candidates[row, inside] = CANDIDATE
    tensors["candidates"], tensors["spans"] = candidates, spans
    return tensors


def _word_spans(spans: Any, words: Any) -> Any:
    """Widen the span (tokens, 2) of every token to that of its word, of which a run is one."""
    starts_word = np.append(True, words[1:] != words[:-1])
    first = np.flatnonzero(starts_word)
    last = np.append(first[1:], len(words)) - 1
    word = np.cumsum(starts_word) - 1
    return np.stack([spans[first[word], 0], spans[last[word], 1]], axis=-1)


def _response(result: Result) -> Any:
    if isinstance(result, Rejected):
        error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in result.items()]
    )
