"""Which errors changed: examples that only one of two models gets right, with some to read.

In: predictions of both models on the same examples. Out: counts and examples for `verify.json`.
For scores (regression) the question is which of the two lies closer to the label.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from cofi_deploy.serve.accuracy import disagreements
from cofi_deploy.tasks import Example, Task
from cofi_deploy.tasks.squad_metric import squad_scores

# Of each direction: enough to see a pattern, few enough to be read.
SHOWN = 20


def changed_errors(
    task: Task,
    examples: Sequence[Example],
    dense: Sequence[Any],
    pruned: Sequence[Any],
) -> dict[str, Any]:
    """How often, and where, two models answer otherwise.

    Returns:
        ``kind`` of the task, ``agreement`` (share of examples with equal answers),
        ``disagreements`` (their number is `lost` + `gained` + `both_wrong`), ``lost`` (dense right,
        pruned wrong) and ``gained`` (the other way), each with its ``count``, how its up to
        `SHOWN` ``examples`` were chosen (``chosen``) and these; ``both_wrong``, the number of
        examples that both get wrong, each in its way. For scores, ``lost`` are those that the
        dense model is closer to, ``gained`` the others.
    """
    places = disagreements(dense, pruned)
    judged = _judge(task)
    right = {
        at: (judged(examples[at], dense[at]), judged(examples[at], pruned[at])) for at in places
    }
    lost = [at for at in places if right[at][0] > right[at][1]]
    gained = [at for at in places if right[at][1] > right[at][0]]

    def direction(found: list[int]) -> dict[str, Any]:
        shown, chosen = _choice(task, found, dense, pruned)
        told = [_told(task, examples[at], dense[at], pruned[at]) for at in shown]
        return {"count": len(found), "chosen": chosen, "examples": told}

    return {
        "kind": task.kind,
        "agreement": 1.0 - len(places) / max(len(examples), 1),
        "disagreements": len(places),
        "lost": direction(lost),
        "gained": direction(gained),
        "both_wrong": len(places) - len(lost) - len(gained),
    }


def _judge(task: Task) -> Callable[[Example, Any], float]:
    """How right an answer is: the greater, the better; 0 or 1 but for scores."""
    if task.kind == "question-answering":
        return _exact_match
    if task.kind == "text-regression":
        return lambda example, answer: -abs(float(answer) - float(example.label or 0.0))
    return lambda example, answer: float(_plain(answer) == _plain(_gold(example)))


def _exact_match(example: Example, answer: Hashable) -> float:
    golds = [[gold.text for gold in example.answers]]
    return squad_scores([str(answer)], golds, no_answers=True)["exact_match"]


def _gold(example: Example) -> Any:
    if example.answers:
        return example.answers[0].text
    return example.tags or example.label  # a sentence whose words are tagged


def _plain(value: Any) -> Any:
    """Sequences compare by content, whether they are lists or tuples."""
    return tuple(value) if isinstance(value, list | tuple) else value


def _choice(
    task: Task, places: Sequence[int], dense: Sequence[Any], pruned: Sequence[Any]
) -> tuple[list[int], str]:
    """Places to show, and in words how they were chosen: never by what looks good."""
    if task.kind == "text-regression":
        ordered = sorted(places, key=lambda at: -abs(dense[at] - pruned[at]))
        return ordered[:SHOWN], "the largest differences"
    if len(places) <= SHOWN:
        return list(places), "all"
    spread = [places[number * len(places) // SHOWN] for number in range(SHOWN)]
    return spread, "evenly spaced over the split"


def _told(task: Task, example: Example, dense: Any, pruned: Any) -> dict[str, Any]:
    return {
        "id": example.id,
        "text": example.text,
        "text_pair": example.text_pair,
        "label": _in_words(task, _gold(example)),
        "dense": _in_words(task, dense),
        "pruned": _in_words(task, pruned),
    }


def _in_words(task: Task, value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_in_words(task, item) for item in value)
    if task.labels and isinstance(value, int):
        return task.labels[value]
    if isinstance(value, float):
        return f"{value:.3f}"
    return "no answer" if value in {None, ""} else str(value)
