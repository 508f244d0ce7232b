"""Does an artifact give a text the same answer alone, padded, and among others?

In: a runner and an encoded split. Out: a `PaddingInvariance`. The artifact is compared with itself,
so that rounding and a wrong mask are told apart: int8 whose ranges are found at run time, or a mask
that leaks, moves an answer with what lies beside it. Knows no runtime.
"""

from __future__ import annotations

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

# Each of them costs an inference at batch 1 and two at the split's longest length.
MAX_EXAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class PaddingInvariance:
    """How far an artifact's answers move with padding and with what else is in the batch.

    Attributes:
        padding_examples: Features that were asked, evenly spaced from the shortest to the longest.
        padding_agreement: Share of them whose predictions are the same alone, padded and mixed.
        padding_max_abs_logit_diff: Largest difference to a logit of the feature alone.
    """

    padding_examples: int
    padding_agreement: float
    padding_max_abs_logit_diff: float


def padding_invariance(
    runner: Runner, encoded: EncodedSplit, *, kind: TaskKind, batch_size: int = 32
) -> PaddingInvariance:
    """Ask each feature alone, alone but padded to the split's longest, and in mixed batches.

    Raises:
        RunnerError: An inference failed.
    """
    chosen = _spread(encoded.lengths)
    longest = int(encoded.lengths.max(initial=0))
    alone = _answers(runner, encoded, kind, [[row] for row in chosen], None)
    padded = _answers(runner, encoded, kind, [[row] for row in chosen], longest)
    # Every batch holds short and long features.
    shuffled = [*chosen[::2], *chosen[1::2]]
    batches = [shuffled[at : at + batch_size] for at in range(0, len(shuffled), batch_size)]
    by_row = dict(zip(shuffled, _answers(runner, encoded, kind, batches, longest), strict=True))
    mixed = [by_row[row] for row in chosen]
    same = [
        all(_is_same(one, other, kind) for other in others)
        for one, *others in zip(alone, padded, mixed, strict=True)
    ]
    differences = [max_abs_logit_diff(alone, other) or 0.0 for other in (padded, mixed)]
    return PaddingInvariance(
        padding_examples=len(chosen),
        padding_agreement=sum(same) / max(len(same), 1),
        padding_max_abs_logit_diff=max(differences),
    )


def _spread(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Features from the shortest to the longest, evenly spaced in that order."""
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(len(order), MAX_EXAMPLES)).round().astype(int)
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
