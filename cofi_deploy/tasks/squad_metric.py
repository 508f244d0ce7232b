"""The official metric of SQuAD 1.1 and 2.0, written from its definition.

In: predicted texts and the accepted answers. Out: exact match and token F1 as fractions.

Source:
    Rajpurkar et al., arXiv:1606.05250, section 6.1; for questions without an answer
    arXiv:1806.03822.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_scores(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], *, no_answers: bool
) -> dict[str, float]:
    """Mean over questions of the best exact match and the best F1 against any accepted answer.

    Args:
        predictions: One text per question; empty for "no answer".
        golds: Accepted answers of each question.
        no_answers: True for SQuAD 2.0, where a question without answers is answered by "".

    Returns:
        `f1` and `exact_match`, as fractions.
    """
    f1 = exact = 0.0
    for prediction, accepted in zip(predictions, golds, strict=True):
        targets = [text for text in accepted if normalize(text)] if no_answers else list(accepted)
        targets = targets or [""]
        f1 += max(token_f1(prediction, text, no_answers=no_answers) for text in targets)
        exact += max(float(normalize(prediction) == normalize(text)) for text in targets)
    count = max(len(predictions), 1)
    return {"f1": f1 / count, "exact_match": exact / count}


def token_f1(prediction: str, target: str, *, no_answers: bool) -> float:
    """F1 of the two bags of normalised tokens.

    Two empty ones agree in SQuAD 2.0 and have F1 0 in 1.1, whose dev set has three answers that
    are empty once normalised (".").
    """
    predicted, wanted = normalize(prediction).split(), normalize(target).split()
    if not predicted or not wanted:
        return float(no_answers and predicted == wanted)
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted))


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces."""
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())
