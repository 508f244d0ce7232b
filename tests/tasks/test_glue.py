from __future__ import annotations

import gzip
import re
from collections import Counter

import numpy as np
import pytest

from cofi_deploy.errors import DataError, RunnerError, UsageError
from cofi_deploy.tasks import load_task

# Rows and labels as the data folder's README counts them; dev labels by class index.
OFFICIAL = {
    "cola": (8551, {0: 322, 1: 721}),
    "sst2": (67349, {0: 428, 1: 444}),
    "mrpc": (3668, {0: 129, 1: 279}),
    "rte": (2490, {0: 146, 1: 131}),
    "qqp": (18496, {0: 3154, 1: 1846}),
    "mnli": (9888, {0: 3479, 1: 3123, 2: 3213}),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_benchmark_rows_and_labels_are_counted_right(data_dir, name):
    train_rows, dev_labels = OFFICIAL[name]
    task = load_task(name, data_dir=data_dir)
    assert Counter(row.label for row in task.splits["validation"].examples) == dev_labels
    train, selection = (task.splits[part].examples for part in ("train", "selection"))
    assert len(train) + len(selection) == train_rows
    assert not {row.id for row in train} & {row.id for row in selection}
    share = [np.mean([row.label == 1 for row in rows]) for rows in (train, selection)]
    assert share[0] == pytest.approx(share[1], abs=0.01)


def test_sts_b_has_scores(data_dir):
    task = load_task("stsb", data_dir=data_dir / "glue")
    scores = np.array([row.label for row in task.splits["validation"].examples])
    assert task.kind == "text-regression"
    assert task.labels == ()
    assert (len(scores), scores.min(), scores.max()) == (1500, 0.0, 5.0)
    assert scores.mean() == pytest.approx(2.364, abs=1e-3)


def test_dev_alone_can_be_scored_and_train_is_named_when_asked_for(data_dir):
    task = load_task("qnli", data_dir=data_dir / "glue" / "QNLI")
    labels = Counter(row.label for row in task.splits["validation"].examples)
    assert labels == {0: 2702, 1: 2761}
    assert len(task.fingerprint()) == 64
    with pytest.raises(
        DataError, match=r"no train file of qnli: looked for train\.tsv \(or \.gz\)"
    ):
        task.splits["train"]


def test_splits_say_where_they_come_from(sst2):
    task = load_task("sst2", data_dir=sst2)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 16,
        "selection": 4,
        "validation": 4,
    }
    train = sst2 / "SST-2" / "train.tsv"
    assert task.splits["selection"].source == f"4 rows held out of {train}"
    assert task.splits["validation"].source == str(sst2 / "SST-2" / "dev.tsv")
    assert task.labels == ("negative", "positive")


def test_seed_and_share_decide_what_is_held_out_but_not_the_fingerprint(sst2):
    tasks = [
        load_task("sst2", data_dir=sst2, seed=seed, holdout=share)
        for seed, share in ((1, None), (1, None), (2, None), (1, 0.5))
    ]
    chosen = [[row.id for row in task.splits["selection"].examples] for task in tasks]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[3]) == 10
    assert len({task.fingerprint() for task in tasks}) == 1


def test_one_changed_character_changes_the_fingerprint(sst2, write):
    before = load_task("sst2", data_dir=sst2).fingerprint()
    write("SST-2/dev.tsv", "sentence\tlabel\ngood\t1\nbad\t0\nfine\t1\ndulL\t0\n")
    assert load_task("sst2", data_dir=sst2).fingerprint() != before


def test_a_quote_is_an_ordinary_character_and_columns_go_by_name(write, tmp_path):
    rows = "".join(f'{at % 2}\t{at}\t{at}\t" a{at}\tb "b"\r\n' for at in range(10))
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    write("MRPC/dev.tsv", f"\ufeff{header}{rows}")
    swapped = "".join(f"b\ta\t1\t2\t{at % 2}\n" for at in range(10))
    write("MRPC/train.tsv", f"#2 String\t#1 String\t#1 ID\t#2 ID\tQuality\n{swapped}")
    task = load_task("mrpc", data_dir=tmp_path)
    first = task.splits["validation"].examples[0]
    assert (first.text, first.text_pair, first.label) == ('" a0', 'b "b"', 0)
    trained = task.splits["train"].examples[0]
    assert (trained.text, trained.text_pair) == ("a", "b")


def test_cola_without_header_and_packed(write, tmp_path):
    rows = "gj04\t1\t\tThe car ran.\ngj04\t0\t*\tCar the ran."
    write("CoLA/dev.tsv.gz", gzip.compress(rows.encode()))
    examples = load_task("cola", data_dir=tmp_path).splits["validation"].examples
    assert [(row.text, row.label) for row in examples] == [("The car ran.", 1), ("Car the ran.", 0)]


def test_mnli_takes_the_matched_dev_file(write, tmp_path):
    header = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    write("MNLI/dev_matched.tsv", f"{header}0\ta\tb\tneutral\tcontradiction\n")
    write("MNLI/dev.tsv", f"{header}0\tc\td\tneutral\tneutral\n")
    (example,) = load_task("mnli", data_dir=tmp_path).splits["validation"].examples
    assert (example.text, example.label) == ("a", 2)


def read_dev(write, tmp_path, folder, name, content):
    path = write(f"{folder}/dev.tsv", content)
    with pytest.raises(DataError) as caught:
        load_task(name, data_dir=tmp_path).splits["validation"]
    return path, str(caught.value)


def test_all_bad_rows_are_reported_together(write, tmp_path):
    content = "sentence\tlabel\ngood\t2\nbad\n \t1\nfine\t\n"
    path, message = read_dev(write, tmp_path, "SST-2", "sst2", content)
    assert message.startswith(repr(str(path)))
    assert "line 2, column 'label': got '2', allowed: 0, 1" in message
    assert "line 3: 1 columns, expected 2" in message
    assert "line 4, column 'sentence': the text is empty" in message
    assert "line 5, column 'label': got '', which is no label" in message


