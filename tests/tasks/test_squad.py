from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest

from cofi_deploy.errors import DataError, RunnerError
from cofi_deploy.tasks import load_task

CONTEXT = "It rained in May. In June, it did not rain."


@pytest.fixture
def local(write, tmp_path, squad_json):
    """A local SQuAD folder of either version: 24 articles of 2 questions, dev of 3 questions."""

    def make(version="v1.1", dev_questions=()):
        paragraphs = [
            (f"{CONTEXT} {at}", [(f"a{at}", "When?", [("May", 13)]), (f"b{at}", "x", [("It", 0)])])
            for at in range(24)
        ]
        train = squad_json(paragraphs, articles=24)
        write(f"squad/train-{version}.json.gz", gzip.compress(train.encode()))
        questions = [
            ("d1", "When did it rain?", [("May", 13), ("in May", 10)]),
            ("d2", "When did it not?", [("June", 21)]),
            *dev_questions,
        ]
        write(f"squad/dev-{version}.json", squad_json([(CONTEXT, questions)]))
        return tmp_path

    return make


def perfect_outputs(encoded):
    """Logits of a model that knows the answers; windows without it say so at position 0."""
    outputs = []
    targets = (encoded.targets["start_positions"], encoded.targets["end_positions"])
    for length, start, end in zip(encoded.lengths, *targets, strict=True):
        start_logits, end_logits = np.zeros(length), np.zeros(length)
        start_logits[start] = end_logits[end] = 5.0
        outputs.append({"start_logits": start_logits, "end_logits": end_logits})
    return outputs


def test_official_squad_is_counted_right_and_scored_one_on_its_answers(data_dir, minilm_tokenizer):
    task = load_task("squad", data_dir=data_dir)
    assert len(task.splits["validation"]) == 10_570
    encoded = task.encode("validation", minilm_tokenizer, limit=300)
    scores = task.score(encoded, perfect_outputs(encoded))
    assert scores["exact_match"] > 0.97  # an answer may lie inside a token ("8" of "18")
    assert scores["f1"] >= scores["exact_match"]


def test_official_train_is_divided_by_articles(data_dir):
    task = load_task("squad", data_dir=data_dir)
    train, selection = (task.splits[name].examples for name in ("train", "selection"))
    assert len(train) + len(selection) == 87_599
    assert 1900 < len(selection) <= 2000
    assert not {row.text_pair for row in train} & {row.text_pair for row in selection}
    assert not {row.group for row in train} & {row.group for row in selection}


def test_articles_stay_whole(local):
    task = load_task("squad", data_dir=local())
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 40,
        "selection": 8,
        "validation": 2,
    }
    groups = [{row.group for row in task.splits[name].examples} for name in ("train", "selection")]
    assert not groups[0] & groups[1]


def test_perfect_logits_score_one(local, tokenizer):
    task = load_task("squad", data_dir=local())
    encoded = task.encode("validation", tokenizer)
    assert task.score(encoded, perfect_outputs(encoded)) == {"f1": 1.0, "exact_match": 1.0}
    assert task.predictions(encoded, perfect_outputs(encoded)) == ["May", "June"]


def test_squad_v2_knows_questions_without_an_answer(local, tokenizer):
    data_dir = local("v2.0", [("d3", "When did it snow?", [])])
    task = load_task("squad_v2", data_dir=data_dir, max_length=32)
    encoded = task.encode("validation", tokenizer)
    assert len(encoded) > 3
    assert task.predictions(encoded, perfect_outputs(encoded)) == ["May", "June", ""]
    assert task.score(encoded, perfect_outputs(encoded)) == {"f1": 1.0, "exact_match": 1.0}


