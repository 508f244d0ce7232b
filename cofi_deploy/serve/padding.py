"""Does an artifact give a text the same answer alone, padded, and among others?

In: a runner and an encoded split. Out: a `PaddingInvariance`. The artifact is compared with itself,
so that rounding and a wrong mask are told apart: int8 whose ranges are found at run time, or a mask
that leaks, moves an answer with what lies beside it. Knows no runtime.

A feature costs an inference at batch 1 and two at the split's longest length: all of a
classification set, but hours for a dense encoder on SQuAD's ten thousand. So features are asked in
an order of which every beginning is evenly spread over the lengths, until the time is used up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.kinds import TaskKind, is_per_token
from cofi_deploy.serve.accuracy import (
    SCORE_TOLERANCE,
    FeatureOutputs,
    finite,
    max_abs_logit_diff,
)
from cofi_deploy.serve.runner import Runner
from cofi_deploy.tasks import EncodedSplit

# An artifact gets so many seconds, or this share of its pass over the split, whichever is more.
MIN_SECONDS = 15.0
SHARE_OF_PASS = 0.25


@dataclass(frozen=True, kw_only=True)
class PaddingInvariance:
    """How far an artifact's answers move with padding and with what else is in the batch.

    Attributes:
        padding_examples: Features that were asked: all of the split, or as many as there was time
            for, evenly spread from the shortest to the longest.
        padding_agreement: Share of them whose predictions are the same alone, padded and mixed.
        padding_max_abs_logit_diff: Largest difference to a logit of the feature alone.
    """

    padding_examples: int
    padding_agreement: float
    padding_max_abs_logit_diff: float


def padding_invariance(
    runner: Runner,
    encoded: EncodedSplit,
    *,
    kind: TaskKind,
    batch_size: int = 32,
    max_seconds: float = MIN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> PaddingInvariance:
    """Ask each feature alone, alone but padded to the split's longest, and in mixed batches.

    Args:
        runner: The artifact.
        encoded: The split.
        kind: Of its task.
        batch_size: Of the mixed batches.
        max_seconds: No batch of features is begun later; one is asked in any case.
        clock: In seconds.

    Raises:
        RunnerError: An inference failed.
    """
    features = spread(encoded.lengths)
    longest = int(encoded.lengths.max(initial=0))
    same: list[bool] = []
    largest = 0.0
    start = clock()
    for at in range(0, len(features), batch_size):
        if at and clock() - start > max_seconds:
            break
        rows = features[at : at + batch_size]  # short and long ones
        alone = _answers(runner, encoded, kind, [[row] for row in rows], None)
        padded = _answers(runner, encoded, kind, [[row] for row in rows], longest)
        mixed = _answers(runner, encoded, kind, [rows], longest)
        same += [
            all(_is_same(one, other, kind) for other in others)
            for one, *others in zip(alone, padded, mixed, strict=True)
        ]
        differences = [max_abs_logit_diff(alone, other) or 0.0 for other in (padded, mixed)]
        largest = max(largest, *differences)
    return PaddingInvariance(
        padding_examples=len(same),
        padding_agreement=sum(same) / max(len(same), 1),
        padding_max_abs_logit_diff=largest,
    )


def spread(lengths: npt.NDArray[np.int64]) -> list[int]:
    """All features, shortest and longest first; each beginning is evenly spread over the lengths.

    Source:
        van der Corput's sequence in base 2: places in the order of their bits read backwards.
    """
    order = np.argsort(lengths, kind="stable")
    if len(order) < 3:
        return [int(row) for row in order]
    bits = (len(order) - 1).bit_length()
    places = sorted(range(len(order)), key=lambda place: f"{place:0{bits}b}"[::-1])
    places.remove(len(order) - 1)
    places.insert(1, len(order) - 1)
    return [int(row) for row in order[places]]


def _answers(
    runner: Runner,
    encoded: EncodedSplit,
    kind: TaskKind,
    batches: list[list[int]],
    pad_to: int | None,
) -> FeatureOutputs:
    """Outputs of every feature of the batches, in their order, without batch axis and padding."""
    found: FeatureOutputs = []
    for rows in batches:
        batch = encoded.batch(rows, pad_to=pad_to)
        outputs = runner.infer({name: batch[name] for name in runner.input_names})
        for place, row in enumerate(rows):
            end = int(encoded.lengths[row]) if is_per_token(kind) else None
            found.append(
                {
                    name: finite(value[place] if end is None else value[place, :end])
                    for name, value in outputs.items()
                }
            )
    return found


def _is_same(one: dict[str, Any], other: dict[str, Any], kind: TaskKind) -> bool:
    if kind == "text-regression":
        return all(np.abs(one[name] - other[name]).max() <= SCORE_TOLERANCE for name in one)
    return all(np.array_equal(one[name].argmax(-1), other[name].argmax(-1)) for name in one)
