"""Paired tests agree with closed forms, and see what unpaired ones would not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.serve.significance import mcnemar, paired_test
from cofi_deploy.tasks.metrics import accuracy, correlations
from cofi_deploy.tasks.sequence import SequenceTask
from cofi_deploy.tasks.squad import QuestionTask
from cofi_deploy.tasks.task import Answer, Example

bools = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def task_of(kind, labels, metrics, metric_name):
    return SequenceTask(
        name="t",
        kind=kind,
        labels=labels,
        metric_name=metric_name,
        max_length=16,
        splits=None,
        metrics=metrics,
    )


CLASSES = task_of("text-classification", ("a", "b"), accuracy, "accuracy")
SCORES = task_of("text-regression", (), correlations, "combined_score")


def labelled(labels):
    return [Example(id=str(at), text="x", label=label) for at, label in enumerate(labels)]


def test_mcnemar_is_the_sign_test_on_discordant_pairs():
    first = [True] * 10 + [False] * 2 + [True] * 50
    second = [False] * 10 + [True] * 2 + [True] * 50
    only_first, only_second, p_value = mcnemar(first, second)
    assert (only_first, only_second) == (10, 2)
    # 2 * P(X <= 2) for X ~ Binomial(12, 1/2) = 2 * (1 + 12 + 66) / 4096
    assert p_value == pytest.approx(2 * 79 / 4096)


@given(bools)
def test_mcnemar_is_symmetric_and_a_probability(pairs):
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    a, b, p_value = mcnemar(first, second)
    assert mcnemar(second, first) == (b, a, pytest.approx(p_value))
    assert 0 < p_value <= 1


def test_equal_answers_are_no_evidence():
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_the_difference_of_accuracy_has_an_interval_around_it():
    gold = [0, 1] * 100
    dense = gold[:]
    pruned = [1 - label if at % 20 == 0 else label for at, label in enumerate(gold)]
    test = paired_test(CLASSES, labelled(gold), dense, pruned, seed=0)
    assert test.difference == pytest.approx(-0.05)
    assert -0.09 < test.low < -0.05 < test.high < -0.01
    assert (test.only_first, test.only_second) == (10, 0)
    assert test.p_value == pytest.approx(2 / 2**10)


def test_a_score_has_an_interval_and_no_mcnemar():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=80)
    near, far = gold + rng.normal(scale=0.1, size=80), gold + rng.normal(scale=2.0, size=80)
    test = paired_test(SCORES, labelled(gold.tolist()), near.tolist(), far.tolist(), seed=0)
    assert test.p_value is None
    assert test.low < test.difference < test.high < 0


def test_answers_to_questions_are_compared_by_their_token_f1():
    task = QuestionTask(name="squad", max_length=16, splits=None, no_answers=False)
    examples = [
        Example(id=str(at), text="?", text_pair="c", answers=(Answer("red house", 0),))
        for at in range(30)
    ]
    dense = ["red house"] * 30
    pruned = ["red"] * 15 + ["red house"] * 15  # F1 of "red" is 2/3
    test = paired_test(task, examples, dense, pruned, seed=0)
    assert test.difference == pytest.approx(-1 / 6)
    assert test.low < -1 / 6 < test.high < 0


def test_a_task_of_another_make_has_no_test():
    assert paired_test(object(), labelled([0]), [0], [0], seed=0) is None
