"""Is the pruned model really worse than the dense one, or only on this dev set?

In: predictions of both on the same examples. Out: the difference of the metric with its interval
and, for classification, the p-value of McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from cofi_deploy.tasks import Example, Task
from cofi_deploy.tasks.metrics import accuracy
from cofi_deploy.tasks.sequence import SequenceTask
from cofi_deploy.tasks.squad import QuestionTask
from cofi_deploy.tasks.squad_metric import squad_scores
from cofi_deploy.tasks.token_metric import Tags, sentence_counts
from cofi_deploy.tasks.tokens import TokenTask

RESAMPLES = 1000

Indices = npt.NDArray[np.intp]
# The primary metric of one model on a choice of examples, drawn with replacement.
Metric = Callable[[Indices], float]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Metric of the second model minus that of the first, on the same examples.

    ``low`` and ``high`` bound the 95 % interval of a paired bootstrap over examples.
    ``only_first`` and ``only_second`` count examples that one model alone got right; they and
    ``p_value`` (two-sided, McNemar's exact test) exist for classification only.
    """

    difference: float
    low: float
    high: float
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None


def paired_test(
    task: Task,
    examples: Sequence[Example],
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    seed: int,
) -> PairedTest | None:
    """Compare the predictions of two models; None for a task whose metric is not known here."""
    metrics = [_metric(task, examples, predictions) for predictions in (first, second)]
    if metrics[0] is None or metrics[1] is None:
        return None
    difference, low, high = _bootstrap(metrics[0], metrics[1], len(examples), seed=seed)
    if task.kind != "text-classification":
        return PairedTest(difference=difference, low=low, high=high)
    gold = [example.label for example in examples]
    only_first, only_second, p_value = mcnemar(
        [one == label for one, label in zip(first, gold, strict=True)],
        [other == label for other, label in zip(second, gold, strict=True)],
    )
    return PairedTest(
        difference=difference,
        low=low,
        high=high,
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def mcnemar(first_right: Sequence[bool], second_right: Sequence[bool]) -> tuple[int, int, float]:
    """McNemar's exact test on two lists of right and wrong answers to the same questions.

    Returns:
        How often the first alone was right, how often the second alone, and the two-sided
        p-value of so uneven a division if both were equally good.

    Source:
        McNemar 1947; the exact form is a sign test on the discordant pairs.
    """
    pairs = list(zip(first_right, second_right, strict=True))
    only_first = sum(one and not other for one, other in pairs)
    only_second = sum(other and not one for one, other in pairs)
    if only_first + only_second == 0:
        return 0, 0, 1.0
    test = binomtest(only_first, only_first + only_second, 0.5)
    return only_first, only_second, float(test.pvalue)


def _metric(
    task: Task, examples: Sequence[Example], predictions: Sequence[Hashable]
) -> Metric | None:
    if isinstance(task, SequenceTask):
        name = task.metric_name
        # A task's own function may also compute what is not asked for here, and slowly.
        score = accuracy if name == "accuracy" else task.metrics
        gold = np.asarray([example.label for example in examples])
        predicted = np.asarray(predictions)
        return lambda chosen: score(predicted[chosen], gold[chosen])[name]
    if isinstance(task, QuestionTask):
        scores = _answer_scores(task, examples, predictions)
        return lambda chosen: float(scores[chosen].mean())
    if isinstance(task, TokenTask):
        gold_tags = [example.tags for example in examples]
        counts = sentence_counts(cast("Sequence[Tags]", predictions), gold_tags, task.labels)
        return lambda chosen: _f1(counts[chosen].sum(axis=0))
    return None


def _f1(counts: npt.NDArray[np.int64]) -> float:
    right, predicted, gold = counts.tolist()
    return 2.0 * right / (predicted + gold) if predicted + gold else 0.0


def _answer_scores(
    task: QuestionTask, examples: Sequence[Example], predictions: Sequence[Hashable]
) -> npt.NDArray[np.float64]:
    """The primary metric of each answer alone; SQuAD's is their mean."""
    return np.asarray(
        [
            squad_scores(
                [str(prediction)],
                [[answer.text for answer in example.answers]],
                no_answers=task.no_answers,
            )[task.metric_name]
            for example, prediction in zip(examples, predictions, strict=True)
        ]
    )


def _bootstrap(
    first: Metric, second: Metric, size: int, *, seed: int
) -> tuple[float, float, float]:
    rng = np.random.default_rng(seed)
    everything = np.arange(size)
    differences = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        chosen = rng.integers(0, size, size)
        differences[index] = second(chosen) - first(chosen)
    low, high = np.percentile(differences, [2.5, 97.5])
    return second(everything) - first(everything), float(low), float(high)
