"""What a lossy artifact costs on real text of its task: agreement, and the metric before and after.

Comes in: a function that runs the artifact, the model, held-out examples. Goes out: a `TextParity`,
or an `ExportError` when more is lost than the precision may lose. The built-in sentences cannot
tell: whether 99.5 % or 95 % of the predictions stay shows only on hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from cofi_deploy.errors import ExportError
from cofi_deploy.export.calibration import CHECK_SPLIT, CalibrationText
from cofi_deploy.export.manifest import Source
from cofi_deploy.export.numerics import Precision
from cofi_deploy.export.parity import (
    RELATIVE_TOLERANCE,
    TOLERANCE,
    Infer,
    Inputs,
    Outputs,
    batch_of,
    check_parity,
    is_same_answer,
    largest_difference,
    largest_value,
    torch_outputs,
)
from cofi_deploy.exports import ExportParity, TextParity
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks import Task
from cofi_deploy.tasks.inference import predict_split

# Share of predictions that must stay, and share of the metric that may be lost where the text has
# labels; then the metric decides at int8.
MIN_AGREEMENT: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.995, "int8": 0.98}
MAX_METRIC_DROP = 0.005

_MAX_EXAMPLES = 1000
# So many standard errors are put down to the choice of the examples.
_CHANCE = 2.0


def check_answers(
    infer: Infer,
    source: Source,
    model: CofiPreTrainedModel,
    *,
    runtime: str,
    precision: Precision,
    text: CalibrationText | None = None,
) -> ExportParity:
    """Compare the artifact behind ``infer`` with ``model``, as closely as ``precision`` allows.

    Every format is compared on the built-in sentences; one that loses something on ``text``, too.

    Raises:
        ExportError: The answers differ by more than the precision explains.
    """
    parity = check_parity(
        infer,
        model,
        source.tokenizer,
        runtime=runtime,
        tolerance=TOLERANCE[precision],
        relative_tolerance=RELATIVE_TOLERANCE[precision],
    )
    if text is None or precision == "fp32":
        return parity
    return replace(parity, text=check_on_text(infer, model, source.tokenizer, text, precision))


def check_on_text(
    infer: Infer,
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: CalibrationText,
    precision: Precision,
) -> TextParity:
    """Compare the artifact behind ``infer`` with ``model``.

    Raises:
        ExportError: More is lost than ``precision`` may lose, by more than chance explains.
        DataError: The task's data is missing or unusable.
    """

    def reference(inputs: Inputs) -> Outputs:
        return torch_outputs(model, inputs)

    runs = (reference, infer)
    if text.task is None:
        parity = _on_plain_text(runs, model, tokenizer, text, precision)
    else:
        parity = _on_task(runs, text.task, tokenizer, text.source, precision)
    _check(parity, precision)
    return parity


def _on_task(
    runs: tuple[Infer, Infer],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    precision: Precision,
) -> TextParity:
    encoded = task.encode(CHECK_SPLIT, tokenizer, limit=_MAX_EXAMPLES)
    expected, got = (predict_split(run, encoded, kind=task.kind, batch_size=32) for run in runs)
    scores = [task.score(encoded, each)[task.metric_name] for each in (expected, got)]
    predictions = [task.predictions(encoded, each) for each in (expected, got)]
    tolerance = RELATIVE_TOLERANCE[precision] * largest_value(expected)
    return TextParity(
        source=f"{len(encoded.examples)} examples held out of the {source}",
        examples=len(encoded.examples),
        agreement=_agreement(predictions[0], predictions[1], tolerance),
        max_abs_logit_diff=largest_difference(expected, got),
        metric_name=task.metric_name,
        metric=scores[1],
        metric_pytorch=scores[0],
    )


def _on_plain_text(
    runs: tuple[Infer, Infer],
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: CalibrationText,
    precision: Precision,
) -> TextParity:
    batches = [batch_of([row]) for row in text.rows(tokenizer, model.arch, _MAX_EXAMPLES)]
    expected, got = ([run(batch) for batch in batches] for run in runs)
    tolerance = RELATIVE_TOLERANCE[precision] * largest_value(expected)
    same = [
        is_same_answer(one, other, model.kind, tolerance)
        for one, other in zip(expected, got, strict=True)
    ]
    return TextParity(
        source=text.source,
        examples=len(batches),
        agreement=float(np.mean(same)),
        max_abs_logit_diff=largest_difference(expected, got),
    )


def _agreement(before: Sequence[Hashable], after: Sequence[Hashable], tolerance: float) -> float:
    """Share of equal predictions; of scores that differ by no more than ``tolerance``."""
    same = [
        abs(one - other) <= tolerance
        if isinstance(one, float) and isinstance(other, float)
        else one == other
        for one, other in zip(before, after, strict=True)
    ]
    return sum(same) / len(same)


def _check(parity: TextParity, precision: Precision) -> None:
    advice = "calibrate on more text, or export at --precision fp16 or fp32"
    if not math.isfinite(parity.max_abs_logit_diff):
        raise ExportError(f"{precision} gives numbers that are not finite on {parity.source}")
    if precision == "int8" and parity.metric is not None and parity.metric_pytorch is not None:
        drop = parity.metric_pytorch - parity.metric
        # A flipped prediction costs or gains one example: the drop's standard error.
        chance = _CHANCE * math.sqrt((1.0 - parity.agreement) / parity.examples)
        if drop > MAX_METRIC_DROP + chance:
            raise ExportError(
                f"int8 loses {100 * drop:.1f} points of {parity.metric_name} on {parity.source}, "
                f"allowed: {100 * MAX_METRIC_DROP:.1f} and {100 * chance:.1f} for chance; {advice}"
            )
        return
    lost = 1.0 - MIN_AGREEMENT[precision]
    chance = _CHANCE * math.sqrt(lost / parity.examples)
    if 1.0 - parity.agreement > lost + chance:
        raise ExportError(
            f"{precision} predicts otherwise than PyTorch for {1 - parity.agreement:.1%} of "
            f"{parity.source}, allowed: {lost:.1%} and {chance:.1%} for chance; {advice}"
        )
