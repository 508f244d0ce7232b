"""The comparison with PyTorch must see wrong masks, wrong weights and broken numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cofi_deploy.errors import ExportError
from cofi_deploy.export import parity
from cofi_deploy.export.parity import (
    SENTENCES,
    allowed_difference,
    check_parity,
    encode_sentences,
    warmup_inputs,
)
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.loading import load, load_tokenizer


def runner_of(model):
    def infer(inputs):
        with torch.inference_mode():
            outputs = model.outputs({k: torch.from_numpy(v) for k, v in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return infer


def compare(infer, model_dir):
    model, tokenizer = load(model_dir), load_tokenizer(model_dir)
    return check_parity(infer, model, tokenizer, runtime="here", precision="fp32")


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_the_model_agrees_with_itself_padded_or_not(kind, write_model):
    found = compare(runner_of(load(write_model(kind))), write_model(kind))
    assert found.max_abs_logit_diff < 1e-5
    assert 0 <= found.mean_abs_logit_diff <= found.max_abs_logit_diff
    assert found.agreement == 1.0
    assert found.sentences == len(SENTENCES)
    assert found.runtime == "here"


def test_a_mask_that_is_ignored_is_seen_on_padded_sentences_only(write_model):
    infer = runner_of(load(write_model()))

    def ignores_mask(inputs):
        return infer({**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    with pytest.raises(
        ExportError, match=r"by up to 0\.00e\+00 on single sentences and \d"
    ) as info:
        compare(ignores_mask, write_model())
    assert "allowed: 1e-04" in str(info.value)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_token_types_that_are_ignored_are_seen(kind, write_model):
    infer = runner_of(load(write_model(kind)))

    def ignores_types(inputs):
        return infer({**inputs, "token_type_ids": np.zeros_like(inputs["token_type_ids"])})

    with pytest.raises(ExportError, match="here differs from PyTorch"):
        compare(ignores_types, write_model(kind))


def test_nan_is_never_within_the_tolerance(write_model, monkeypatch):
    monkeypatch.setitem(parity.TOLERANCE, "fp32", 1e9)
    infer = runner_of(load(write_model()))

    def broken(inputs):
        return {name: array * np.nan for name, array in infer(inputs).items()}

    with pytest.raises(ExportError, match="by up to nan on single sentences"):
        compare(broken, write_model())


def test_agreement_counts_predictions_and_not_logits(write_model, monkeypatch):
    monkeypatch.setitem(parity.TOLERANCE, "fp32", 1e9)
    infer = runner_of(load(write_model()))

    def reversed_classes(inputs):
        return {"logits": infer(inputs)["logits"][:, ::-1]}

    assert compare(reversed_classes, write_model()).agreement < 1.0


def test_sentences_differ_in_length_and_some_are_pairs(write_model):
    model_dir = write_model()
    rows = encode_sentences(load_tokenizer(model_dir), load(model_dir).arch)
    lengths = {len(ids) for ids, _ in rows}
    assert len(lengths) >= 4
    assert max(lengths) <= 64
    assert any(types.any() for _, types in rows)


def test_a_tokenizer_of_another_model_is_named_by_its_ids(write_model):
    model_dir = write_model(vocab_size=20)
    words = "but the model has 20 ids and 2 types; the tokenizer files belong to another model"
    with pytest.raises(ExportError, match=re.escape(words)):
        encode_sentences(load_tokenizer(model_dir), load(model_dir).arch)


def test_lossy_formats_may_differ_by_a_share_of_the_largest_logit():
    logits = [{"logits": np.array([[0.1, -8.0]])}, {"logits": np.array([[2.0, 0.0]])}]
    assert allowed_difference(logits, "fp32") == 1e-4
    assert allowed_difference(logits, "int8") == pytest.approx(2.0)
    assert allowed_difference(logits[1:], "fp16") == 5e-2


@pytest.mark.parametrize("length", [1, 16, 700])
def test_warm_up_inputs_have_exactly_the_length_and_real_ids(length, write_model):
    model_dir = write_model()
    inputs = warmup_inputs(load_tokenizer(model_dir), load(model_dir).arch, length)
    assert {array.shape for array in inputs.values()} == {(1, length)}
    assert inputs["attention_mask"].all()
    assert length == 1 or len(np.unique(inputs["input_ids"])) > 5
