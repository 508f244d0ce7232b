from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cofi_deploy.errors import ConfigError, DataError
from cofi_deploy.tasks import load_task
from cofi_deploy.tasks.own_data import table_from_hub

CLASSES = ("dull", "fine", "great")
ROWS = [(f"film, number {at}", CLASSES[at % 3]) for at in range(30)]


def csv_of(rows, header="text,label"):
    return header + "\n" + "".join(f'"{text}",{label}\n' for text, label in rows)


def load(path, kind="text-classification", **arguments):
    return load_task(kind, data=str(path), **arguments)


def write_format(write, tmp_path, suffix):
    records = [{"text": text, "label": label} for text, label in ROWS]
    if suffix == "parquet":
        path = tmp_path / "data.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path
    contents = {
        "csv": csv_of(ROWS),
        "csv.gz": gzip.compress(csv_of(ROWS).encode()),
        "ndjson": "".join(json.dumps(record) + "\n" for record in records),
        "tsv": "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS),
        "jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "json": json.dumps(records),
    }
    return write(f"data.{suffix}", contents[suffix])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "ndjson"])
def test_every_format_gives_the_same_task(write, tmp_path, suffix):
    task = load(write_format(write, tmp_path, suffix))
    assert task.labels == CLASSES
    everything = [row for split in task.splits.values() for row in split.examples]
    found = sorted((row.text, task.labels[row.label]) for row in everything)
    assert found == sorted(ROWS)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 20,
        "selection": 4,
        "validation": 6,
    }
    assert task.splits["validation"].source.startswith("6 rows held out of ")
    assert set(Counter(row.label for row in task.splits["validation"].examples).values()) == {2}


def test_a_folder_gives_train_and_validation(write, tmp_path):
    write("data/train.csv", csv_of(ROWS))
    write("data/dev.jsonl", json.dumps({"label": "fine", "text": "good"}))
    write("data/README.md", "not data")
    task = load(tmp_path / "data")
    assert [row.label for row in task.splits["validation"].examples] == [1]
    assert len(task.splits["train"]) + len(task.splits["selection"]) == 30


def test_labels_outside_train_are_refused_in_validation(write, tmp_path):
    write("data/train.csv", csv_of(ROWS))
    path = write("data/validation.csv", csv_of([("good", "fine"), ("bad", "awful")]))
    message = f"{str(path)!r} line 3, column 'label': got 'awful', allowed: dull, fine, great"
    with pytest.raises(DataError, match=re.escape(message)):
        load(tmp_path / "data").splits["validation"]


def test_numbers_are_sorted_as_numbers_and_columns_can_be_named(write):
    rows = "".join(f"{at % 12},x{at},a,b{at}\n" for at in range(48))
    path = write("data.csv", f"grade,first,note,second\n{rows}")
    columns = {"text": "first", "text_pair": "second", "label": "grade"}
    task = load(path, columns=columns)
    assert task.labels == tuple(map(str, range(12)))
    example = task.splits["train"].examples[0]
    assert example.text[0] == "x"
    assert example.text_pair == f"b{example.text[1:]}"
    assert example.label == int(example.text[1:]) % 12


def test_a_pair_and_a_quoted_line_break_are_found(write):
    rows = "".join(f'"one\nmore {at}",two {at},{at % 2}\n' for at in range(10))
    task = load(write("data.csv", f"Sentence1,Sentence2,Label\n{rows}"))
    example = task.splits["train"].examples[0]
    assert example.text.startswith("one\nmore")
    assert example.text_pair.startswith("two")


