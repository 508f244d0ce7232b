"""Masked, cut, reloaded and exported models of every family give the oracle's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.kinds import TASK_KINDS, TaskKind, output_names
from cofi_deploy.loading import load, save_compact
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.train.cut import cut
from tests.builders import (
    SMALL,
    any_masks,
    as_double,
    float64_modules,
    masks_of,
    max_difference,
    random_model,
    tiny_tokenizer,
)
from tests.families import MODELS, dense_arch_of, padded_inputs
from tests.train.masked_bert import masked_outputs, masked_states
from tests.train.test_exactness import AUTO_CLASSES, FP32_TOLERANCE, FP64_TOLERANCE

RELATIVES = sorted(set(MODELS) - {"bert"})
STRUCTURES = {
    "one head in each layer": {"heads": [1, 1, 1]},
    "vanished sublayers": {"heads": [0, 2, 3], "ffn": [7, 0, 20], "ffn_off": [2], "soft": False},
    "hidden size pruned": {"hidden": 17},
}


def structure(name: str) -> Masks:
    return masks_of(SMALL, seed=len(name), **STRUCTURES[name])


@given(
    name=st.sampled_from(sorted(MODELS)),
    masks=any_masks(SMALL, min_hidden=3),
    kind=st.sampled_from(TASK_KINDS),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_oracle_masked_and_cut_model_agree_in_float64(
    name: str, masks: Masks, kind: TaskKind, seed: int
):
    masks = as_double(masks)
    with float64_modules(), torch.no_grad():
        model = random_model(kind, dense_arch_of(name), seed=seed)
        inputs = padded_inputs(model.arch, seed=seed)
        small = cut(model, masks)
        expected = masked_outputs(model, inputs, masks)
        assert max_difference(model.outputs(inputs, masks), expected) < FP64_TOLERANCE
        assert max_difference(small.outputs(inputs), expected) < FP64_TOLERANCE
        kept = masks.kept_hidden()
        for states in (model.encode(**inputs, masks=masks).states, small.encode(**inputs).states):
            for got, oracle in zip(states, masked_states(model, inputs, masks), strict=True):
                torch.testing.assert_close(got, oracle[..., kept], rtol=0, atol=FP64_TOLERANCE)


@pytest.mark.parametrize("shape", STRUCTURES)
@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("name", RELATIVES)
def test_masked_cut_reloaded_and_exported_models_answer_the_same(
    name: str, kind: TaskKind, shape: str, tmp_path: Path
):
    model, masks = random_model(kind, dense_arch_of(name)), structure(shape)
    inputs = padded_inputs(model.arch)
    compact = cut(model, masks)
    save_compact(compact, tiny_tokenizer(), tmp_path / "model")
    reloaded = load(tmp_path / "model")
    theirs = AUTO_CLASSES[kind].from_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = masked_outputs(model, inputs, masks)
        answers = {
            "masked": model.outputs(inputs, masks),
            "cut": compact.outputs(inputs),
            "reloaded": reloaded.outputs(inputs),
            "by the Auto class": {key: theirs(**inputs)[key] for key in output_names(kind)},
            "ONNX": onnx_outputs(tmp_path / "model", compact, inputs),
        }
    assert reloaded.arch == theirs.arch == masks.arch(model.arch)
    for what, got in answers.items():
        assert max_difference(got, expected) <= FP32_TOLERANCE, what
    assert max_difference(answers["reloaded"], answers["cut"]) == 0.0


@pytest.mark.parametrize("name", RELATIVES)
def test_only_attention_and_ffn_count_as_pruned(name: str):
    model, masks = (
        random_model("text-classification", dense_arch_of(name)),
        structure("hidden size pruned"),
    )
    arch = cut(model, masks).arch
    assert arch.dense.prunable_parameters == 3 * (4 * 24 * 24 + 4 * 24 + 2 * 24 * 20 + 24 + 20)
    assert arch.prunable_parameters == 3 * (4 * 24 * 17 + 3 * 24 + 17 + 2 * 17 * 20 + 17 + 20)


def test_the_embedding_of_electra_keeps_its_width_and_its_projection_is_cut():
    model = random_model("text-classification", dense_arch_of("electra"))
    compact = cut(model, structure("hidden size pruned"))
    before, after = model.encoder.embeddings, compact.encoder.embeddings
    for table in ("word", "position", "token_type", "norm"):
        assert torch.equal(getattr(after, table).weight, getattr(before, table).weight)
    assert after.project.weight.shape == (17, 10)
    assert compact.arch.embedding == compact.arch.embedding_width == 10


def test_the_bare_encoder_pools_as_its_family_does(tmp_path: Path):
    model = random_model("text-classification", dense_arch_of("electra"))
    save_compact(model, tiny_tokenizer(), tmp_path / "model")
    inputs = padded_inputs(model.arch)
    with torch.no_grad():
        got = AutoModel.from_pretrained(tmp_path / "model")(**inputs)
        pooled = torch.nn.functional.gelu(model.pooler(got.last_hidden_state[:, 0]))
    torch.testing.assert_close(got.pooler_output, pooled, rtol=0, atol=FP32_TOLERANCE)


@pytest.mark.parametrize("name", RELATIVES)
def test_every_gate_and_every_weight_that_is_used_gets_a_gradient(name: str):
    model = random_model("text-classification", dense_arch_of(name))
    masks = masks_of(SMALL)
    for value in vars(masks).values():
        value.requires_grad_()
    model.outputs(padded_inputs(model.arch), masks)["logits"].square().sum().backward()
    for family, value in vars(masks).items():
        assert value.grad is not None, family
        assert (value.grad != 0).any(), family
    unused = {key for key, value in model.named_parameters() if value.grad is None}
    assert not unused


def onnx_outputs(
    model_dir: Path, model: CofiPreTrainedModel, inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    directory = export_onnx(model_dir, model_dir.parent / "onnx")
    session = onnxruntime.InferenceSession(
        directory / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [item.name for item in session.get_inputs()] == list(inputs)
    names = list(output_names(model.kind))
    values = session.run(names, {key: value.numpy() for key, value in inputs.items()})
    return {
        key: torch.from_numpy(np.asarray(value)) for key, value in zip(names, values, strict=True)
    }
