"""The card of a model: front matter that a hub reads, numbers of run.json and verify.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from cofi_deploy.api.model_card import model_card
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.kinds import TASK_KINDS, TaskKind
from cofi_deploy.loading import save_compact
from tests.api.card_facts import MODEL, PRUNED, RUN, VERIFIED, card
from tests.builders import dense_arch, random_model, tiny_tokenizer


def matter(text: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "README.md").write_text(text, "utf-8")
    return metadata_load(tmp_path / "README.md")


def test_the_front_matter_says_what_the_run_knows(tmp_path):
    found = matter(card(), tmp_path)
    assert found["library_name"] == "cofi-deploy"
    assert found["pipeline_tag"] == "text-classification"
    assert found["language"] == "en"
    assert found["license"] == "other"
    assert found["datasets"] == ["nyu-mll/glue"]
    assert found["metrics"] == ["f1", "accuracy"]
    assert found["tags"] == ["structured-pruning", "cofi", "mrpc"]
    assert "base_model" not in found  # a local directory is no hub id


def test_results_are_read_back_as_they_were_measured():
    data = ModelCard(card()).data
    assert data.model_name == "mrpc-s90"
    results = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "f1": 0.81236,
        "accuracy": 0.78941,
    }
    f1 = results["f1"]
    assert (f1.task_type, f1.dataset_type) == ("text-classification", "nyu-mll/glue")
    assert (f1.dataset_name, f1.dataset_config) == ("GLUE MRPC", "mrpc")
    assert (f1.dataset_split, f1.metric_type) == ("validation", "f1")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"name": "mnli"}, ("nyu-mll/glue", "mnli", "validation_matched")),
        ({"name": "squad"}, ("rajpurkar/squad", "plain_text", "validation")),
        ({"name": "squad_v2"}, ("rajpurkar/squad_v2", "squad_v2", "validation")),
        ({"name": "text-classification", "data": "a/b"}, ("a/b", None, "validation")),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_data_sets_have_their_hub_ids(task, expected):
    data = ModelCard(card(task=task)).data
    assert data.datasets == [expected[0]]
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == expected


def test_own_files_are_no_data_set_of_a_hub(tmp_path):
    own = {"name": "text-classification", "data": str(tmp_path / "secret.csv")}
    text = card(task=own)
    data = ModelCard(text).data
    assert data.datasets is None
    assert data.language is None
    assert data.eval_results[0].dataset_name == "own data"
    assert "secret" not in text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("google/electra-small", "google/electra-small"),
        ("/cache/hub/models--BAAI--bge-small/snapshots/abc", "BAAI/bge-small"),
        ("/models/own", None),
        ("..", None),
    ],
)
def test_the_base_model_is_a_hub_id_or_absent(model, expected):
    assert ModelCard(card(model=model)).data.base_model == expected


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Base\n", "apache-2.0"),
        ("# no front matter\n", "other"),
        ("---\n- a list\n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", "other"),
        (None, "other"),
    ],
    ids=["says so", "says nothing", "no mapping", "a list", "no card"],
)
def test_the_license_is_the_base_models_where_its_card_says_it(readme, expected, tmp_path):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme, "utf-8")
    text = card(model=str(tmp_path))
    assert ModelCard(text).data.license == expected
    assert ("License: that of the base model's card." in text) == (expected != "other")


def test_the_metric_that_no_hub_knows_is_a_result_and_no_tag():
    scores = {"pearson": 0.8, "spearmanr": 0.7, "combined_score": 0.75}
    entry = {key: MODEL[key] for key in MODEL if key not in {"f1", "accuracy"}} | scores
    text = model_card(
        RUN, entry, kind="text-regression", arch=PRUNED, base=dense_arch(), verified=None
    )
    data = ModelCard(text).data
    assert data.metrics == ["pearsonr", "spearmanr"]
    assert data.pipeline_tag == "text-classification"
    assert {result.metric_name for result in data.eval_results} == set(scores)


@pytest.mark.parametrize(
    "words",
    [
        "# mrpc, 90.0 % of the encoder pruned",
        "| f1 | 0.8765 | 0.8124 |",
        "| accuracy | 0.8543 | 0.7894 |",
        "| encoder parameters (attention and FFN) | 10,640,640 | 1,062,787 |",
        "| all parameters | 22,713,986 | 12,345,678 |",
        "1,408 examples of the validation split; the primary metric is f1.",
        "| layer | 1 | 2 | 3 | dense |",
        "| heads | 2 | 0 | 1 | 3 |",
        "| FFN units | 7 | 0 | 3 | 20 |",
        "keeps 22 of 24 dimensions",
        "target 0.9, realised 0.9001 of",
        "Recipe `fast`: teacher 3, distill 0, warmup 4, prune 0.5, finetune 8 epochs; "
        "batches of 32, bf16.",
        "Seed 7: one run",
        "| prune-0.9 | 20.0 | 55 |",
        "Fingerprint of the data: `0123456789abcdef`.",
        "took 0.50 hours on Some CPU (2 cores).",
        # 0.5 h of two cores at 9 W, at 480 g/kWh
        "0.009 kWh and 4.32 g of CO2.",
    ],
)
def test_the_numbers_are_those_of_the_run(words):
    assert words in card()


def test_the_hub_is_told_that_emissions_are_an_estimate(tmp_path):
    found = matter(card(), tmp_path)["co2_eq_emissions"]
    assert found["emissions"] == 4.32
    assert found["source"] == (
        "estimate, not measured: 0.5 hours at 9 W for each of 2 cores, "
        "and 480 g of CO2 for each kWh"
    )
    assert found["hardware_used"] == "Some CPU (2 cores)"
    assert found["training_type"] == "fine-tuning"


@pytest.mark.parametrize(("torch", "watts"), [("2.13.0+cpu", 18.0), ("2.13.0+cu130", 418.0)])
def test_a_gpu_counts_when_pytorch_reaches_it(torch, watts):
    machine = {**RUN["machine"], "gpu": "Some GPU, 580.1\nSome GPU, 580.1"}
    text = card(machine=machine, versions={"torch": torch})
    assert ("on Some CPU (2 cores), Some GPU, 580.1." in text) == (watts > 400)
    assert f"{0.5 * watts / 1e3:.3g} kWh" in text


def test_a_teacher_that_was_given_has_no_epochs_of_this_run():
    text = card(teacher="/models/teacher")
    assert "; the dense teacher was given, not trained here." in text
    assert "Recipe `fast`: distill 0, warmup 4," in text


def test_a_limit_on_the_training_data_is_said():
    text = card(settings={**RUN["settings"], "train_limit": 5000})
    assert "Only 5,000 examples of the training split were used." in text


def test_a_speedup_that_was_asked_for_is_told_as_it_was_measured(tmp_path):
    run = {**RUN, "settings": {**RUN["settings"], "sparsities": [], "speedups": [4.0, 10.0]}}
    entry = {name: value for name, value in MODEL.items() if name != "target_sparsity"}
    latency = {
        "for": "onnxruntime-cpu@1x128",
        "speedup": 9.87,
        "speedup_low": 9.5,
        "speedup_high": 10.2,
        "busy": None,
        "is_met": True,
    }
    entry |= {"target_speedup": 10.0, "latency": latency}
    base = dense_arch()
    text = model_card(run, entry, kind="text-classification", arch=PRUNED, base=base)
    assert (
        "- Speedup: target 10 in `onnxruntime-cpu@1x128`, measured 9.87 (9.50 to 10.20); 0.9001 of"
    ) in text
    assert "(warmup and prune for the whole family of 4, 10)" in text
    assert matter(text, tmp_path)["model-index"][0]["name"] == "mrpc-x10"
    assert "target_speedup" not in text


def test_the_family_is_named_as_people_write_it():
    base = dense_arch(family="xlm-roberta")
    text = model_card(RUN, MODEL, kind="text-classification", arch=PRUNED, base=base)
    assert "An encoder of family XLM-RoBERTa, fine-tuned on GLUE MRPC" in text


def test_without_verification_the_card_says_how_to_measure():
    text = card()
    assert "Not measured yet." in text
    assert "`cofi-deploy verify` measures it" in text
    assert "paired bootstrap" not in text


def test_verified_numbers_come_with_their_intervals():
    text = card(verified=VERIFIED)
    assert "On the same 1,408 examples, this model minus the teacher is -6.42 points of\nf1" in text
    assert "(95 % interval -8.11 to -4.93, paired bootstrap, in torch)" in text
    assert "| openvino fp32 | 1 x 128 | 2 | 13.4 | 1.99 | 6.75 (6.50 to 7.00) |" in text
    assert "| torch fp32 | 32 x task | 2 | 449 | 64 | too noisy to compare |" in text
    assert "Measured 2026-11-26T10:00:00+00:00 on Other CPU (8 cores)." in text


# A task of each kind; of classification one that reads two sentences.
EXAMPLES: dict[TaskKind, dict[str, Any]] = {
    "text-classification": {"name": "mrpc"},
    "text-regression": {"name": "text-regression", "data": "/own.csv"},
    "token-classification": {"name": "token-classification", "data": "/own.csv"},
    "question-answering": {"name": "squad"},
}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_card_of_each_kind_has_the_tag_of_its_pipeline(kind):
    data = ModelCard(card(kind, task=EXAMPLES[kind])).data
    hub_kind = "text-classification" if kind == "text-regression" else kind
    assert data.pipeline_tag == hub_kind
    assert {result.task_type for result in data.eval_results} == {hub_kind}


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module", params=TASK_KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model of each kind, its ONNX export and its card."""
    root = tmp_path_factory.mktemp(request.param)
    save_compact(random_model(request.param, PRUNED), tiny_tokenizer(), root / "model")
    export_onnx(root / "model", root / "onnx")
    text = card(request.param, task=EXAMPLES[request.param])
    (root / "README.md").write_text(text, "utf-8")
    return root


@pytest.mark.parametrize("block", [0, 1], ids=["with cofi_deploy", "without"])
def test_the_code_of_the_card_runs(saved, block, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    code = code_blocks((saved / "README.md").read_text("utf-8"))[block]
    exec(code.replace("path/to/this/directory", "model"), {})
    assert capsys.readouterr().out
