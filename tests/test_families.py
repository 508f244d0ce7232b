"""Every family against transformers' own model of it, and through the files of a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from cofi_deploy.errors import CheckpointError, ConfigError
from cofi_deploy.families import arch_from_config, config_from_arch, kind_from_config
from cofi_deploy.family_tables import FAMILIES
from cofi_deploy.inspect_model import describe
from cofi_deploy.kinds import TASK_KINDS, TaskKind, output_names
from cofi_deploy.loading import load, load_dense, read_dense_arch, save_dense
from cofi_deploy.model import CofiPreTrainedModel
from tests.builders import LABELS, VOCABULARY, max_difference, random_model, tiny_tokenizer
from tests.families import (
    MODELS,
    SUFFIXES,
    dense_arch_of,
    hf_config,
    hf_inputs,
    hf_model,
    padded_inputs,
)

TOLERANCE = 1e-5
RELATIVES = sorted(set(MODELS) - {"bert"})
PRETRAINED = {
    "distilbert": ("Model", "ForMaskedLM"),
    "electra": ("Model", "ForPreTraining", "ForMaskedLM"),
    "roberta": ("Model", "ForMaskedLM"),
    "xlm-roberta": ("Model", "ForMaskedLM"),
}


def check_same_answers(model: CofiPreTrainedModel, theirs: PreTrainedModel) -> None:
    """Logits of a padded batch, padding included, and all hidden states of tokens."""
    inputs = padded_inputs(model.arch, lengths=(12, 1, 5, 3), width=14)
    with torch.no_grad():
        got = model.outputs(inputs)
        states = model.encode(**inputs).states
        expected = theirs(**hf_inputs(model.arch, inputs), output_hidden_states=True)
    for name in output_names(model.kind):
        assert got[name].shape == expected[name].shape
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=TOLERANCE)
    tokens = inputs["attention_mask"].bool()
    for mine, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[tokens], other[tokens], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_transformers_answers_the_same(name: str, kind: TaskKind, tmp_path: Path):
    theirs = hf_model(name, kind)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (model.kind, model.training) == (kind, False)
    assert tuple(model.config.id2label.values()) == tuple(theirs.config.id2label.values())
    check_same_answers(model, theirs)


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("name", RELATIVES)
def test_a_dense_model_is_saved_as_a_checkpoint_of_its_family(
    name: str, kind: TaskKind, tmp_path: Path
):
    model = random_model(kind, dense_arch_of(name))
    save_dense(model, tiny_tokenizer(), tmp_path / "dense")
    cls = type(hf_model(name, kind))
    theirs, info = cls.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not list(info["missing_keys"])
    assert not list(info["unexpected_keys"])
    check_same_answers(model, theirs.eval())
    again = load(tmp_path / "dense")
    assert again.arch == model.arch
    assert max_difference(dict(again.state_dict()), dict(model.state_dict())) == 0.0


@pytest.mark.parametrize(
    ("name", "suffix"), [(name, suffix) for name in PRETRAINED for suffix in PRETRAINED[name]]
)
def test_pretrained_encoders_open_for_training(name: str, suffix: str, tmp_path: Path):
    theirs = hf_model(name, suffix=suffix)
    theirs.save_pretrained(tmp_path)
    prefix = FAMILIES[name].prefix
    stored = load_file(tmp_path / "model.safetensors")
    assert any(key.startswith(prefix) for key in stored) == (suffix != "Model")
    model = load_dense(tmp_path, "text-classification").eval()
    encoder = theirs if suffix == "Model" else getattr(theirs, prefix[:-1])
    inputs = padded_inputs(model.arch)
    with torch.no_grad():
        got = model.encode(**inputs).last
        expected = encoder(**hf_inputs(model.arch, inputs)).last_hidden_state
    tokens = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[tokens], expected[tokens], rtol=0, atol=TOLERANCE)
    with pytest.raises(CheckpointError, match=r"has no head for a task.*fine-tune it first"):
        load(tmp_path)


@pytest.mark.parametrize("name", RELATIVES)
def test_a_classifier_opens_for_another_task_with_a_fresh_head(name: str, tmp_path: Path):
    hf_model(name, "text-classification").save_pretrained(tmp_path)
    model = load_dense(tmp_path, "token-classification", labels=LABELS["token-classification"])
    assert not model.classifier.bias.detach().any()


@pytest.mark.parametrize("name", RELATIVES)
def test_a_classifier_without_its_dense_layer_is_refused(name: str, tmp_path: Path):
    theirs = hf_model(name)
    tensors = {
        key: value
        for key, value in theirs.state_dict().items()
        if not key.startswith(("classifier.dense", "pre_classifier"))
    }
    theirs.save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(CheckpointError, match=r"lacks fitting pooler.weight, pooler.bias"):
        load(tmp_path)


@pytest.mark.parametrize("name", RELATIVES)
def test_a_tensor_that_no_one_knows_is_named_with_the_family(name: str, tmp_path: Path):
    theirs = hf_model(name)
    title = FAMILIES[theirs.config.model_type].title
    theirs.save_pretrained(
        tmp_path, state_dict={**theirs.state_dict(), "adapter.weight": torch.zeros(3)}
    )
    words = f"1 tensors do not fit the {title} architecture: adapter.weight is unknown"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(tmp_path)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_positions_count_tokens_and_not_padding_wherever_it_stands(name: str, tmp_path: Path):
    theirs = hf_model(name, "token-classification")
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    # On the left, and one in the middle as a text gives that spells the padding token out.
    ids = torch.tensor([[1, 1, 0, 7, 9, 2], [0, 5, 1, 6, 8, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        got = model(input_ids=ids, attention_mask=mask).logits
        expected = theirs(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "longest"), [("roberta", 38), ("xlm-roberta", 38), ("electra", 40), ("distilbert", 40)]
)
def test_the_longest_sequence_is_what_transformers_can_read(
    name: str, longest: int, tmp_path: Path
):
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.arch.max_positions == longest
    fits = {"input_ids": torch.full((1, longest), 5)}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**fits).logits, theirs(**fits).logits, rtol=0, atol=TOLERANCE
        )
        for one in (model, theirs):
            with pytest.raises((IndexError, RuntimeError)):
                one(input_ids=torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("name", ["distilbert", "roberta", "xlm-roberta"])
def test_token_types_are_ignored_where_there_are_none_to_choose_from(name: str):
    arch = dense_arch_of(name)
    model, inputs = random_model("text-classification", arch), padded_inputs(arch)
    with torch.no_grad():
        got = model.outputs(inputs)
        other = model.outputs({**inputs, "token_type_ids": 1 - inputs["token_type_ids"]})
    assert max_difference(got, other) == 0.0
    assert arch.token_types == 2


def test_a_roberta_with_two_token_types_uses_them(tmp_path: Path):
    theirs = hf_model("roberta", type_vocab_size=2)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (model.arch.type_vocab_size, model.arch.token_types) == (2, 2)
    check_same_answers(model, theirs)


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_config_written_by_us_equals_that_of_transformers_in_all_that_is_computed(
    name: str, kind: TaskKind, tmp_path: Path
):
    theirs = hf_config(name, kind, architectures=[MODELS[name][0] + SUFFIXES[kind]])
    arch = arch_from_config(theirs.to_dict())
    labels = tuple(theirs.id2label.values())
    config = config_from_arch(arch, kind, labels=labels, dropout=0.1)
    assert arch_from_config(config) == arch
    assert kind_from_config(config) == kind
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is type(theirs)
    # The dropouts of DistilBERT's heads have other defaults; special tokens are the tokenizer's.
    given = {"problem_type", "seq_classif_dropout", "transformers_version", "_name_or_path"}
    differing = {
        key
        for key, value in read.to_dict().items()
        if value != theirs.to_dict().get(key) and key not in given
    }
    assert not differing


@pytest.mark.parametrize("name", MODELS)
def test_inspect_sorts_every_parameter_into_its_part(name: str, tmp_path: Path):
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path)
    found = describe(tmp_path)
    arch = read_dense_arch(tmp_path)
    width, labels = arch.embedding_width, 3
    parts = found["parameters_by_part"]
    assert found["family"] == theirs.config.model_type
    assert found["kind"] == "text-classification"
    assert found["parameters"] == sum(parameter.numel() for parameter in theirs.parameters())
    assert parts["attention"] + parts["ffn"] == arch.dense.prunable_parameters
    assert parts["layernorm"] == 2 * (2 * 3 * 24 + width)
    assert parts["pooler"] == 24 * 24 + 24
    assert parts["head"] == labels * 24 + labels
    project = 0 if arch.embedding is None else width * 24 + 24
    rows = VOCABULARY + 40 + arch.type_vocab_size
    assert parts["embeddings"] == rows * width + project


@pytest.mark.parametrize(
    "model_type",
    ["albert", "camembert", "deberta", "deberta-v2", "mpnet", "roberta-prelayernorm", "t5"],
)
def test_another_family_is_refused_by_name_with_those_allowed(model_type: str, tmp_path: Path):
    hf_model("bert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
    words = (
        f"model family {model_type!r} is not supported; "
        "allowed: bert, distilbert, electra, roberta, xlm-roberta"
    )
    for opener in (load, read_dense_arch, describe):
        with pytest.raises(ConfigError, match=re.escape(words)):
            opener(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("roberta", {"max_position_embeddings": 2}, "embeddings 2, allowed: more than 2"),
        ("roberta", {"pad_token_id": 60}, "pad_token_id 60, allowed: 0 to 59"),
        ("roberta", {"type_vocab_size": None}, "config.json has type_vocab_size None"),
        ("distilbert", {"dim": None}, "config.json has dim None, allowed: a whole number above 0"),
        ("distilbert", {"dim": 25}, "dim 25 is not a multiple of 3 attention heads"),
        ("electra", {"embedding_size": 0}, "config.json has embedding_size 0"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_named_as_the_family_names_them(
    name: str, change: dict[str, Any], words: str
):
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(words)):
        arch_from_config({**hf_config(name).to_dict(), **change})


def test_padding_is_1_where_a_roberta_configuration_does_not_say():
    config = {**hf_config("roberta").to_dict(), "pad_token_id": None}
    assert arch_from_config(config) == dense_arch_of("roberta")
