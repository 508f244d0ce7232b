"""Which training examples are held out: stratified by label, or by whole groups.

In: labels or groups. Out: sorted indices. Both are deterministic in the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]

HOLDOUT_SHARE = 0.1
HOLDOUT_MIN = 200
HOLDOUT_MAX = 2000
HOLDOUT_MAX_SHARE = 0.2
MAX_ASKED_SHARE = 0.5


def check_holdout(holdout: float | None) -> None:
    """Refuse a share that leaves nothing to select on, or too little to learn from.

    Raises:
        ConfigError: `holdout` is outside (0, 0.5].
    """
    if holdout is not None and not 0.0 < holdout <= MAX_ASKED_SHARE:
        raise ConfigError(
            f"holdout is {holdout}, allowed: above 0 and up to {MAX_ASKED_SHARE}; "
            "it is the share of the training rows that checkpoints are chosen on"
        )


def holdout_size(rows: int, holdout: float | None, origin: str) -> int:
    """How many of `rows` training examples to hold out.

    By default 10 %, at least 200 and at most 2,000, but never more than 20 %.

    Raises:
        DataError: there are too few rows to hold one out.
    """
    if holdout is not None:
        size = int(rows * holdout)
    else:
        wanted = min(max(int(rows * HOLDOUT_SHARE), HOLDOUT_MIN), HOLDOUT_MAX)
        size = min(wanted, int(rows * HOLDOUT_MAX_SHARE))
    if size < 1:
        needed = int(np.ceil(1.0 / (holdout or HOLDOUT_MAX_SHARE)))
        raise DataError(
            f"{origin!r} has {rows} usable rows, too few to hold any out; "
            f"at least {needed} are needed"
        )
    return size


def pick_stratified(labels: Sequence[float], size: int, *, seed: int, classes: bool) -> Indices:
    """`size` indices whose labels are distributed like all of them.

    The examples are sorted by label, shuffled within equal labels, and every n-th is
    taken (systematic sampling): each class gets its share to within one example, and for
    scores the whole range is covered. A class with a single example stays in training.

    Args:
        labels: Class indices, or scores.
        size: At most half of the examples.
        seed: Of the shuffle and of the first pick.
        classes: True when `labels` are class indices.

    Returns:
        Sorted indices into `labels`.
    """
    values = np.asarray(labels, dtype=np.float64)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.permutation(len(values)), values))
    if classes:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        order = order[counts[inverse][order] > 1]
    step = len(order) / size
    picks = np.floor((np.arange(size) + rng.random()) * step).astype(np.int64)
    return np.sort(order[np.minimum(picks, len(order) - 1)]).astype(np.int64)


def pick_groups(groups: Sequence[int], size: int, *, seed: int) -> Indices:
    """Indices of whole groups, together as close below `size` as a random order allows.

    Where even the smallest group is larger than `size`, that group is taken.

    Raises:
        ValueError: all examples are in one group.
    """
    values = np.asarray(groups)
    names, counts = np.unique(values, return_counts=True)
    if len(names) < 2:
        raise ValueError("one group cannot be divided")
    taken: list[int] = []
    total = 0
    for at in np.random.default_rng(seed).permutation(len(names)):
        if total + counts[at] <= size:
            taken.append(int(names[at]))
            total += int(counts[at])
    if not taken:
        taken.append(int(names[np.argmin(counts)]))
    return np.flatnonzero(np.isin(values, taken)).astype(np.int64)
