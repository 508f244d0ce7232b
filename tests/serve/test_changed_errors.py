"""What changed between two models' answers, for every kind of task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cofi_deploy.kinds import TaskKind
from cofi_deploy.serve.changed_errors import SHOWN, changed_errors
from cofi_deploy.tasks import Example
from cofi_deploy.tasks.task import Answer


def found(kind: TaskKind, examples: list[Example], dense: Any, pruned: Any, labels: Any = ()):
    return changed_errors(SimpleNamespace(kind=kind, labels=labels), examples, dense, pruned)


def sentences(*labels: float) -> list[Example]:
    return [Example(id=f"row-{n}", text=f"text {n}", label=at) for n, at in enumerate(labels)]


def ids(direction: dict[str, Any]) -> list[str]:
    return [example["id"] for example in direction["examples"]]


def test_a_class_is_lost_gained_or_wrong_in_both():
    changed = found(
        "text-classification",
        sentences(0, 1, 2, 1, 0),
        dense=[0, 0, 1, 1, 0],
        pruned=[1, 1, 0, 1, 0],
        labels=("bad", "good", "mixed"),
    )
    assert (changed["disagreements"], changed["agreement"]) == (3, 0.4)
    assert ids(changed["lost"]) == ["row-0"]
    assert ids(changed["gained"]) == ["row-1"]
    assert changed["both_wrong"] == 1
    assert changed["lost"]["examples"][0] | {"text": ""} == {
        "id": "row-0",
        "text": "",
        "text_pair": None,
        "label": "bad",
        "dense": "bad",
        "pruned": "good",
    }


def test_of_two_scores_the_closer_one_is_right_and_the_largest_differences_are_shown():
    count = SHOWN + 5
    # The pruned model is further off in every row but the last, by more from row to row.
    dense = [2.0] * count
    pruned = [2.0 + 0.01 * (n + 1) for n in range(count - 1)] + [1.5]
    changed = found("text-regression", sentences(*[2.0] * (count - 1), 1.0), dense, pruned)
    assert changed["lost"]["count"] == count - 1
    assert ids(changed["gained"]) == [f"row-{count - 1}"]
    assert changed["lost"]["chosen"] == "the largest differences"
    assert ids(changed["lost"]) == [f"row-{n}" for n in reversed(range(4, count - 1))]
    assert changed["gained"]["examples"][0]["pruned"] == "1.500"


@pytest.mark.parametrize(
    ("dense", "pruned", "lost", "gained", "both_wrong"),
    [
        ("the Rhine", "Rhine", 0, 0, 1),  # articles do not count: both are right
        ("Rhine", "Elbe", 1, 0, 0),
        ("", "the  rhine.", 0, 1, 0),
        ("Elbe", "", 0, 0, 1),
        ("Danube", "Rhine", 0, 0, 1),  # another accepted answer
    ],
)
def test_an_answer_is_right_when_any_accepted_one_matches_it(
    dense: str, pruned: str, lost: int, gained: int, both_wrong: int
):
    question = Example(
        id="q",
        text="Which river?",
        text_pair="The Rhine and the Danube.",
        answers=(Answer("Rhine", 4), Answer("Danube", 18)),
    )
    changed = found("question-answering", [question], [dense], [pruned])
    counts = (changed["lost"]["count"], changed["gained"]["count"], changed["both_wrong"])
    assert counts == (lost, gained, both_wrong)


def test_no_answer_is_said_in_words_and_right_where_there_is_none():
    question = Example(id="q", text="Which river?", text_pair="No river is here.")
    changed = found("question-answering", [question], [""], ["here"])
    told = changed["lost"]["examples"][0]
    assert (told["label"], told["dense"], told["pruned"]) == ("no answer", "no answer", "here")


def test_a_sentence_of_tags_is_right_as_a_whole_whatever_holds_them():
    labels = ("O", "B-LOC")
    sentence = Example(id="s", text="in Rome", words=("in", "Rome"), tags=(0, 1))
    changed = found("token-classification", [sentence], [[0, 1]], [(0, 0)], labels)
    assert ids(changed["lost"]) == ["s"]
    told = changed["lost"]["examples"][0]
    assert (told["label"], told["dense"], told["pruned"]) == ("O B-LOC", "O B-LOC", "O O")


def test_many_changes_are_shown_evenly_over_the_split():
    count = 4 * SHOWN
    changed = found(
        "text-classification", sentences(*[1] * count), [1] * count, [0] * count, ("no", "yes")
    )
    assert changed["lost"]["count"] == count
    assert changed["lost"]["chosen"] == "evenly spaced over the split"
    assert ids(changed["lost"]) == [f"row-{4 * n}" for n in range(SHOWN)]


def test_equal_answers_change_nothing():
    changed = found("text-classification", sentences(0, 1), [0, 0], [0, 0], ("no", "yes"))
    assert changed["disagreements"] == 0
    assert changed["lost"] == changed["gained"] == {"count": 0, "chosen": "all", "examples": []}
