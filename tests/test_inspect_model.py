"""What `inspect` says about compact and ordinary model directories."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import ArtifactError, CheckpointError, ConfigError
from cofi_deploy.inspect_model import PARTS, describe, render
from cofi_deploy.kinds import TASK_KINDS, TaskKind
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build

DENSE = DenseShape(layers=3, hidden=32, heads=4, ffn=64, head_size=8)


def pruned_arch(*layers: tuple[int, int], hidden: int = 30) -> Arch:
    return Arch(
        family="bert",
        vocab_size=99,
        max_positions=40,
        type_vocab_size=2,
        hidden=hidden,
        head_size=8,
        layers=tuple(LayerArch(heads=heads, ffn=ffn) for heads, ffn in layers),
        dense=DENSE,
        pooler=32,
    )


def save(model: CofiPreTrainedModel, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    save_file(dict(model.state_dict()), directory / "model.safetensors")
    write_json(directory / "config.json", json.loads(model.config.to_json_string(use_diff=True)))


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    arch = pruned_arch((2, 17), (0, 5), (3, 0))
    save(build(CofiConfig.from_arch(arch, "text-classification")), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=99,
        max_position_embeddings=40,
    )
    directory = tmp_path_factory.mktemp("ordinary")
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_compact_model_is_described_layer_by_layer(compact: Path) -> None:
    described = describe(compact)
    assert [(layer["heads"], layer["ffn"]) for layer in described["layers"]] == [
        (2, 17),
        (0, 5),
        (3, 0),
    ]
    assert described["layers"][1]["attention_parameters"] == 0
    assert described["layers"][0]["ffn_parameters"] == 2 * 17 * 30 + 17 + 30
    assert (described["hidden"], described["hidden_dense"]) == (30, 32)
    assert described["kind"] == "text-classification"
    assert Arch.from_json(json.loads(json.dumps(described))["arch"]).hidden == 30


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_parts_add_up_to_every_parameter_of_the_model(kind: TaskKind, tmp_path: Path) -> None:
    model = build(CofiConfig.from_arch(pruned_arch((2, 17), (0, 5), (3, 0)), kind))
    save(model, tmp_path)
    described = describe(tmp_path)
    assert described["parameters"] == sum(p.numel() for p in model.parameters())
    assert sum(described["parameters_by_part"].values()) == described["parameters"]
    assert tuple(described["parameters_by_part"]) == PARTS
    sublayers = (
        described["parameters_by_part"]["attention"] + described["parameters_by_part"]["ffn"]
    )
    assert sublayers == described["prunable_parameters"]


def test_operations_of_the_layers_add_up_to_those_of_the_model(compact: Path) -> None:
    described = describe(compact)
    assert sum(layer["flops"] for layer in described["layers"]) == described["flops"]
    assert described["flops"] < described["flops_dense"]
    assert (described["batch_size"], described["seq_len"]) == (1, 128)


def test_ordinary_checkpoint_is_described_as_dense(ordinary: Path) -> None:
    described = describe(ordinary)
    model = BertForSequenceClassification.from_pretrained(ordinary)
    assert described["parameters"] == model.num_parameters()
    assert described["realized_sparsity"] == 0
    assert described["flops"] == described["flops_dense"]
    assert described["parameters_by_part"]["head"] == 2 * 32 + 2
    assert described["parameters_by_part"]["pooler"] == 32 * 32 + 32
    assert described["parameters_by_part"]["layernorm"] == (2 * 2 + 1) * 2 * 32
    assert described["kind"] == "text-classification"


def test_size_is_that_of_the_weight_files(compact: Path) -> None:
    described = describe(compact)
    assert described["size_bytes"] == (compact / "model.safetensors").stat().st_size
    assert described["dtypes"] == ["F32"]


def test_sharded_weights_count_once_each(compact: Path) -> None:
    whole = describe(compact)
    tensors = load_file(compact / "model.safetensors")
    names = sorted(tensors)
    (compact / "model.safetensors").unlink()
    for shard, chosen in enumerate((names[:10], names[10:])):
        part = {name: tensors[name] for name in chosen}
        save_file(part, compact / f"model-{shard}.safetensors")
    assert describe(compact)["parameters_by_part"] == whole["parameters_by_part"]


def test_truncated_weights_name_the_file(compact: Path) -> None:
    weights = compact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=re.escape(f"{str(weights)!r} is no whole safetensors")):
        describe(compact)


def test_weights_of_another_model_name_the_layer_and_both_counts(compact: Path) -> None:
    arch = pruned_arch((2, 17), (0, 6), (3, 0))
    edit_config(compact, arch=arch.to_json())
    got, wanted = 2 * 5 * 30 + 5 + 30, 2 * 6 * 30 + 6 + 30
    with pytest.raises(CheckpointError) as caught:
        describe(compact)
    assert f"layer 1 of {str(compact)!r} stores {got} parameters" in str(caught.value)
    assert f"config.json describes {wanted}" in str(caught.value)


def test_a_surplus_layer_in_the_weights_is_noticed(ordinary: Path, tmp_path: Path) -> None:
    for path in ordinary.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"layer 1 of .* but config\.json describes 0"):
        describe(tmp_path)


def test_compact_config_without_an_arch_is_refused_by_name(compact: Path) -> None:
    edit_config(compact, arch=None)
    with pytest.raises(CheckpointError, match=r"config\.json' has no entry 'arch'"):
        describe(compact)


def test_unknown_family_is_refused_with_the_known_ones(compact: Path) -> None:
    edit_config(compact, model_type="gpt2")
    with pytest.raises(ConfigError, match="'gpt2' is not supported; allowed: bert"):
        describe(compact)


def test_missing_directory_names_the_file_that_was_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(ArtifactError, match=re.escape(f"{str(path / 'config.json')!r} does not")):
        describe(path)


def test_tables_show_vanished_sublayers_and_the_totals(compact: Path) -> None:
    described = describe(compact)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(described))
    text = console.export_text()
    assert "2 of 4" in text
    assert text.count("gone") == 2
    assert f"{described['parameters']:,}" in text
    assert f"sparsity {described['realized_sparsity']:.4f}" in text


@settings(max_examples=15, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 64)), min_size=3, max_size=3),
    hidden=st.integers(1, 32),
)
def test_stored_and_described_parameters_agree_for_every_structure(
    layers: list[tuple[int, int]], hidden: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("any")
    model = build(CofiConfig.from_arch(pruned_arch(*layers, hidden=hidden), "text-regression"))
    save(model, directory)
    assert describe(directory)["parameters"] == sum(p.numel() for p in model.parameters())