def test_an_answer_at_a_wrong_place_is_moved_to_its_nearest_occurrence(write, tmp_path, squad_json):
    context = "May is here. In May it rained; may it be May."
    questions = [("q1", "x", [("May", 15)]), ("q2", "x", [("May", 38)]), ("q3", "x", [("May", -1)])]
    write("dev-v1.1.json", squad_json([(context, questions)]))
    rows = load_task("squad", data_dir=tmp_path).splits["validation"].examples
    assert [row.answers[0].start for row in rows] == [16, 41, 0]


def bad_dev(write, tmp_path, content, name="squad"):
    path = write("dev-v1.1.json" if name == "squad" else "dev-v2.0.json", content)
    with pytest.raises(DataError) as caught:
        load_task(name, data_dir=tmp_path).splits["validation"]
    assert repr(str(path)) in str(caught.value)
    return str(caught.value)


def test_bad_questions_are_reported_together(write, tmp_path, squad_json):
    questions = [
        ("q1", "x", [("snow", 3)]),
        ("q1", "y", [("May", 13)]),
        ("q2", " ", [("May", 13)]),
        ("q3", "z", []),
        ("q4", "z", [("", 1)]),
    ]
    message = bad_dev(write, tmp_path, squad_json([(CONTEXT, questions)]))
    place = "data[0].paragraphs[0].qas"
    assert f"{place}[0], column 'answers': answer 'snow' (answer_start 3) does not occur" in message
    assert f"{place}[1], column 'id': id 'q1' is also in {place}[0]" in message
    assert f"{place}[2], column 'question': the text is empty" in message
    assert f"{place}[3], column 'answers': no answer, which only squad_v2 allows" in message
    assert f"{place}[4], column 'answers': the answer text is empty" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"title": "a", "par', "line 1, column 26 is not JSON ("),
        ("[]", "SQuAD's layout: the top has no list 'data' of objects"),
        ('{"data": [{"title": "a"}]}', "data[0] has no list 'paragraphs' of objects"),
        (
            '{"data": [{"paragraphs": [{"qas": []}]}]}',
            "data[0].paragraphs[0] has no text 'context'",
        ),
        ('{"data": []}', "has no questions"),
    ],
)
def test_files_of_another_layout_say_what_is_missing(write, tmp_path, content, message):
    assert message in bad_dev(write, tmp_path, content)


def test_answer_start_must_be_a_number(write, tmp_path, squad_json):
    content = json.loads(squad_json([(CONTEXT, [("q1", "x", [("May", 13)])])]))
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = "13"
    message = bad_dev(write, tmp_path, json.dumps(content))
    assert "qas[0].answers: answer_start is '13', expected an integer" in message


def test_missing_files_say_what_was_looked_for(local, tmp_path):
    with pytest.raises(
        DataError, match=re.escape("no dev file of squad: looked for dev-v1.1.json")
    ):
        load_task("squad", data_dir=tmp_path)
    data_dir = local()
    (data_dir / "squad" / "train-v1.1.json.gz").unlink()
    task = load_task("squad", data_dir=data_dir)
    assert len(task.splits["validation"]) == 2
    with pytest.raises(DataError, match=re.escape("no train file of squad: looked for train-v1.1")):
        task.splits["selection"]


def test_one_paragraph_cannot_be_divided(local, write, squad_json):
    data_dir = local()
    (data_dir / "squad" / "train-v1.1.json.gz").unlink()
    questions = [(f"q{at}", "x", [("May", 13)]) for at in range(9)]
    write("squad/train-v1.1.json", squad_json([(CONTEXT, questions)]))
    with pytest.raises(DataError, match="asks all its questions about one paragraph"):
        load_task("squad", data_dir=data_dir).splits["train"]


def test_outputs_of_the_wrong_length_are_refused(local, tokenizer):
    task = load_task("squad", data_dir=local())
    encoded = task.encode("validation", tokenizer)
    outputs = perfect_outputs(encoded)
    outputs[1]["end_logits"] = np.zeros(7)
    with pytest.raises(RunnerError, match=r"feature 1: end_logits has shape \(7,\), expected \(5"):
        task.score(encoded, outputs)
