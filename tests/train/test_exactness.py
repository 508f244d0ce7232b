"""The gate of the method: masked, cut, reloaded and exported models give the oracle's answers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import CheckpointError
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.kinds import TASK_KINDS, TaskKind, output_names
from cofi_deploy.loading import load, save_compact
from cofi_deploy.masks import FAMILIES, Masks
from cofi_deploy.train.cut import cut
from cofi_deploy.train.gates import HardConcreteGates
from tests.builders import (
    SMALL,
    any_masks,
    as_double,
    dense_arch,
    float64_modules,
    masks_of,
    max_difference,
    random_inputs,
    random_model,
    tiny_tokenizer,
)
from tests.train.masked_bert import masked_outputs, masked_states

FP32_TOLERANCE = 1e-5
FP64_TOLERANCE = 1e-10

STRUCTURES = {
    "everything kept, hard": {"soft": False},
    "everything kept, soft": {},
    "no attention in layer 1": {"attn_off": [1]},
    "no heads in layer 1": {"heads": [3, 0, 2]},
    "no FFN in layer 0": {"ffn_off": [0]},
    "no FFN units in layer 2": {"ffn": [20, 7, 0]},
    "layer 1 gone by switches": {"attn_off": [1], "ffn_off": [1]},
    "layer 0 gone by units, layer 2 by switches": {
        "heads": [0, 1, 2],
        "ffn": [0, 3, 5],
        "attn_off": [2],
        "ffn_off": [2],
    },
    "all layers gone": {"attn_off": [0, 1, 2], "ffn": [0, 0, 0], "hidden": 17},
    "one head and one FFN unit": {"heads": [1, 1, 1], "ffn": [1, 1, 1]},
    "few hidden dimensions": {"hidden": 5, "heads": [2, 1, 3], "ffn": [4, 20, 1]},
    "uneven and hard": {"hidden": 19, "heads": [0, 2, 1], "ffn": [13, 0, 6], "soft": False},
    "uneven and soft": {"hidden": 21, "heads": [1, 0, 3], "ffn": [0, 11, 20], "attn_off": [0]},
}
EXPORTED_ALWAYS = {"uneven and soft", "layer 0 gone by units, layer 2 by switches"}
AUTO_CLASSES = {
    "text-classification": AutoModelForSequenceClassification,
    "text-regression": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}


def structure(name: str) -> Masks:
    return masks_of(SMALL, seed=sorted(STRUCTURES).index(name), **STRUCTURES[name])


@given(
    masks=any_masks(SMALL, min_hidden=3),
    kind=st.sampled_from(TASK_KINDS),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_oracle_masked_and_cut_model_agree_in_float64(masks: Masks, kind: TaskKind, seed: int):
    masks = as_double(masks)
    with float64_modules(), torch.no_grad():
        model = random_model(kind, seed=seed)
        inputs = random_inputs(seed=seed)
        expected = masked_outputs(model, inputs, masks)
        assert max_difference(model.outputs(inputs, masks), expected) < FP64_TOLERANCE
        assert max_difference(cut(model, masks).outputs(inputs), expected) < FP64_TOLERANCE


@given(masks=any_masks(SMALL, min_hidden=3), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_states_of_every_layer_are_those_of_the_oracle(masks: Masks, seed: int):
    masks = as_double(masks)
    with float64_modules(), torch.no_grad():
        model = random_model("token-classification", seed=seed)
        inputs = random_inputs(seed=seed)
        expected = masked_states(model, inputs, masks)
        got = model.encode(**inputs, masks=masks).states
        small = cut(model, masks).encode(**inputs).states
    assert len(got) == len(small) == len(expected) == SMALL.layers + 1
    kept = masks.kept_hidden()
    for oracle, masked, compact in zip(expected, got, small, strict=True):
        torch.testing.assert_close(masked, oracle[..., kept], rtol=0, atol=FP64_TOLERANCE)
        torch.testing.assert_close(compact, oracle[..., kept], rtol=0, atol=FP64_TOLERANCE)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize(("heads", "head_size"), [(1, 12), (4, 6), (6, 2)])
def test_other_shapes_and_activations_agree(activation: str, heads: int, head_size: int):
    shape = DenseShape(layers=2, hidden=heads * head_size, heads=heads, ffn=9, head_size=head_size)
    arch = dense_arch(shape, activation=activation, layer_norm_eps=1e-5)
    masks = as_double(masks_of(shape, hidden=7, heads=[1, heads], ffn=[9, 4], seed=heads))
    with float64_modules(), torch.no_grad():
        model = random_model("text-classification", arch)
        inputs = random_inputs()
        expected = masked_outputs(model, inputs, masks)
        assert max_difference(model.outputs(inputs, masks), expected) < FP64_TOLERANCE
        assert max_difference(cut(model, masks).outputs(inputs), expected) < FP64_TOLERANCE


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_masked_and_cut_fp32_models_stay_within_tolerance(kind: TaskKind, name: str):
    masks, inputs, model = structure(name), random_inputs(), random_model(kind)
    with torch.no_grad():
        expected = masked_outputs(model, inputs, masks)
        compact = cut(model, masks)
        assert max_difference(model.outputs(inputs, masks), expected) <= FP32_TOLERANCE
        assert max_difference(compact.outputs(inputs), expected) <= FP32_TOLERANCE
        assert max_difference(compact(**inputs), expected) <= FP32_TOLERANCE
    assert compact.arch == masks.arch(model.arch)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_reloaded_models_give_the_same_answers(kind: TaskKind, name: str, tmp_path: Path):
    masks, inputs, model = structure(name), random_inputs(), random_model(kind)
    save_compact(cut(model, masks), tiny_tokenizer(), tmp_path / "model")
    with torch.no_grad():
        expected = masked_outputs(model, inputs, masks)
        ours = load(tmp_path / "model")
        theirs = AUTO_CLASSES[kind].from_pretrained(tmp_path / "model")
        assert ours.kind == theirs.kind == kind
        assert ours.arch == theirs.arch == masks.arch(model.arch)
        assert not ours.training
        assert not theirs.training
        assert max_difference(ours.outputs(inputs), expected) <= FP32_TOLERANCE
        assert max_difference(theirs(**inputs), expected) <= FP32_TOLERANCE


def test_bare_encoder_loads_from_a_compact_classifier(tmp_path: Path):
    masks, inputs = structure("uneven and soft"), random_inputs()
    model = random_model("text-classification")
    save_compact(cut(model, masks), tiny_tokenizer(), tmp_path / "model")
    bare = AutoModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = masked_states(model, inputs, masks)[-1][..., masks.kept_hidden()]
        got = bare(**inputs)
        pooled = model.pooler.weight[:, masks.kept_hidden()].double() @ expected[:, 0].T
        pooled = (pooled.T + model.pooler.bias).tanh()
    torch.testing.assert_close(
        got.last_hidden_state.double(), expected, rtol=0, atol=FP32_TOLERANCE
    )
    torch.testing.assert_close(got.pooler_output.double(), pooled, rtol=0, atol=FP32_TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        name if name in EXPORTED_ALWAYS else pytest.param(name, marks=pytest.mark.slow)
        for name in STRUCTURES
    ],
)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_onnx_export_gives_the_same_answers(kind: TaskKind, name: str, tmp_path: Path):
    masks, inputs, model = structure(name), random_inputs(), random_model(kind)
    save_compact(cut(model, masks), tiny_tokenizer(), tmp_path / "model")
    directory = export_onnx(tmp_path / "model", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(
        directory / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = list(output_names(kind))
    with torch.no_grad():
        expected = masked_outputs(model, inputs, masks)
    values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    for output, value in zip(names, values, strict=True):
        assert np.abs(value - expected[output].numpy()).max() <= FP32_TOLERANCE


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_gates_and_weights_are_those_of_the_oracle(kind: TaskKind, seed: int):
    with float64_modules():
        model = random_model(kind, seed=seed)
        gates = random_gates(seed)
        inputs = random_inputs(seed=seed)
        masks = gates.sample(torch.Generator().manual_seed(seed))
        expected = gradients(masked_outputs(model, inputs, masks), model, gates)
        masks = gates.sample(torch.Generator().manual_seed(seed))
        got = gradients(model.outputs(inputs, masks), model, gates)
    # torch's Embedding never teaches the padding token, BERT's neither.
    expected["encoder.embeddings.word.weight"][model.arch.pad_token_id] = 0.0
    for family in FAMILIES:
        assert got[f"log_alpha.{family}"].abs().max() > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_weights_of_dead_units_get_no_gradient_and_nothing_is_nan(kind: TaskKind, name: str):
    masks, model = structure(name), random_model(kind)
    outputs = model.outputs(random_inputs(), masks)
    sum(value.square().sum() for value in outputs.values()).backward()
    dead = dead_entries(masks, model.state_dict())
    for parameter_name, parameter in model.named_parameters():
        gradient = parameter.grad
        gone = dead[parameter_name]
        if gradient is None:
            assert gone.all(), parameter_name
            continue
        assert gradient.isfinite().all(), parameter_name
        assert (gradient[gone] == 0).all(), parameter_name


def test_only_a_dense_model_can_be_cut():
    masks = structure("uneven and soft")
    compact = cut(random_model("text-classification"), masks)
    with pytest.raises(CheckpointError, match=f"this one has sparsity {compact.arch.sparsity:.3f}"):
        cut(compact, masks)


def test_masks_of_another_model_do_not_fit():
    other = DenseShape(layers=3, hidden=24, heads=3, ffn=21, head_size=8)
    with pytest.raises(CheckpointError, match=r"'ffn' has shape \(3, 21\).*needs \(3, 20\)"):
        cut(random_model("text-classification"), Masks.ones(other))


def test_the_dense_model_is_left_as_it_was_by_a_cut():
    model = random_model("question-answering")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compact = cut(model, structure("everything kept, hard"))
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.add_(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def random_gates(seed: int) -> HardConcreteGates:
    """Gates of which about a third is off in each draw, switches seldom."""
    gates = HardConcreteGates(SMALL, init=dict.fromkeys(FAMILIES, 0.0)).double()
    generator = torch.Generator().manual_seed(seed)
    means = {"hidden": 1.0, "heads": 0.0, "ffn": -1.0, "attn_block": 0.0, "ffn_block": 0.0}
    with torch.no_grad():
        for name, value in gates.log_alpha.items():
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(means[name] + 1.5 * noise)
    return gates


def gradients(outputs: dict[str, Tensor], model: torch.nn.Module, gates: HardConcreteGates):
    """Gradient of a loss that no symmetry makes blind; None counts as zero."""
    loss = torch.zeros(())
    for value in outputs.values():
        weights = torch.arange(1, value.numel() + 1).view_as(value).sin()
        loss = loss + (value * weights).sum() + value.square().sum()
    named = dict(model.named_parameters()) | dict(gates.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if value is None else value
        for (name, parameter), value in zip(named.items(), found, strict=True)
    }


def dead_entries(masks: Masks, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """For every weight, the entries that belong to something pruned."""
    assert {field.name for field in fields(masks)} == set(FAMILIES)
    hidden = masks.hidden == 0
    dead = {}
    for name, value in tensors.items():
        gone = torch.zeros(value.shape, dtype=torch.bool)
        if name.startswith("encoder.embeddings."):
            gone[..., hidden] = True
        elif name.startswith("encoder.layers."):
            _, _, layer, part, *leaf = name.split(".")
            gone = _dead_in_sublayer(gone, part, leaf, int(layer), masks)
        elif name == "pooler.weight" or (
            name == "classifier.weight" and "pooler.weight" not in tensors
        ):
            gone[:, hidden] = True
        dead[name] = gone
    return dead


def _dead_in_sublayer(gone: Tensor, part: str, leaf: list[str], layer: int, masks: Masks) -> Tensor:
    hidden = masks.hidden == 0
    if part == "attention":
        units = (masks.heads[layer] * masks.attn_block[layer] == 0).repeat_interleave(
            SMALL.head_size
        )
    else:
        units = masks.ffn[layer] * masks.ffn_block[layer] == 0
    if units.all():
        return torch.ones_like(gone)
    writes = leaf[0] in {"output", "down"}
    if leaf[0] == "norm" or (writes and leaf[1] == "bias"):
        gone[hidden] = True
    elif leaf[1] == "bias":
        gone[units] = True
    else:
        gone[hidden if writes else units] = True
        gone[:, units if writes else hidden] = True
    return gone