@pytest.mark.parametrize("score", ["5.1", "-0.1", "nan", "inf", "", "high"])
def test_scores_outside_0_to_5_are_refused(write, tmp_path, score):
    content = f"sentence1\tsentence2\tscore\na\tb\t3.2\na\tb\t{score}\n"
    _, message = read_dev(write, tmp_path, "STS-B", "stsb", content)
    assert f"line 3, column 'score': got {score!r}, allowed: a number from 0 to 5" in message


def test_missing_column_names_the_nearest(write, tmp_path):
    _, message = read_dev(write, tmp_path, "RTE", "rte", "index\tsentence1\tsentense2\tlabel\n")
    assert "line 1: no column 'sentence2' in the header" in message
    assert "did you mean" in message


def test_blank_lines_at_the_end_are_no_rows(write, tmp_path):
    write("SST-2/dev.tsv", "sentence\tlabel\ngood\t1\n\n\n")
    assert len(load_task("sst2", data_dir=tmp_path).splits["validation"]) == 1


def test_header_alone_has_no_rows(write, tmp_path):
    path, message = read_dev(write, tmp_path, "SST-2", "sst2", "sentence\tlabel\n")
    assert message == f"{str(path)!r} has no rows; give a file with at least one"


def test_one_class_in_train_is_refused(sst2, write):
    write("SST-2/train.tsv", "sentence\tlabel\n" + "fine\t1\n" * 20)
    with pytest.raises(DataError, match=r"train\.tsv' column of labels holds only 'positive'"):
        load_task("sst2", data_dir=sst2).splits["train"]


def qqp_dev(write, broken):
    rows = "".join(f"{at}\t1\t2\tq{at}\tr{at}\t{at % 2}\n" for at in range(3000))
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write("QQP/dev.tsv", header + rows + "7\tcut off\n" * broken + "8\t1\t2\tq\t\t0\n")


def test_the_few_broken_rows_of_official_qqp_are_dropped_and_logged(write, tmp_path, caplog):
    qqp_dev(write, broken=2)
    assert len(load_task("qqp", data_dir=tmp_path).splits["validation"]) == 3000
    assert "dropped broken rows (line 3002, line 3003)" in caplog.text
    assert "dropped 1 rows without text (line 3004)" in caplog.text


def test_more_broken_rows_than_official_qqp_has_are_an_error(write, tmp_path):
    qqp_dev(write, broken=4)
    with pytest.raises(DataError, match=re.escape("line 3002: 2 columns, expected 6")):
        load_task("qqp", data_dir=tmp_path).splits["validation"]


def test_missing_folder_and_file_say_where_was_looked(tmp_path, write):
    with pytest.raises(DataError, match=re.escape(f"{str(tmp_path / 'no')!r} does not exist")):
        load_task("sst2", data_dir=tmp_path / "no")
    path = write("file.tsv", "x")
    with pytest.raises(DataError, match=re.escape(f"{str(path)!r} is a file")):
        load_task("sst2", data_dir=path)
    with pytest.raises(DataError) as caught:
        load_task("sst2", data_dir=tmp_path)
    assert "no dev file of sst2: looked for dev.tsv (or .gz)" in str(caught.value)
    assert repr(str(tmp_path / "glue" / "SST-2")) in str(caught.value)


def test_unknown_split_names_the_nearest(sst2):
    with pytest.raises(UsageError, match=r"unknown split 'valid', .*did you mean 'validation'"):
        load_task("sst2", data_dir=sst2).splits["valid"]


def test_perfect_logits_score_one(sst2, tokenizer):
    task = load_task("sst2", data_dir=sst2)
    encoded = task.encode("validation", tokenizer)
    outputs = [
        {"logits": np.eye(2, dtype=np.float32)[label]} for label in encoded.targets["labels"]
    ]
    assert task.score(encoded, outputs) == {"accuracy": 1.0}
    assert task.predictions(encoded, outputs) == [1, 0, 1, 0]
    assert encoded.batch([0, 1])["labels"].dtype == np.int64


def test_perfect_scores_correlate_fully(write, tmp_path, tokenizer):
    rows = "".join(f"a\tb\t{score}\n" for score in (0.0, 2.5, 5.0, 1.25))
    write("STS-B/dev.tsv", f"sentence1\tsentence2\tscore\n{rows}")
    task = load_task("stsb", data_dir=tmp_path)
    encoded = task.encode("validation", tokenizer)
    outputs = [{"logits": np.array([row.label])} for row in encoded.examples]
    assert task.score(encoded, outputs)[task.metric_name] == pytest.approx(1.0)
    assert task.predictions(encoded, outputs) == [0.0, 2.5, 5.0, 1.25]
    assert encoded.batch([0])["labels"].dtype == np.float32


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"logits": np.zeros(2)}] * 3, "got outputs for 3 features, expected 4"),
        ([{"logits": np.zeros(3)}] * 4, "feature 0: logits has shape (3,), expected (2,)"),
        ([{"logit": np.zeros(2)}] * 4, "feature 0 has outputs logit, expected logits"),
        ([{"logits": np.array([0, np.nan])}] * 4, "feature 0: logits holds NaN or infinity"),
    ],
    ids=["count", "shape", "name", "nan"],
)
def test_outputs_that_cannot_be_scored_are_refused(sst2, tokenizer, outputs, message):
    task = load_task("sst2", data_dir=sst2)
    encoded = task.encode("validation", tokenizer)
    with pytest.raises(RunnerError, match=re.escape(message)):
        task.score(encoded, outputs)
