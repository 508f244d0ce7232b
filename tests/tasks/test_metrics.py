"""Every expected value was worked out by hand; the working stands beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cofi_deploy.tasks import metrics
from cofi_deploy.tasks.squad_metric import normalize, squad_scores, token_f1

GOLD = np.array([1, 1, 1, 0, 0])
PREDICTED = np.array([1, 1, 0, 1, 0])  # 2 true positives, 1 false negative, 1 false positive


def test_accuracy_and_f1_by_hand():
    # precision 2/3, recall 2/3
    assert metrics.accuracy_and_f1(PREDICTED, GOLD) == pytest.approx({"accuracy": 0.6, "f1": 2 / 3})


def test_macro_f1_by_hand():
    # class 1: 2/3; class 0: precision 1/2, recall 1/2
    scores = metrics.accuracy_and_macro_f1(PREDICTED, GOLD)
    assert scores == pytest.approx({"accuracy": 0.6, "f1_macro": (2 / 3 + 1 / 2) / 2})


def test_matthews_by_hand():
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
    scores = metrics.matthews_correlation(PREDICTED, GOLD)
    assert scores == pytest.approx({"matthews_correlation": 1 / 6})


def test_correlations_by_hand():
    # deviations (-1, 0, 1) and (-2, -1, 3): 5 / sqrt(2 * 14); the ranks agree
    scores = metrics.correlations(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 5.0]))
    pearson = 5 / math.sqrt(28)
    assert scores == pytest.approx(
        {"pearson": pearson, "spearmanr": 1.0, "combined_score": (pearson + 1) / 2}
    )


def test_constant_predictions_correlate_with_nothing():
    scores = metrics.correlations(np.full(4, 2.5), np.array([0.0, 1.0, 2.0, 5.0]))
    assert scores == {"pearson": 0.0, "spearmanr": 0.0, "combined_score": 0.0}
    assert metrics.matthews_correlation(np.ones(5), GOLD) == {"matthews_correlation": 0.0}


def test_answers_are_normalised():
    assert normalize("  The  Cat's, an  OTHER theme-park ") == "cats other themepark"


@pytest.mark.parametrize("no_answers", [False, True])
def test_token_f1_by_hand(no_answers):
    # "quick brown fox" against "brown fox jumped high": 2 common of 3 and 4
    f1 = token_f1("the quick brown fox", "Brown fox jumped high!", no_answers=no_answers)
    assert f1 == pytest.approx(4 / 7)
    assert token_f1("", ".", no_answers=no_answers) == float(no_answers)
    assert token_f1("x", "", no_answers=no_answers) == 0.0


def test_the_best_of_the_accepted_answers_counts():
    scores = squad_scores(["in Paris"], [["London", "Paris"]], no_answers=False)
    assert scores == pytest.approx({"f1": 2 / 3, "exact_match": 0.0})


def test_no_answer_is_right_only_without_accepted_answers():
    scores = squad_scores(["", "", "x"], [[], ["x"], []], no_answers=True)
    assert scores == pytest.approx({"f1": 1 / 3, "exact_match": 1 / 3})
