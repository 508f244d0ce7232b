from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cofi_deploy import demo
from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import MissingDependencyError, UsageError

SIZE = demo.DemoSize()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    count = SIZE.train_rows + SIZE.validation_rows + 50
    rows = [
        f'{("negative", "neutral", "positive")[i % 3]},1,"message {i} \u2014 so"'
        for i in range(count)
    ]
    path = tmp_path / "corpus.csv"
    text = "\r\n".join(["sentiment,confidence,text", *rows, rows[0]])
    path.write_bytes(text.encode("mac-roman"))
    return path


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def test_the_demo_data_is_utf8_without_repeats_between_train_and_validation(
    corpus: Path, tmp_path: Path
) -> None:
    demo.write_data(corpus, tmp_path / "data")
    train, validation = (
        read(tmp_path / "data" / f"{name}.csv") for name in ("train", "validation")
    )
    assert (len(train), len(validation)) == (SIZE.train_rows, SIZE.validation_rows)
    texts = [row["text"] for row in train + validation]
    assert len(set(texts)) == len(texts)
    assert all("\u2014" in text for text in texts)


def test_the_demo_data_is_the_same_every_time(corpus: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        demo.write_data(corpus, tmp_path / name)
    assert (tmp_path / "one/train.csv").read_bytes() == (tmp_path / "two/train.csv").read_bytes()


def test_without_its_packages_the_demo_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.metadata, "files", lambda _: [])
    with pytest.raises(MissingDependencyError, match=r"pip install 'cofi-deploy\[demo\]'"):
        demo._corpus()


def test_a_demo_at_another_sparsity_is_not_mixed_up_with_the_one_that_is_there(
    tmp_path: Path,
) -> None:
    document = {"state": "done", "settings": {"sparsities": [0.95]}}
    write_json(tmp_path / "run.json", document)
    with pytest.raises(UsageError, match=r"begun with --sparsity 0\.95, now it is 0\.9; remove it"):
        demo._train(tmp_path, model=tmp_path, data=tmp_path, settings={"sparsities": [0.9]})
