from __future__ import annotations

import re
import shutil
import time

import datasets
import pytest

from cofi_deploy.errors import DataError, HubUnreachableError
from cofi_deploy.tasks import load_task
from cofi_deploy.tasks.glue import GLUE, hub_examples
from cofi_deploy.tasks.squad import SQUAD, hub_questions


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub address that refuses connections, and an empty cache."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("task", "arguments", "way_on"),
    [
        ("sst2", {}, "point --data-dir at a local copy of GLUE"),
        ("squad", {}, "point --data-dir at a folder with train-v1.1.json"),
        ("text-classification", {"data": "some/reviews"}, "point --data at a local file or folder"),
    ],
)
def test_no_network_is_told_at_once_with_the_way_on(no_network, task, arguments, way_on):
    began = time.monotonic()
    with pytest.raises(HubUnreachableError) as caught:
        load_task(task, **arguments)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert "no answer from http://127.0.0.1:9" in message
    assert way_on in message


def test_offline_mode_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(HubUnreachableError, match=r"'nyu-mll/glue' .*\(HF_HUB_OFFLINE is set\)"):
        load_task("rte")


def test_cached_data_needs_no_network(no_network, write, tmp_path):
    rows = "".join(f"film {at},{at % 2}\n" for at in range(20))
    path = write("train.csv", f"sentence,label\n{rows}")
    cache = tmp_path / "cache"
    datasets.load_dataset("csv", data_files={"train": str(path)}, cache_dir=str(cache))
    prepared = next(cache.glob("csv/default-*/*/*/dataset_info.json")).parent
    cached = cache / "owner___reviews" / "default" / "0.0.0" / prepared.name
    shutil.copytree(prepared, cached)
    (cached / "csv-train.arrow").rename(cached / "reviews-train.arrow")
    task = load_task("text-classification", data="owner/reviews")
    assert task.labels == ("0", "1")
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 13,
        "selection": 3,
        "validation": 4,
    }


def test_hub_rows_of_glue_get_the_checks_of_files():
    names = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    )
    good = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0]}
    bad = {"premise": ["a", ""], "hypothesis": ["c", "d"], "label": [-1, 0]}
    loaded = datasets.DatasetDict(
        good=datasets.Dataset.from_dict(good, features=names),
        bad=datasets.Dataset.from_dict(bad, features=names),
    )
    examples = hub_examples(loaded, "good", GLUE["mnli"], "hub")
    assert [(row.text, row.text_pair, row.label) for row in examples] == [
        ("a", "c", 2),
        ("b", "d", 0),
    ]
    with pytest.raises(DataError) as caught:
        hub_examples(loaded, "bad", GLUE["mnli"], "hub")
    assert "row 1, column 'label': got -1, allowed: 0, 1, 2" in str(caught.value)
    assert "row 2, column 'premise': the text is empty" in str(caught.value)
    with pytest.raises(
        DataError, match=re.escape("'hub': no split 'god', allowed: good, bad; did")
    ):
        hub_examples(loaded, "god", GLUE["mnli"], "hub")


def test_hub_rows_of_squad_equal_those_of_files():
    row = {
        "id": "q1",
        "title": "t",
        "context": "It rained in May.",
        "question": "When?",
        "answers": {"text": ["May"], "answer_start": [13]},
    }
    (example,) = hub_questions([row], "hub", SQUAD["squad"])
    assert (example.text, example.text_pair, example.group) == ("When?", row["context"], "t")
    assert [(answer.text, answer.start) for answer in example.answers] == [("May", 13)]
