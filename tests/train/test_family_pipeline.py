"""Every family through the whole pipeline, from its checkpoint and its own tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cofi_deploy import load
from cofi_deploy.artifacts import write_json
from cofi_deploy.config import TrainSettings
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.exports import check_export
from cofi_deploy.inspect_model import describe
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.tasks import load_task
from cofi_deploy.train.pipeline import Pipeline
from tests.families import hf_model
from tests.family_tokenizers import write_tokenizer

LONGEST = 64
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
DISTILBERT_SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}


def pretrained(family: str, folder: Path) -> Path:
    """A checkpoint as a hub has it: encoder, pre-training head, tokenizer."""
    vocabulary = write_tokenizer(family, folder, model_max_length=LONGEST)
    sizes = DISTILBERT_SIZES if family == "distilbert" else SIZES
    rows = LONGEST + (2 if "roberta" in family else 0)
    hf_model(
        family,
        suffix="ForPreTraining" if family == "electra" else "ForMaskedLM",
        **sizes,
        vocab_size=vocabulary,
        max_position_embeddings=rows,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("roberta", "sst2"),
        pytest.param("xlm-roberta", "squad", marks=pytest.mark.slow),
        ("distilbert", "stsb"),
        ("electra", "sst2"),
    ],
)
def test_a_family_is_trained_pruned_cut_and_exported(family, task, few_steps, tiny_data, tmp_path):
    base = pretrained(family, tmp_path / "base")
    run = tmp_path / "run"
    write_json(run / "run.json", {"state": "running", "stages": {}})
    settings = {**few_steps, "sparsities": (0.7,), "teacher_epochs": 0.5, "warmup_epochs": 0.4}
    report = Pipeline(
        run,
        task=load_task(task, data_dir=tiny_data, max_length=LONGEST),
        model=str(base),
        teacher=None,
        tokenizer=load_tokenizer(base),
        settings=TrainSettings(**settings),
    ).train()
    model = load(run / "model")
    assert model.arch.family == load(run / "teacher").arch.family == family
    assert model.arch.max_positions == LONGEST
    assert abs(model.arch.sparsity - 0.7) < 0.01
    assert report["models"][0]["encoder_parameters"] == model.arch.prunable_parameters
    assert describe(run / "model")["realized_sparsity"] == model.arch.sparsity
    manifest = check_export(export_onnx(run / "model", tmp_path / "onnx"))
    assert manifest.parity.max_abs_logit_diff < 1e-4
    assert manifest.arch == model.arch
    if task != "squad":
        check_teacher(run / "teacher")


def check_teacher(directory: Path) -> None:
    """The teacher is an ordinary checkpoint of its family."""
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    encoded = load_tokenizer(directory)("a good film", return_tensors="pt")
    with torch.no_grad():
        got, expected = load(directory)(**encoded).logits, theirs(**encoded).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
