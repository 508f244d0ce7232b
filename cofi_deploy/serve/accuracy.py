"""Run a split through a runner, score it, and compare the answers of two passes.

In: a runner, a task, an encoded split. Out: answers, metrics, parity with PyTorch. Knows no
runtime. Next file: `significance.py`.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.serve.inputs import Tensors
from cofi_deploy.serve.runner import Runner
from cofi_deploy.tasks import EncodedSplit, Task
from cofi_deploy.tasks.inference import predict_split

FeatureOutputs = list[dict[str, npt.NDArray[Any]]]

# Predicted scores (regression) that are this close count as equal: runtimes sum in other orders.
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What one model answered in one runtime, and what that is worth.

    Attributes:
        outputs: Per feature, without batch axis and padding; what is not finite reads 0.
        predictions: Per example.
        metrics: Fractions, by name.
        wall_s: Seconds of inference over the split.
        not_finite: Features whose answers held NaN or infinity.
    """

    outputs: FeatureOutputs
    predictions: list[Hashable]
    metrics: dict[str, float]
    wall_s: float
    not_finite: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How closely a runtime answers like PyTorch does with the same weights.

    The differences are None where the two read other tokens, as a cut vocabulary may give; the mean
    is over every logit of every feature.
    """

    agreement: float
    max_abs_logit_diff: float | None
    mean_abs_logit_diff: float | None


def score_split(
    runner: Runner, task: Task, encoded: EncodedSplit, *, batch_size: int = 32
) -> Scored:
    """Run every feature of a split and score the answers.

    An answer with NaN or infinity is scored as if it were 0 there, and noted in `not_finite`: an
    overflow is to be told with its reason (`diagnosis.py`), not to end the measurement.

    Raises:
        RunnerError: An inference failed.
    """

    def infer(batch: Tensors) -> dict[str, npt.NDArray[Any]]:
        return runner.infer({name: batch[name] for name in runner.input_names})

    start = time.perf_counter()
    outputs = predict_split(infer, encoded, kind=task.kind, batch_size=batch_size)
    wall_s = time.perf_counter() - start
    not_finite = tuple(at for at, row in enumerate(outputs) if not _is_finite(row))
    for at in not_finite:
        outputs[at] = {name: finite(array) for name, array in outputs[at].items()}
    return Scored(
        outputs=outputs,
        predictions=task.predictions(encoded, outputs),
        metrics=task.score(encoded, outputs),
        wall_s=wall_s,
        not_finite=not_finite,
    )


def compare(reference: Scored, other: Scored) -> Parity:
    """Compare a pass with the PyTorch pass of the same model over the same features."""
    return Parity(
        agreement=agreement(reference.predictions, other.predictions),
        max_abs_logit_diff=max_abs_logit_diff(reference.outputs, other.outputs),
        mean_abs_logit_diff=mean_abs_logit_diff(reference.outputs, other.outputs),
    )


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Share of examples on which two passes predict the same."""
    return 1.0 - len(disagreements(first, second)) / max(len(first), 1)


def disagreements(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[int]:
    """Places of the examples on which two passes predict something else."""
    pairs = enumerate(zip(first, second, strict=True))
    return [index for index, (one, other) in pairs if not _is_equal(one, other)]


def max_abs_logit_diff(first: FeatureOutputs, second: FeatureOutputs) -> float | None:
    """Largest absolute difference of any logit of any feature; None where there are others."""
    differences = _differences(first, second)
    if differences is None:
        return None
    return max((float(each.max()) for each in differences), default=0.0)


def mean_abs_logit_diff(first: FeatureOutputs, second: FeatureOutputs) -> float | None:
    """Mean absolute difference over every logit of every feature; None where there are others."""
    differences = _differences(first, second)
    if differences is None:
        return None
    total = sum(float(each.sum(dtype=np.float64)) for each in differences)
    return total / max(sum(each.size for each in differences), 1)


def finite(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values, 0 where one is NaN or infinite."""
    return np.where(np.isfinite(array), array, 0).astype(array.dtype)


def _differences(first: FeatureOutputs, second: FeatureOutputs) -> list[npt.NDArray[Any]] | None:
    """Absolute difference of each output of each feature; None where the shapes differ."""
    if _shapes(first) != _shapes(second):
        return None
    pairs = zip(first, second, strict=True)
    return [np.abs(one[name] - other[name]) for one, other in pairs for name in one]


def _is_finite(row: Tensors) -> bool:
    return all(bool(np.isfinite(array).all()) for array in row.values())


def _shapes(outputs: FeatureOutputs) -> list[tuple[int, ...]]:
    return [array.shape for feature in outputs for array in feature.values()]


def _is_equal(one: Hashable, other: Hashable) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= SCORE_TOLERANCE
    return one == other
