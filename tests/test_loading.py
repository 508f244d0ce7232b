"""Models come back as they were saved, and what is not as it was saved is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from cofi_deploy import load
from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import (
    ArtifactError,
    CheckpointError,
    CofiDeployError,
    HubUnreachableError,
)
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.loading import (
    label_names,
    load_dense,
    load_tokenizer,
    read_dense_arch,
    resolve,
    save_compact,
    save_dense,
)
from tests.builders import LABELS, dense_arch, random_inputs, random_model, tiny_tokenizer

UNEVEN = (LayerArch(heads=0, ffn=3), LayerArch(heads=1, ffn=0), LayerArch(heads=2, ffn=17))


def compact(kind="text-classification"):
    return random_model(kind, dense_arch(layers=UNEVEN, hidden=21))


def assert_same(one, other):
    assert one.arch == other.arch
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def saved(tmp_path):
    save_compact(compact(), tiny_tokenizer(), tmp_path / "model", readme="# Card\n")
    return tmp_path / "model"


@pytest.fixture
def dense(tmp_path):
    save_dense(random_model("text-classification"), tiny_tokenizer(), tmp_path / "dense")
    return tmp_path / "dense"


def edit(path, **changes):
    data = json.loads(path.read_text())
    kept = {key: value for key, value in {**data, **changes}.items() if value is not None}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_compact_model_comes_back_bit_for_bit(tmp_path, kind):
    model = compact(kind)
    save_compact(model, tiny_tokenizer(), tmp_path / "model")
    again = load(tmp_path / "model")
    assert_same(again, model)
    assert (again.kind, again.training) == (kind, False)
    assert LABELS[kind] in {(), label_names(again)}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_dense_model_comes_back_bit_for_bit(tmp_path, kind):
    model = random_model(kind)
    save_dense(model, tiny_tokenizer(), tmp_path / "dense")
    again = load(tmp_path / "dense")
    assert_same(again, model)
    assert (again.kind, again.training) == (kind, False)
    assert LABELS[kind] in {(), label_names(again)}


def test_a_saved_dense_model_is_an_ordinary_checkpoint(dense):
    theirs = BertForSequenceClassification.from_pretrained(dense).eval()
    inputs = random_inputs()
    with torch.inference_mode():
        ours = load(dense).outputs(inputs)["logits"]
        torch.testing.assert_close(theirs(**inputs).logits, ours, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("labels", [2, 1, 3], ids=["default labels", "regression", "three"])
def test_what_transformers_saved_can_be_loaded(tmp_path, labels):
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        num_labels=labels,
    )
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    inputs = random_inputs()
    with torch.inference_mode():
        ours = load(tmp_path).outputs(inputs)["logits"]
        torch.testing.assert_close(theirs(**inputs).logits, ours, atol=1e-5, rtol=0.0)


def test_a_compact_model_that_is_saved_again_has_checksums_of_its_own(saved, tmp_path):
    model = load(saved)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save_compact(model, load_tokenizer(saved), tmp_path / "again")
    assert_same(load(tmp_path / "again"), model)


def test_a_pruned_model_cannot_be_saved_as_dense(tmp_path):
    with pytest.raises(CheckpointError, match="only a dense model can be saved"):
        save_dense(compact(), tiny_tokenizer(), tmp_path / "dense")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(path):
    tensors = load_file(path)
    save_file({name: tensor + 1.0 for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("damage", [truncate, flip, swap])
def test_weights_that_are_not_as_written_are_refused_by_name(saved, damage):
    damage(saved / "model.safetensors")
    words = r"model/model.safetensors' has sha256 .* corrupt, truncated or was replaced"
    with pytest.raises(ArtifactError, match=words):
        load(saved)


@pytest.mark.parametrize("opener", [load, load_tokenizer])
def test_a_tokenizer_that_is_not_as_written_is_refused_by_name(saved, opener):
    edit(saved / "tokenizer.json", truncation={"max_length": 4})
    with pytest.raises(ArtifactError, match=r"tokenizer.json' has sha256"):
        opener(saved)


def test_the_model_card_may_be_edited(saved):
    (saved / "README.md").write_text("# Another card\n")
    load(saved)


def test_weights_beside_the_checked_ones_have_no_say(saved):
    before = load(saved)
    tensors = load_file(saved / "model.safetensors")
    save_file({name: torch.zeros_like(t) for name, t in tensors.items()}, saved / "z.safetensors")
    assert_same(load(saved), before)


def test_truncated_weights_of_a_dense_model_are_refused_by_name(dense):
    truncate(dense / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"dense/model.safetensors' is no whole safetensors"):
        load(dense)


def test_a_dense_model_without_its_head_is_not_answered_with_random_weights(dense):
    tensors = load_file(dense / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, dense / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks fitting classifier.weight; fetch it again"):
        load(dense)
    load_dense(dense, "text-classification", labels=LABELS["text-classification"])


def test_a_bare_encoder_is_refused_with_the_way_to_fine_tune_it(tmp_path):
    BertModel(
        BertConfig(hidden_size=24, num_attention_heads=3, num_hidden_layers=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no head for a task.*cofi-deploy train --task"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model family 'gpt2' is not supported; allowed: bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_size": 25}, "hidden_size 25 is not a multiple of 3 attention heads"),
        ({"hidden_size": None}, "config.json has hidden_size None, allowed: a whole number"),
        ({"vocab_size": "many"}, "config.json has vocab_size 'many'"),
        ({"intermediate_size": 21}, "config.json says (21, 24)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(dense, change, words):
    edit(dense / "config.json", **change)
    with pytest.raises(CofiDeployError, match=re.escape(words)):
        load(dense)


def test_a_model_of_a_newer_schema_is_refused(saved):
    edit(saved / "config.json", schema_version=99)
    with pytest.raises(ArtifactError, match="schema_version 99, but this cofi-deploy reads up to"):
        load(saved)


def test_an_unknown_kind_is_refused(saved):
    edit(saved / "config.json", task_kind="poetry")
    with pytest.raises(CheckpointError, match="has task_kind 'poetry', allowed: text-class"):
        load(saved)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_mangled_config_gives_anything_but_an_error_of_ours(saved, data):
    original = (saved / "config.json").read_text()
    config = json.loads(original)
    place = data.draw(st.sampled_from(["config", "arch"]))
    table = config if place == "config" else config["arch"]
    key = data.draw(st.sampled_from(["arch", "task_kind"] if place == "config" else sorted(table)))
    table[key] = data.draw(
        st.none() | st.integers(-2, 99) | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
    )
    (saved / "config.json").write_text(json.dumps(config))
    try:
        with contextlib.suppress(CofiDeployError):
            load(saved)
    finally:
        (saved / "config.json").write_text(original)


def test_a_place_that_is_no_directory_is_said(tmp_path):
    (tmp_path / "model.onnx").write_text("x")
    with pytest.raises(ArtifactError, match=r"model.onnx' is a file; expected a model directory"):
        load(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="absent' does not exist; expected a model directory"):
        load(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="'a b' is neither a model directory nor a hub id"):
        resolve("a b")
    with pytest.raises(ArtifactError, match="'' is neither a model directory nor a hub id"):
        resolve("")


@pytest.mark.parametrize("offline", ["1", "0"], ids=["switched off", "no route"])
def test_a_hub_id_without_a_network_is_refused_at_once(tmp_path, offline):
    program = (
        "from cofi_deploy.loading import resolve\n"
        "from cofi_deploy.errors import HubUnreachableError\n"
        "try:\n    resolve('some-org/no-model')\nexcept HubUnreachableError as e: print(e)"
    )
    # Nothing listens on port 9: the real way of failing, wherever the test runs.
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **nowhere, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path)},
    )
    assert "'some-org/no-model' is no local directory, not in the hub cache" in done.stdout
    assert "give --model a local model directory, or fill the cache" in done.stdout
    assert time.monotonic() - began < 60.0  # most of it is the import on a busy machine


def test_a_cache_that_holds_the_tokenizer_alone_is_not_taken_for_the_model(tmp_path, monkeypatch):
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubUnreachableError, match="'org/name' is no local directory"):
        resolve("org/name")


def test_a_tokenizer_neither_pads_nor_truncates_by_itself(saved):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=30)
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.save(str(saved / "tokenizer.json"))
    edit(saved / "config.json", tokenizer_sha256={})
    loaded = load_tokenizer(saved)
    assert len(loaded("w1 w2 w3 w4")["input_ids"]) == 4
    assert loaded.backend_tokenizer.padding is None
    assert loaded.backend_tokenizer.truncation is None


@pytest.mark.parametrize("content", ["{", "[]"], ids=["truncated", "list"])
def test_a_broken_tokenizer_is_named(dense, content):
    (dense / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"dense/tokenizer.json'"):
        load_tokenizer(dense)


def test_a_directory_without_a_tokenizer_is_named(dense):
    for path in dense.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"dense' holds no tokenizer \(none of tokenizer.json"):
        load_tokenizer(dense)


def test_a_tokenizer_that_wants_to_run_code_is_refused(dense):
    (dense / "tokenizer.json").rename(dense / "vocab.txt")
    edit(
        dense / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    )
    with pytest.raises(ArtifactError, match="holds no usable tokenizer"):
        load_tokenizer(dense)


def test_the_sizes_of_an_ordinary_checkpoint_are_read_from_its_config_alone(dense):
    (dense / "model.safetensors").unlink()
    assert read_dense_arch(dense).dense == dense_arch().dense
