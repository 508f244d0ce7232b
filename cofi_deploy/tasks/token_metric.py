"""Entity F1 of tagged words, by seqeval, and the order of tags.

A tag is O, or a prefix (B-, I-, E-, S-) and a type. Tags of another form (parts of speech) are
scored by the share of words tagged right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import DataError

Tags = Sequence[int]

OUTSIDE = "O"
_ENTITY_TAG = re.compile(r"[BIES]-.+", re.DOTALL)
_BILOU_TAG = re.compile(r"[LU]-.+", re.DOTALL)


def marks_entities(labels: Iterable[str]) -> bool:
    """Whether all tags are O or a prefix and a type."""
    names = list(labels)
    return OUTSIDE in names and all(
        name == OUTSIDE or _ENTITY_TAG.fullmatch(name) for name in names
    )


def tag_order(tags: Iterable[str], origin: str) -> tuple[str, ...]:
    """O first, then by type and prefix.

    Raises:
        DataError: tags of the BILOU scheme, whose L and U would be scored wrongly.
    """
    names = set(tags)
    bilou = sorted(name for name in names if _BILOU_TAG.fullmatch(name))
    if bilou and OUTSIDE in names:
        raise DataError(
            f"{origin!r} has the tag {bilou[0]!r} of the BILOU scheme, allowed: BIO and BIOES; "
            "write E- for L- and S- for U-"
        )
    return tuple(sorted(names, key=lambda name: (name != OUTSIDE, name[2:], name)))


def token_scores(
    predicted: Sequence[Tags], gold: Sequence[Tags], labels: Sequence[str]
) -> dict[str, float]:
    """Micro-averaged entity `f1`, `precision` and `recall`, and `accuracy` of words.

    An entity counts when type, first and last word are right. Without entity tags there is
    `accuracy` alone.

    Source:
        CoNLL-2000/2003 shared tasks (conlleval), as seqeval implements it.
    """
    pairs = [
        one == other
        for row, wanted in zip(predicted, gold, strict=True)
        for one, other in zip(row, wanted, strict=True)
    ]
    accuracy = {"accuracy": float(np.mean(pairs))}
    if not marks_entities(labels):
        return accuracy
    # Takes a second to import, and `make bench-gpu` runs without it.
    from seqeval.metrics import f1_score, precision_score, recall_score  # noqa: PLC0415

    wanted, got = _names(gold, labels), _names(predicted, labels)
    return {
        "f1": float(f1_score(wanted, got, zero_division=0)),
        "precision": float(precision_score(wanted, got, zero_division=0)),
        "recall": float(recall_score(wanted, got, zero_division=0)),
        **accuracy,
    }


def sentence_counts(
    predicted: Sequence[Tags], gold: Sequence[Tags], labels: Sequence[str]
) -> npt.NDArray[np.int64]:
    """What the metric of any choice of sentences is made of, (sentences, 3).

    For entities: right, predicted and gold ones, so that F1 is 2 * right / (predicted + gold). For
    other tags: words tagged right, words, and words again, by the same formula their accuracy.
    """
    from seqeval.metrics.sequence_labeling import get_entities  # noqa: PLC0415 - as above

    counts = []
    for row, wanted in zip(predicted, gold, strict=True):
        if marks_entities(labels):
            found, true = (
                set(get_entities([labels[tag] for tag in tags])) for tags in (row, wanted)
            )
            counts.append((len(found & true), len(found), len(true)))
        else:
            right = sum(one == other for one, other in zip(row, wanted, strict=True))
            counts.append((right, len(wanted), len(wanted)))
    return np.asarray(counts, dtype=np.int64)


def _names(rows: Sequence[Tags], labels: Sequence[str]) -> list[list[str]]:
    return [[labels[tag] for tag in row] for row in rows]
