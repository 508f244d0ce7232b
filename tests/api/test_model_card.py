"""The card of a model: front matter that parses, and the numbers of run.json."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cofi_deploy.api.model_card import model_card
from tests.builders import dense_arch

RUN: dict[str, Any] = {
    "task": {"name": "mrpc"},
    "model": "/models/all: MiniLM",
    "recipe": "fast",
    "settings": {"seed": 7},
    "versions": {"cofi-deploy": "0.1.0"},
    "machine": {"cpu": "Some CPU", "cores": 2, "gpu": None},
    "wall_s": 1830.0,
    "result": {
        "metric_name": "f1",
        "examples": 408,
        "teacher": {"metric": 0.87654, "encoder_parameters": 10_640_640, "parameters": 22_713_986},
    },
}
MODEL: dict[str, Any] = {
    "metric": 0.81236,
    "target_sparsity": 0.9,
    "realized_sparsity": 0.90012,
    "encoder_parameters": 1_062_787,
    "parameters": 12_345_678,
}


def card(**changes: Any) -> str:
    return model_card({**RUN, **changes}, MODEL, dense_arch())


def test_the_front_matter_is_yaml_with_base_model_and_task():
    _, front, _ = card().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["base_model"] == "all: MiniLM"
    assert matter["tags"] == ["structured-pruning", "cofi", "mrpc"]
    assert matter["library_name"] == "cofi-deploy"


@pytest.mark.parametrize(
    "words",
    [
        "# mrpc, 90.0 % of the encoder pruned",
        "| f1, 408 development examples | 0.8765 | 0.8124 |",
        "| encoder parameters (attention and FFN) | 10,640,640 | 1,062,787 |",
        "| all parameters | 22,713,986 | 12,345,678 |",
        "Seed 7, recipe `fast`, target sparsity\n0.9",
        "30 minutes on Some CPU\n(2 cores).",
    ],
)
def test_the_numbers_are_those_of_the_run(words):
    assert words in card()


def test_a_gpu_is_named():
    assert "(2 cores, Some GPU)" in card(machine={**RUN["machine"], "gpu": "Some GPU"})


@pytest.mark.parametrize(
    ("task", "pipeline"), [("squad", "question-answering"), ("mrpc", "text-classification")]
)
def test_the_example_names_the_pipeline_of_the_task(task, pipeline):
    assert f'pipeline("{pipeline}", ' in card(task={"name": task})


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (dense_arch(), "A pruned BERT encoder, made with CoFi"),
        (dense_arch(family="xlm-roberta"), "A pruned XLM-RoBERTa encoder, made with CoFi"),
    ],
    ids=["bert", "xlm-roberta"],
)
def test_the_family_is_named_as_people_write_it(base, words):
    assert words in model_card(RUN, MODEL, base)
