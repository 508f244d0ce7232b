"""What a lossy artifact costs on real text of its task: agreement, and the metric before and after.

Comes in: a function that runs the artifact, the model, held-out examples. Goes out: a `TextParity`,
or an `ExportError` when more is lost than the precision may lose. The built-in sentences cannot
tell: whether 99.5 % or 95 % of the predictions stay shows only on hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

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
    mean_difference,
    torch_outputs,
)
from cofi_deploy.exports import ExportParity, TextParity
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks import Task
from cofi_deploy.tasks.inference import predict_split

# Share of predictions that must stay. int8 and a cut vocabulary flip predictions in both
# directions, so where the text has labels the metric is what binds.
MIN_AGREEMENT: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.995, "int8": 0.95}
MIN_CUT_AGREEMENT = 0.95
MAX_METRIC_DROP = 0.005

_Runs = tuple[tuple[Infer, PreTrainedTokenizerBase], tuple[Infer, PreTrainedTokenizerBase]]

_MAX_EXAMPLES = 1000
# So many standard errors are put down to the choice of the examples.
_CHANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Text, and the model as it was before anything was cut or rounded."""

    text: CalibrationText
    tokenizer: PreTrainedTokenizerBase
    model: CofiPreTrainedModel


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
        tolerance=TOLERANCE[precision],
        relative_tolerance=RELATIVE_TOLERANCE[precision],
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

    def reference(inputs: Inputs) -> Outputs:
        return torch_outputs(yardstick.model, inputs)

    runs = ((reference, yardstick.tokenizer), (infer, tokenizer))
    if yardstick.text.task is None:
        return _on_plain_text(runs, yardstick, precision)
    return _on_task(runs, yardstick.text.task, yardstick.text.source, precision)


def _on_task(runs: _Runs, task: Task, source: str, precision: Precision) -> TextParity:
    encoded = [task.encode(CHECK_SPLIT, tokenizer, limit=_MAX_EXAMPLES) for _, tokenizer in runs]
    outputs = [
        predict_split(run, split, kind=task.kind, batch_size=32)
        for (run, _), split in zip(runs, encoded, strict=True)
    ]
    expected, got = outputs
    comparable = _is_comparable(expected, got)
    both = list(zip(encoded, outputs, strict=True))
    scores = [task.score(split, each)[task.metric_name] for split, each in both]
    predictions = [task.predictions(split, each) for split, each in both]
    tolerance = RELATIVE_TOLERANCE[precision] * largest_value(expected)
    examples = len(encoded[0].examples)
    return TextParity(
        source=f"{examples} examples held out of the {source}",
        examples=examples,
        agreement=_agreement(predictions[0], predictions[1], tolerance),
        max_abs_logit_diff=largest_difference(expected, got) if comparable else None,
        mean_abs_logit_diff=mean_difference(expected, got) if comparable else None,
        metric_name=task.metric_name,
        metric=scores[1],
        metric_pytorch=scores[0],
    )


def _on_plain_text(runs: _Runs, yardstick: Yardstick, precision: Precision) -> TextParity:
    arch, kind = yardstick.model.arch, yardstick.model.kind
    expected, got = (
        [run(batch_of([row])) for row in yardstick.text.rows(tokenizer, arch, _MAX_EXAMPLES)]
        for run, tokenizer in runs
    )
    tolerance = RELATIVE_TOLERANCE[precision] * largest_value(expected)
    same = [
        is_same_answer(one, other, kind, tolerance)
        for one, other in zip(expected, got, strict=True)
    ]
    comparable = _is_comparable(expected, got)
    return TextParity(
        source=yardstick.text.source,
        examples=len(expected),
        agreement=float(np.mean(same)),
        max_abs_logit_diff=largest_difference(expected, got) if comparable else None,
        mean_abs_logit_diff=mean_difference(expected, got) if comparable else None,
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
