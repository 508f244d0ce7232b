from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cofi_deploy import demo
from cofi_deploy.errors import MissingDependencyError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    count = demo.TRAIN_ROWS + demo.VALIDATION_ROWS + 50
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
    assert (len(train), len(validation)) == (demo.TRAIN_ROWS, demo.VALIDATION_ROWS)
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