def test_of_two_columns_the_other_one_is_the_text(write):
    rows = "".join(f"x{at};{at % 2}\n" for at in range(10))
    task = load(write("data.csv", f"was gesagt wurde;label\n{rows}"))
    assert task.splits["train"].examples[0].text.startswith("x")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": "text"}, "unknown role 'txt', allowed: text, text_pair, label, id; did you mean"),
        ({"text": "txt"}, "has no column 'txt', allowed: text, label; did you mean 'text'?"),
        ({"text": "text", "label": "text"}, "column 'text' is given two roles"),
    ],
)
def test_wrong_columns_are_refused(write, columns, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(write("data.csv", csv_of(ROWS)), columns=columns)


def test_columns_that_are_not_obvious_are_asked_for(write):
    path = write("data.csv", "a,b,c\n1,2,3\n")
    message = f"{str(path)!r}: no column is obviously the text (columns: a, b, c); name it"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(path)


def bad_file(write, name, content, kind="text-classification"):
    path = write(name, content)
    with pytest.raises(DataError) as caught:
        _ = [split.examples for split in load(path, kind).splits.values()]
    assert repr(str(path)) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\n"x\ny",1\nz\n', "line 4: 1 columns, expected 2"),
        ("a.csv", 'text,label\n"x,1\n', "line 2: not csv (unexpected end of data)"),
        ("a.csv", "text,text,label\nx,y,1\n", "line 1: the header repeats 'text'"),
        ("a.csv", csv_of(ROWS) + ",fine\n", "line 32, column 'text': the text is empty"),
        ("a.csv", csv_of(ROWS) + "x,\n", "line 32, column 'label': got '', which is no label"),
        ("a.csv", csv_of([("x", "1")] * 9), "holds only '1' in every row"),
        ("a.csv", csv_of([("x", at) for at in range(30)]), "has 30 different labels in 30 rows"),
        ("a.csv", csv_of(ROWS[:3]), "has 3 usable rows, too few"),
        ("a.csv", "id,text,label\n1,x,a\n2,y,b\n1,z,a\n", "line 4: id '1' is also in line 2"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", ', "line 2: not JSON ("),
        ("a.jsonl", "[1]\n", "line 1: got a JSON list, expected an object"),
        ("a.json", '[{"text": "x", "label": 1}, {"te', "is not JSON ("),
        ("a.json", "[1]", "row 1: got a JSON int, expected an object"),
        ("a.json", '"x"', "holds no list of objects"),
        (
            "a.jsonl",
            '{"text": 5, "label": "a"}\n{"text": "y", "label": "b"}',
            "got 5, expected text",
        ),
        ("a.jsonl", '{"text": "\\ud800", "label": "a"}', "character 1 is half of a surrogate pair"),
        ("a.jsonl", '{"text": "x", "label": [1]}', "column 'label': got a list, allowed: text or"),
        ("a.jsonl", '{"text": "x", "label": NaN}', "column 'label': got nan, which is no label"),
        ("a.parquet", "PAR1 but no more", "is not a whole parquet file"),
        ("a.xlsx", "x", "has none of the suffixes .csv, .tsv, .jsonl, .json, .parquet"),
    ],
)
def test_bad_files_are_named_with_row_and_column(write, name, content, message):
    assert message in bad_file(write, name, content)


def test_missing_path_is_not_taken_for_a_hub_id(tmp_path):
    for data in ("reviews.csv", str(tmp_path / "none"), "./none"):
        with pytest.raises(DataError, match=re.escape(f"--data {data!r} does not exist")):
            load(data)


def test_folder_without_train_says_what_it_holds(write, tmp_path):
    write("data/a.csv", "x")
    write("data/b.csv", "x")
    with pytest.raises(
        DataError, match=r"looked for train with one of .*found data files: a\.csv, b"
    ):
        load(tmp_path / "data")
    write("data/train.csv", "x")
    write("data/train.tsv", "x")
    with pytest.raises(DataError, match=r"has 2 files named train \(train\.csv, train\.tsv\)"):
        load(tmp_path / "data")


def test_validation_without_a_column_of_train_is_refused(write, tmp_path):
    write("data/train.csv", csv_of(ROWS))
    write("data/dev.csv", csv_of(ROWS, header="text,class"))
    with pytest.raises(ConfigError, match=r"dev\.csv' has no column 'label', which the train data"):
        load(tmp_path / "data")


def test_regression_takes_any_finite_score(write, tokenizer):
    rows = "".join(f'{{"text": "x{at}", "score": {at * 1.5 - 10}}}\n' for at in range(40))
    task = load(write("data.jsonl", rows), "text-regression")
    assert (task.kind, task.labels, task.metric_name) == ("text-regression", (), "pearson")
    encoded = task.encode("selection", tokenizer)
    outputs = [{"logits": np.array([row.label * 2 + 1])} for row in encoded.examples]
    assert task.score(encoded, outputs)["pearson"] == pytest.approx(1.0)
    message = bad_file(write, "bad.jsonl", rows + '{"text": "y", "score": "?"}', "text-regression")
    assert "line 41, column 'score': got '?', allowed: a finite number" in message


def test_perfect_logits_score_one(write, tokenizer):
    task = load(write("data.csv", csv_of(ROWS)))
    encoded = task.encode("validation", tokenizer, limit=5)
    outputs = [{"logits": np.eye(3)[row.label]} for row in encoded.examples]
    assert task.score(encoded, outputs) == {"accuracy": 1.0, "f1_macro": 1.0}
    assert task.predictions(encoded, outputs) == [row.label for row in encoded.examples]


def test_hub_class_names_are_kept_in_their_order():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features)
    table = table_from_hub(rows, "owner/name[train]")
    assert table.label_names == {"label": ("pos", "neg")}
    assert table.rows[0].where == "row 1"
    assert table.rows[0].values == {"text": "a", "label": 1}
