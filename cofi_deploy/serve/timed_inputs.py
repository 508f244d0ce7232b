"""Inputs for timing: the task's own texts, or its token ids cut to the length asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve.inputs import InputLimits, check_inputs, random_inputs
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.tasks import EncodedSplit

Batch = dict[str, npt.NDArray[Any]]

# Different batches of the task's own texts that are timed in turn.
TASK_BATCHES = 16


def batches_for(
    point: OperatingPoint, limits: InputLimits, encoded: EncodedSplit | None, *, seed: int
) -> list[Batch]:
    """What is fed at an operating point, in turn.

    For a length in tokens: one unpadded batch, of the split's ids end to end or else of random
    ids. For the task's lengths: up to 16 batches of its texts in random order, each padded to its
    longest.

    Raises:
        RunnerError: The length is more than the model has positions, or the task's lengths are
            asked for without a split.
    """
    if not isinstance(point.seq_len, int):
        if encoded is None:
            raise RunnerError(f"{point} needs the texts of a task, got none; name a task")
        return _task_batches(encoded, point.batch_size, seed)
    inputs = random_inputs(limits, point.batch_size, point.seq_len, seed=seed)
    if encoded is not None:
        ids = np.resize(encoded.input_ids, (point.batch_size, point.seq_len))
        inputs["input_ids"] = ids.astype(np.int64)
        check_inputs(inputs, limits)
    return [inputs]


def _task_batches(encoded: EncodedSplit, size: int, seed: int) -> list[Batch]:
    order = np.random.default_rng(seed).permutation(len(encoded))
    count = max(1, min(TASK_BATCHES, len(order) // size))
    rows = np.resize(order, (count, size))  # repeats features where the split is too small
    return [encoded.batch(chosen.tolist()) for chosen in rows]


def longest(batches: list[Batch]) -> int:
    """Tokens of the longest batch, padding included."""
    return max(int(batch["input_ids"].shape[1]) for batch in batches)


def real_tokens(batches: list[Batch]) -> int:
    """Tokens of all batches that are no padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def length_keys(batches: list[Batch]) -> dict[str, float]:
    """Lengths of the texts that are fed, and how much of what is computed is padding.

    ``tokens_mean``, ``tokens_p50`` and ``tokens_p95`` of one text, special tokens included;
    ``padding_share`` of all positions.
    """
    lengths = np.concatenate([batch["attention_mask"].sum(axis=1) for batch in batches])
    positions = sum(batch["attention_mask"].size for batch in batches)
    p50, p95 = np.percentile(lengths, [50, 95])
    return {
        "tokens_mean": float(lengths.mean()),
        "tokens_p50": float(p50),
        "tokens_p95": float(p95),
        "padding_share": 1.0 - real_tokens(batches) / positions,
    }
