"""What a lossy artifact costs on real text of its task: agreement, and the metric before and after.

Comes in: a function that runs the artifact, the model, held-out examples. Goes out: a `TextParity`,
or an `ExportError` when more is lost than the precision may lose. The built-in sentences cannot
tell: whether 99.5 % or 95 % of the predictions stay shows only on hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from cofi_deploy.errors import ExportError
from cofi_deploy.export.calibration import CHECK_SPLIT, CalibrationText
from cofi_deploy.export.manifest import Source
from cofi_deploy.export.numerics import Precision
from cofi_deploy.export.parity import (
    RELATIVE_TOLERANCE,
    Infer,
    Outputs,
    batch_of,
    check_parity,
    is_same_answer,
    largest_difference,
    largest_value,
    mean_difference,
    torch_outputs,
)
from cofi_deploy.exports import ExportParity, TextParity
from cofi_deploy.kinds import TaskKind
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks.inference import predict_split

# Share of predictions that must stay. int8 and a cut vocabulary flip predictions in both
# directions, so where the text has labels the metric is what binds.
MIN_AGREEMENT: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.995, "int8": 0.95}
MIN_CUT_AGREEMENT = 0.95
MAX_METRIC_DROP = 0.005

MAX_EXAMPLES = 1000
# So many standard errors are put down to the choice of the examples.
_CHANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model or an artifact makes of a text.

    ``outputs`` are of every feature; ``predictions`` of every example, and ``metric`` what they are
    worth, where the text has labels.
    """

    examples: int
    outputs: list[Outputs]
    predictions: Sequence[Hashable] = ()
    metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Text, and the model as it was before anything was cut or rounded.

    ``split`` is of the text's task, where it has one.
    """

    text: CalibrationText
    tokenizer: PreTrainedTokenizerBase
    model: CofiPreTrainedModel
    split: Literal["selection", "train"] = CHECK_SPLIT

    @cached_property
    def expected(self) -> Answers:
        """PyTorch's answers, computed when the first artifact is measured, and kept.

        Raises:
            DataError: The task's data is missing or unusable.
        """
        return self.answers(lambda inputs: torch_outputs(self.model, inputs), self.tokenizer)

    def answers(self, infer: Infer, tokenizer: PreTrainedTokenizerBase) -> Answers:
        """The answers of what is behind ``infer``, with the tokenizer beside it.

        Raises:
            DataError: The task's data is missing or unusable.
        """
        task = self.text.task
        if task is None:
            rows = self.text.rows(tokenizer, self.model.arch, MAX_EXAMPLES)
            return Answers(examples=len(rows), outputs=[infer(batch_of([row])) for row in rows])
        encoded = task.encode(self.split, tokenizer, limit=MAX_EXAMPLES)
        outputs = predict_split(infer, encoded, kind=task.kind, batch_size=32)
        return Answers(
            examples=len(encoded.examples),
            outputs=outputs,
            predictions=task.predictions(encoded, outputs),
            metric=task.score(encoded, outputs)[task.metric_name],
        )


def check_answers(
    infer: Infer,
    source: Source,
    model: CofiPreTrainedModel,
    *,
    runtime: str,
    precision: Precision,
    yardstick: Yardstick | None = None,
) -> ExportParity:
    """Compare the artifact behind ``infer`` with ``model``, as closely as ``precision`` allows.

    Every format is compared on the built-in sentences; one that loses something is measured by the
    yardstick, too.

    Raises:
        ExportError: The answers differ by more than the precision explains.
    """
    parity = check_parity(
        infer,
        model,
        source.tokenizer,
        runtime=runtime,
        precision=precision,
    )
    if yardstick is None or (precision == "fp32" and source.tokenizer is yardstick.tokenizer):
        return parity
    return replace(parity, text=check_on_text(infer, source.tokenizer, yardstick, precision))


def check_on_text(
    infer: Infer, tokenizer: PreTrainedTokenizerBase, yardstick: Yardstick, precision: Precision
) -> TextParity:
    """Compare the artifact behind ``infer``, and the tokenizer beside it, with the yardstick.

    Raises:
        ExportError: More is lost than ``precision`` may lose, by more than chance explains.
        DataError: The task's data is missing or unusable.
    """
    parity = measure_on_text(infer, tokenizer, yardstick, precision)
    _check(parity, precision, is_cut=tokenizer is not yardstick.tokenizer)
    return parity


def measure_on_text(
    infer: Infer, tokenizer: PreTrainedTokenizerBase, yardstick: Yardstick, precision: Precision
) -> TextParity:
    """What `check_on_text` judges by.

    Raises:
        DataError: The task's data is missing or unusable.
    """
    expected, got = yardstick.expected, yardstick.answers(infer, tokenizer)
    tolerance = RELATIVE_TOLERANCE[precision] * largest_value(expected.outputs)
    both = expected.outputs, got.outputs
    is_comparable = _is_comparable(*both)
    task, source = yardstick.text.task, yardstick.text.source
    if task is not None:
        origin = "held out of" if yardstick.split == CHECK_SPLIT else "in"
        source = f"{expected.examples} examples {origin} the {source}"
    return TextParity(
        source=source,
        examples=expected.examples,
        agreement=_agreement(expected, got, yardstick.model.kind, tolerance),
        max_abs_logit_diff=largest_difference(*both) if is_comparable else None,
        mean_abs_logit_diff=mean_difference(*both) if is_comparable else None,
        metric_name=None if task is None else task.metric_name,
        metric=got.metric,
        metric_pytorch=expected.metric,
    )


def _agreement(expected: Answers, got: Answers, kind: TaskKind, tolerance: float) -> float:
    """Share of equal predictions; of scores that differ by no more than ``tolerance``."""
    if not expected.predictions:
        pairs = zip(expected.outputs, got.outputs, strict=True)
        return float(np.mean([is_same_answer(*pair, kind, tolerance) for pair in pairs]))
    same = [
        abs(one - other) <= tolerance
        if isinstance(one, float) and isinstance(other, float)
        else one == other
        for one, other in zip(expected.predictions, got.predictions, strict=True)
    ]
    return sum(same) / len(same)


def _is_comparable(expected: Sequence[Outputs], got: Sequence[Outputs]) -> bool:
    """Whether both read the same number of tokens; a cut vocabulary may give others."""
    shapes = [[array.shape for row in each for array in row.values()] for each in (expected, got)]
    return shapes[0] == shapes[1]


def _check(parity: TextParity, precision: Precision, *, is_cut: bool) -> None:
    what = f"{precision} with a cut vocabulary" if is_cut else precision
    advice = "give more text, or export at --precision fp16 or fp32"
    if is_cut:
        advice += ", or without --shrink-embeddings"
    if parity.max_abs_logit_diff is not None and not math.isfinite(parity.max_abs_logit_diff):
        raise ExportError(f"{what} gives numbers that are not finite on {parity.source}")
    if parity.metric is not None and parity.metric_pytorch is not None:
        drop = parity.metric_pytorch - parity.metric
        # A flipped prediction costs or gains one example: the drop's standard error.
        chance = _CHANCE * math.sqrt((1.0 - parity.agreement) / parity.examples)
        if drop > MAX_METRIC_DROP + chance:
            raise ExportError(
                f"{what} loses {100 * drop:.1f} points of {parity.metric_name} on {parity.source}, "
                f"allowed: {100 * MAX_METRIC_DROP:.1f} and {100 * chance:.1f} for chance; {advice}"
            )
    lost = 1.0 - (MIN_CUT_AGREEMENT if is_cut else MIN_AGREEMENT[precision])
    chance = _CHANCE * math.sqrt(lost / parity.examples)
    if 1.0 - parity.agreement > lost + chance:
        raise ExportError(
            f"{what} predicts otherwise than PyTorch for {1 - parity.agreement:.1%} of "
            f"{parity.source}, allowed: {lost:.1%} and {chance:.1%} for chance; {advice}"
        )
