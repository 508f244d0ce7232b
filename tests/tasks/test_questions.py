"""Questions of the user's own, in every layout that they may come in."""

from __future__ import annotations

import json
import re

import pytest

from cofi_deploy.errors import ConfigError, DataError
from cofi_deploy.tasks import load_task

CONTEXT = "Paper {} is made of wood. Glass is made of sand."


def rows(count=20, *, answers):
    return [
        {"question": f"Of what is paper {at} made?", "context": CONTEXT.format(at), **answers(at)}
        for at in range(count)
    ]


def nested(at):
    start = CONTEXT.format(at).index("wood")
    return {"answers": {"text": ["wood"], "answer_start": [start]}}


def flat(at):
    return {"answer": "wood", "answer_start": CONTEXT.format(at).index("wood")}


LAYOUTS = {
    "as on the hub": nested,
    "as in SQuAD's files": lambda at: {
        "answers": [{"text": "wood", "answer_start": nested(at)["answers"]["answer_start"][0]}]
    },
    "a text and its place": flat,
    "a text alone": lambda at: {"answer": "wood"},
    "a list of texts": lambda at: {"answers": ["wood"]},
}


def lines(records):
    return "\n".join(map(json.dumps, records))


def load(path, **arguments):
    return load_task("question-answering", data=str(path), **arguments)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_questions(write, layout):
    task = load(write("data.jsonl", lines(rows(answers=layout))))
    assert (task.kind, task.metric_name, task.no_answers) == ("question-answering", "f1", False)
    assert task.max_length == 384
    everything = [row for split in task.splits.values() for row in split.examples]
    assert len(everything) == 20
    for example in everything:
        (answer,) = example.answers
        assert example.text_pair[answer.start :].startswith("wood.")


def test_csv_holds_one_answer_a_row(write):
    header = "id,question,context,answer_text,answer_start\n"
    body = "".join(
        f'q{at},"Of what, {at}?","{CONTEXT.format(at)}",wood,{flat(at)["answer_start"]}\n'
        for at in range(20)
    )
    task = load(write("data.csv", header + body))
    assert task.splits["validation"].examples[0].answers[0].text == "wood"
    assert task.splits["validation"].examples[0].id.startswith("q")


def test_squad_json_is_taken_as_it_is(write, squad_json):
    paragraphs = [
        (CONTEXT.format(at), [(f"q{at}", "Of what?", [("wood", flat(at)["answer_start"])])])
        for at in range(20)
    ]
    task = load(write("data.json", squad_json(paragraphs, articles=20)))
    assert sum(len(split) for split in task.splits.values()) == 20
    assert not task.no_answers


def test_questions_without_answer_make_a_task_that_may_refuse(write):
    records = rows(answers=lambda at: {"answers": nested(at)["answers"] if at % 2 else []})
    assert load(write("data.jsonl", lines(records))).no_answers


def test_no_context_is_on_both_sides(write):
    records = rows(answers=nested) + [
        {**row, "question": "And why?"} for row in rows(answers=nested)
    ]
    task = load(write("data.jsonl", lines(records)))
    contexts = [{row.text_pair for row in split.examples} for split in task.splits.values()]
    assert not contexts[0] & contexts[1]
    assert not contexts[0] & contexts[2]
    assert not contexts[1] & contexts[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["gold"]}, "line 1, column 'answers': answer 'gold' (answer_start -1) does"),
        ({"answers": 5}, "line 1, column 'answers': got 5, allowed: a text, a list of texts, or"),
        ({"context": None}, "line 1 has no text 'context' (got None)"),
        ({"question": ""}, "line 1, column 'question': the text is empty"),
        ({"answers": [{"text": "wood"}]}, "answer_start is None, expected an integer"),
    ],
    ids=["absent", "number", "no context", "empty", "no place"],
)
def test_bad_questions_are_named_with_place_and_column(write, change, message):
    first, *others = rows(answers=nested)
    path = write("data.jsonl", lines([{**first, **change}, *others]))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        _ = load(path).splits["train"]
    assert repr(str(path)) in str(caught.value)


def test_columns_can_be_named(write):
    records = [
        {"frage": row["question"], "stelle": row["context"], "antwort": "wood"}
        for row in rows(answers=flat)
    ]
    path = write("data.jsonl", lines(records))
    with pytest.raises(ConfigError, match="no column is obviously the question"):
        load(path)
    names = {"question": "frage", "context": "stelle", "answers": "antwort"}
    assert len(load(path, columns=names).splits["train"]) > 10
