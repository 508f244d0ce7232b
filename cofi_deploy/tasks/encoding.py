"""Tokenised examples as flat arrays, and the batches that training and runners take from them.

In: examples and a tokenizer. Out: int64 `input_ids`, `attention_mask` and `token_type_ids` of
shape (batch, sequence), padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import ConfigError
from cofi_deploy.tasks.task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cofi_deploy.tasks.squad_windows import Windows
    from cofi_deploy.tasks.token_features import WordPlaces

POOL_BATCHES = 50
TOKENIZER_ROWS = 8192
MIN_MAX_LENGTH = 8
# What cross entropy leaves out: padding, special tokens, and tokens within a word.
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """Features of one split: token ids end to end, with the offset of each feature.

    Attributes:
        name: Of the split.
        examples: What was encoded; gold labels and answers are taken from here.
        input_ids: Token ids of all features, end to end.
        token_type_ids: 0 or 1 for every token of `input_ids`.
        offsets: Where each feature starts; one more entry than features.
        pad_token_id: Fills `input_ids` behind a feature.
        targets: Arrays of one entry per feature, by the name they have in a batch.
        token_targets: Int arrays of one entry per token, by the name they have in a batch.
        windows: For question answering, which part of which context a feature holds.
        words: For token classification, which words of which example a feature holds.
    """

    name: str
    examples: Sequence[Example]
    input_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8]
    offsets: npt.NDArray[np.int64]
    pad_token_id: int
    targets: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    token_targets: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    windows: Windows | None = None
    words: WordPlaces | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each feature, special tokens included."""
        return np.diff(self.offsets)

    def batch(
        self, indices: Sequence[int], *, pad_to: int | None = None, pad_to_multiple: int = 1
    ) -> dict[str, npt.NDArray[Any]]:
        """Pad some features to one length.

        Args:
            indices: Features, in the order of the rows wanted.
            pad_to: Length in tokens; by default that of the longest feature.
            pad_to_multiple: Round the default length up to a multiple of this.

        Returns:
            int64 `input_ids`, `attention_mask`, `token_type_ids` (batch, sequence), and the
            targets of the task: `labels` (batch,), int64 for classes and float32 for scores,
            int64 `labels` (batch, sequence) for tokens, -100 where there is nothing to learn,
            or int64 `start_positions` and `end_positions` (batch,).

        Raises:
            ConfigError: a feature is longer than `pad_to`.
        """
        rows = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        width = _width(rows, lengths, pad_to, pad_to_multiple)
        column = np.arange(width)
        mask = column < lengths[:, None]  # (batch, sequence)
        place = np.where(mask, self.offsets[rows][:, None] + column, 0)  # (batch, sequence)
        tensors: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.where(mask, self.input_ids[place], self.pad_token_id).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": np.where(mask, self.token_type_ids[place], 0).astype(np.int64),
        }
        for name, values in self.token_targets.items():
            tensors[name] = np.where(mask, values[place], IGNORED)  # (batch, sequence)
        return tensors | {name: values[rows] for name, values in self.targets.items()}


def length_bucketed_batches(
    lengths: npt.NDArray[np.integer], batch_size: int, *, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Shuffled batches of near-equal lengths, so that little is padded.

    The shuffled features are cut into pools of 50 batches; each pool is sorted by length and cut
    into batches, whose order is shuffled again.

    Args:
        lengths: Tokens of each feature.
        batch_size: Features in a batch; one batch of the epoch may be smaller.
        seed: Of the run.
        epoch: Each epoch is shuffled differently.

    Returns:
        Index arrays that together hold every feature exactly once.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, allowed: 1 and up")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).astype(np.int64)
    pool_size = POOL_BATCHES * batch_size
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[at] for at in rng.permutation(len(batches))]


def encode_texts(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    labels: npt.NDArray[np.generic],
) -> EncodedSplit:
    """One feature per example: the sentence, or the pair of sentences, cut to `max_length`.

    Of a pair that is too long, tokens are taken from the longer sentence first.

    Raises:
        ConfigError: the tokenizer has no padding token, or allows no `max_length` tokens.
    """
    pad_token_id = check_tokenizer(tokenizer, max_length)
    ids: list[npt.NDArray[np.int32]] = []
    types: list[npt.NDArray[np.int8]] = []
    for start in range(0, len(examples), TOKENIZER_ROWS):
        rows = examples[start : start + TOKENIZER_ROWS]
        pairs = [row.text_pair or "" for row in rows] if rows[0].text_pair is not None else None
        encoded = tokenizer(
            [row.text for row in rows],
            pairs,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        ids += [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        types += [np.asarray(row, dtype=np.int8) for row in encoded["token_type_ids"]]
    return EncodedSplit(
        name=name,
        examples=examples,
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(types),
        offsets=offsets_of([len(row) for row in ids]),
        pad_token_id=pad_token_id,
        targets={"labels": labels},
    )


def offsets_of(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Start of each stretch when stretches of these lengths lie end to end, and the total."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """The padding id, once the tokenizer is known to suit.

    Raises:
        ConfigError: the tokenizer has no padding token, or allows no `max_length` tokens.
    """
    pad_token_id = tokenizer.pad_token_id
    if not isinstance(pad_token_id, int):
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token; "
            "use the tokenizer of an encoder"
        )
    if max_length > tokenizer.model_max_length:
        raise ConfigError(
            f"max_length is {max_length}, but the tokenizer {tokenizer.name_or_path!r} allows "
            f"{tokenizer.model_max_length} tokens; lower max_length"
        )
    return pad_token_id


def take(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """`limit` examples, evenly spaced; all of them when there are no more.

    Raises:
        ConfigError: `limit` is below 1.
    """
    if limit is None or limit >= len(examples):
        return examples
    if limit < 1:
        raise ConfigError(f"limit is {limit}, allowed: 1 and up")
    places = np.arange(limit, dtype=np.int64) * len(examples) // limit
    return [examples[at] for at in places.tolist()]


def check_max_length(max_length: int) -> None:
    """Refuse a length that no sentence fits into.

    Raises:
        ConfigError: below 8 tokens.
    """
    if max_length < MIN_MAX_LENGTH:
        raise ConfigError(f"max_length is {max_length}, allowed: {MIN_MAX_LENGTH} and up")


def _width(
    rows: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    pad_to: int | None,
    pad_to_multiple: int,
) -> int:
    longest = int(lengths.max(initial=0))
    if pad_to is None:
        return -(-longest // pad_to_multiple) * pad_to_multiple
    if longest > pad_to:
        raise ConfigError(
            f"pad_to is {pad_to}, but feature {rows[lengths.argmax()]} has {longest} tokens; "
            f"pad to {longest} or more"
        )
    return pad_to
