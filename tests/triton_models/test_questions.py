"""Answers to questions equal those of transformers' pipeline, which only versions 4 have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cofi_deploy.export.triton_config import TritonOptions
from tests.conftest import REPOSITORY
from tests.texts import QUESTIONS, save_text_model
from tests.triton_models.chain import Chain, strings

# Installed without their dependencies, which the current environment has; but for `requests`
# and its own, which version 5 of transformers needs no longer.
PACKAGES = (
    "transformers>=4.57,<4.58",
    "huggingface-hub>=0.34,<1",
    "tokenizers>=0.22,<=0.23.0",
    *("requests", "urllib3", "charset-normalizer", "certifi", "idna"),
)


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, first on PYTHONPATH, replaces transformers by version 4.57."""
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(folder), *PACKAGES], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model("question-answering", tmp_path_factory.mktemp("qa") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [1, 4])
def test_answers_are_those_of_the_pipeline(model, transformers_4, tmp_path, open_served, top_k):
    expected = pipeline_4(transformers_4, model, top_k)
    chain = Chain(model, tmp_path, open_served, TritonOptions(top_k=top_k, max_batch_size=100))
    questions, contexts = zip(*QUESTIONS, strict=True)

    answer = chain.ask(question=strings(questions), context=strings(contexts))

    assert answer["answers"].shape == (len(QUESTIONS), top_k)
    for row, answers in enumerate(expected):
        wanted = [entry for entry in answers if entry["score"] > 0]
        count = len(wanted)
        assert [text.decode() for text in answer["answers"][row, :count]] == [
            entry["answer"] for entry in wanted
        ]
        assert answer["starts"][row, :count].tolist() == [entry["start"] for entry in wanted]
        assert answer["ends"][row, :count].tolist() == [entry["end"] for entry in wanted]
        scores = [entry["score"] for entry in wanted]
        assert answer["scores"][row, :count] == pytest.approx(scores, abs=1e-6)
        assert set(answer["answers"][row, count:]) <= {b""}


def pipeline_4(transformers_4: Path, model: Path, top_k: int) -> list[list[dict[str, object]]]:
    """What the pipeline of version 4 says to every question."""
    task = {"model": str(model), "questions": QUESTIONS, "top_k": top_k}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("pipeline_4.py"))],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{transformers_4}{os.pathsep}{REPOSITORY}"},
        text=True,
        check=True,
        timeout=300,
    )
    answers: list[list[dict[str, object]]] = json.loads(done.stdout)
    return answers
