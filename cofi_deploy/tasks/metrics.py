"""Official metrics of the tasks, as fractions; higher is better in every primary one.

In: predicted and gold class indices or scores. Out: a dict whose first key is the primary metric.
The metric of SQuAD is in `squad_metric.py`. scipy and scikit-learn are imported where they are
used: timing on a borrowed machine without them needs no metric (benchmarks/gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
MetricFunction = Callable[[Values, Values], dict[str, float]]


def accuracy(predicted: Values, gold: Values) -> dict[str, float]:
    """Share of equal class indices."""
    return {"accuracy": float((predicted == gold).mean())}


def accuracy_and_f1(predicted: Values, gold: Values) -> dict[str, float]:
    """Accuracy, and F1 of class 1, as GLUE reports MRPC and QQP."""
    from sklearn.metrics import f1_score  # noqa: PLC0415 - see the module

    f1 = f1_score(gold, predicted, pos_label=1, zero_division=0.0)
    return {**accuracy(predicted, gold), "f1": float(f1)}


def accuracy_and_macro_f1(predicted: Values, gold: Values) -> dict[str, float]:
    """Accuracy, and the unweighted mean of the F1 of every class that occurs."""
    from sklearn.metrics import f1_score  # noqa: PLC0415 - see the module

    f1 = f1_score(gold, predicted, average="macro", zero_division=0.0)
    return {**accuracy(predicted, gold), "f1_macro": float(f1)}


def matthews_correlation(predicted: Values, gold: Values) -> dict[str, float]:
    """Matthews' correlation coefficient, in [-1, 1]; 0 when one class is always predicted."""
    from sklearn.metrics import matthews_corrcoef  # noqa: PLC0415 - see the module

    return {"matthews_correlation": float(matthews_corrcoef(gold, predicted))}


def correlations(predicted: Values, gold: Values) -> dict[str, float]:
    """Pearson and Spearman correlation, and their mean as `combined_score`.

    Constant predictions correlate with nothing: both are then 0.
    """
    from scipy.stats import pearsonr, spearmanr  # noqa: PLC0415 - see the module

    pearson = spearman = 0.0
    if len(predicted) > 1 and np.ptp(predicted) > 0 and np.ptp(gold) > 0:
        pearson = float(pearsonr(predicted, gold).statistic)
        spearman = float(spearmanr(predicted, gold).statistic)
    return {
        "pearson": pearson,
        "spearmanr": spearman,
        "combined_score": (pearson + spearman) / 2,
    }
