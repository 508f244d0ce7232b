"""Start and end logits to answer texts.

In: an `EncodedSplit` with `windows` and the logits of its features. Out: one text per question,
taken from the context by its character offsets. Next: `squad_metric.py`.

Source:
    The post-processing of BERT's run_squad: the 20 best starts and ends of every window are
    combined; for SQuAD 2.0 the score of the first token, its minimum over the windows, stands
    for "no answer".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cofi_deploy.tasks.encoding import EncodedSplit
from cofi_deploy.tasks.squad_windows import Windows
from cofi_deploy.tasks.task import Outputs

N_BEST = 20
MAX_ANSWER_TOKENS = 30
NULL_THRESHOLD = 0.0


@dataclass
class _Best:
    """The best span of a question so far, over its windows."""

    score: float = -np.inf
    null_score: float = np.inf
    start: int = 0
    end: int = 0


def span_texts(encoded: EncodedSplit, outputs: Outputs, *, no_answers: bool) -> list[str]:
    """The best answer of every question; empty where no span qualifies.

    Args:
        encoded: Features with `windows`.
        outputs: `start_logits` and `end_logits` of each feature, cut to its length.
        no_answers: Answer "" where the null score is above the best span's (SQuAD 2.0).

    Raises:
        ValueError: `encoded` has no windows.
    """
    windows = encoded.windows
    if windows is None:
        raise ValueError("these features have no windows: they are not of question answering")
    best = [_Best() for _ in encoded.examples]
    for feature, row in enumerate(outputs):
        _update(best[windows.example[feature]], windows, feature, row)
    texts = []
    for example, span in zip(encoded.examples, best, strict=True):
        unanswerable = no_answers and span.null_score - span.score > NULL_THRESHOLD
        context = example.text_pair or ""
        # Tokens of some vocabularies begin with the space before the word.
        texts.append("" if unanswerable else context[span.start : span.end].strip())
    return texts


def _update(
    best: _Best, windows: Windows, feature: int, row: Mapping[str, npt.NDArray[np.floating]]
) -> None:
    start_logits = np.asarray(row["start_logits"], dtype=np.float64)
    end_logits = np.asarray(row["end_logits"], dtype=np.float64)
    best.null_score = min(best.null_score, float(start_logits[0] + end_logits[0]))
    position, length = int(windows.position[feature]), int(windows.length[feature])
    starts = _top(start_logits, position, length)
    ends = _top(end_logits, position, length)
    if not len(starts) or not len(ends):
        return
    tokens = ends[None, :] - starts[:, None] + 1  # (starts, ends)
    scores = start_logits[starts][:, None] + end_logits[ends]  # (starts, ends)
    scores = np.where((tokens >= 1) & (tokens <= MAX_ANSWER_TOKENS), scores, -np.inf)
    winner = int(scores.argmax())
    score = float(scores.flat[winner])
    if score <= best.score:
        return
    first, last = starts[winner // len(ends)], ends[winner % len(ends)]
    offset = int(windows.first[feature]) - position
    best.score = score
    best.start = int(windows.char_start[offset + first])
    best.end = int(windows.char_end[offset + last])


def _top(logits: npt.NDArray[np.float64], position: int, length: int) -> npt.NDArray[np.int64]:
    """The 20 best positions of the feature, best first; of these, those in the context."""
    top = np.argsort(-logits, kind="stable")[:N_BEST]
    return top[(top >= position) & (top < position + length)]
