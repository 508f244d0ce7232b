"""A tiny BERT, its tokenizer and tiny tasks on disk, and how to run the whole pipeline on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from cofi_deploy.artifacts import write_json
from cofi_deploy.config import TrainSettings
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.tasks import Task, load_task
from cofi_deploy.train.pipeline import Pipeline
from tests.builders import bert_tokenizer

WORDS = ("good", "fine", "great", "bad", "dull", "poor", "a", "the", "film", "plot", "is", "was")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Every stage runs, in a few steps each.
FEW_STEPS: dict[str, Any] = {
    "sparsities": (0.5, 0.8),
    "batch_size": 8,
    "teacher_epochs": 1.0,
    "distill_epochs": 0.3,
    "warmup_epochs": 1.0,
    "prune_epochs": 0.3,
    "finetune_epochs": 0.4,
    "dropout": 0.1,
    "teacher_layers": 2,
    "evaluations": 2,
    "gate_lr": 0.1,
    "precision": "fp32",
}


@pytest.fixture(scope="session")
def few_steps() -> dict[str, Any]:
    """Settings with which every stage runs, in a few steps each."""
    return FEW_STEPS


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Results are promised to be the same bit for bit on one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """An ordinary pre-trained checkpoint: 3 layers, hidden 32, no head, with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    bert_tokenizer(vocabulary, max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """GLUE's SST-2 and STS-B, SQuAD and tagged words, some hundred rows of nonsense each."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))

    def write(name: str, rows: list[str]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    for split, count in (("train", 120), ("dev", 24)):
        labelled = [f"{sentence()} number {at}\t{at % 2}" for at in range(count)]
        write(f"SST-2/{split}.tsv", ["sentence\tlabel", *labelled])
        header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
        scored = [
            f"{at}\tg\tf\ty\to\ts\ts\t{sentence()}\t{sentence()}\t{rng.randint(0, 10) / 2}"
            for at in range(count)
        ]
        write(f"STS-B/{split}.tsv", [header + "\tscore", *scored])
        tagged = [_tagged(sentence().split()) for _ in range(count)]
        write(f"tags/{split}.conll", [line for rows in tagged for line in (*rows, "")])
        write(f"{split}-v1.1.json", [json.dumps({"version": "1.1", "data": _articles(rng, count)})])
    return folder


def _tagged(words: list[str]) -> list[str]:
    """Films and plots are things, good and bad ones included: entities of one or two words."""
    lines: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        inside = word in {"film", "plot"} and before in {"good", "bad"}
        tag = "I-thing" if inside else "B-thing" if word in {"good", "bad", "film", "plot"} else "O"
        lines.append(f"{word}\t{tag}")
    return lines


def _articles(rng: random.Random, count: int) -> list[dict[str, Any]]:
    articles = []
    for at in range(count):
        words = rng.choices(WORDS, k=20)
        start = rng.randrange(18)
        answer = " ".join(words[start : start + 2])
        offset = len(" ".join(words[:start])) + (start > 0)
        question = {
            "id": f"q{at}",
            "question": "is the plot good",
            "answers": [{"text": answer, "answer_start": offset}],
        }
        paragraph = {"context": " ".join(words), "qas": [question]}
        articles.append({"title": f"t{at}", "paragraphs": [paragraph]})
    return articles


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: Path
    report: dict[str, Any]

    @property
    def json(self) -> dict[str, Any]:
        """What run.json says."""
        return json.loads((self.directory / "run.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        text = (self.directory / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def make_pipeline(tiny_bert, tiny_data) -> Callable[..., Pipeline]:
    """Build a pipeline in a directory; settings are changes of `FEW_STEPS`."""

    def make(
        directory: Path,
        task: str = "sst2",
        *,
        model: Path | None = None,
        teacher: Path | None = None,
        **settings: Any,
    ) -> Pipeline:
        resolved = TrainSettings(**{**FEW_STEPS, **settings})
        if not (directory / "run.json").exists():
            write_json(directory / "run.json", {"state": "running", "stages": {}})
        return Pipeline(
            directory,
            task=_task(task, tiny_data),
            model=str(model or tiny_bert),
            teacher=teacher,
            tokenizer=load_tokenizer(tiny_bert),
            settings=resolved,
        )

    return make


def _task(name: str, data: Path) -> Task:
    if name == "token-classification":
        return load_task(name, data=str(data / "tags"), max_length=48)
    return load_task(name, data_dir=data, max_length=48)


@pytest.fixture(scope="session")
def train_run(make_pipeline) -> Callable[..., Run]:
    """Run a whole pipeline in a directory."""

    def train(directory: Path, task: str = "sst2", **settings: Any) -> Run:
        return Run(directory, make_pipeline(directory, task, **settings).train())

    return train


@pytest.fixture(scope="session")
def finished_run(train_run, tmp_path_factory) -> Run:
    """SST-2 with two target sparsities, through every stage."""
    return train_run(tmp_path_factory.mktemp("finished"))
