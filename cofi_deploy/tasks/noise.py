"""More text to distil from: copies of a split in which some tokens are replaced by others.

The teacher says what they mean, so a replaced word that changes the label does no harm. Replacement
tokens are drawn from the split itself: as often as they occur there, and never special ones.

Source: the idea is TinyBERT's data augmentation (Jiao et al. 2020, arXiv:1909.10351), without its
language model and word vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from cofi_deploy.tasks.encoding import EncodedSplit, offsets_of


def with_noisy_copies(
    encoded: EncodedSplit, *, copies: int, share: float, special_ids: Collection[int], seed: int
) -> EncodedSplit:
    """The features of ``encoded``, then ``copies`` times the same ones with noise.

    Args:
        encoded: A split; its targets are repeated.
        copies: How many; 0 gives ``encoded`` back.
        share: Of the tokens that are not special, how many are replaced on average.
        special_ids: Ids that stay as they are and are never drawn.
        seed: Of the draw.

    Returns:
        A split for training alone: it cannot be scored.
    """
    if copies == 0:
        return encoded
    rng = np.random.default_rng([seed, copies])
    words = np.flatnonzero(~np.isin(encoded.input_ids, list(special_ids)))
    texts = [encoded.input_ids, *(_noisy(encoded, words, share, rng) for _ in range(copies))]
    times = copies + 1
    return dataclasses.replace(
        encoded,
        input_ids=np.concatenate(texts),
        token_type_ids=np.tile(encoded.token_type_ids, times),
        offsets=offsets_of(np.tile(encoded.lengths, times).tolist()),
        targets={name: np.tile(values, times) for name, values in encoded.targets.items()},
        token_targets={
            name: np.tile(values, times) for name, values in encoded.token_targets.items()
        },
        windows=None,
        words=None,
    )


def _noisy(
    encoded: EncodedSplit, words: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    ids = encoded.input_ids.copy()
    if len(words):
        replaced = words[rng.random(len(words)) < share]
        ids[replaced] = encoded.input_ids[rng.choice(words, size=len(replaced))]
    return ids
