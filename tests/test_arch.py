"""`Arch`: sizes, counts and FLOPs of what a cut leaves, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.arch import Arch, DenseShape, LayerArch, layer_parameters
from cofi_deploy.encoder import Attention, FeedForward
from cofi_deploy.errors import CheckpointError
from cofi_deploy.model import CofiConfig, build
from tests.builders import BERT_BASE, SMALL, dense_arch


@st.composite
def arches(draw: st.DrawFn) -> Arch:
    """Any structure over any small dense shape."""
    size = st.integers(1, 6)
    shape = DenseShape(
        layers=draw(size),
        hidden=draw(st.integers(1, 24)),
        heads=draw(size),
        ffn=draw(st.integers(1, 30)),
        head_size=draw(size),
    )
    layer = st.builds(LayerArch, heads=st.integers(0, shape.heads), ffn=st.integers(0, shape.ffn))
    layers = draw(st.lists(layer, min_size=shape.layers, max_size=shape.layers))
    padding = draw(st.integers(0, 3))
    return dense_arch(
        shape,
        layers=tuple(layers),
        hidden=draw(st.integers(1, shape.hidden)),
        pooler=draw(st.none() | st.just(shape.hidden)),
        activation=draw(st.sampled_from(["gelu", "relu"])),
        layer_norm_eps=draw(st.floats(1e-13, 1e-3)),
        pad_token_id=padding,
        type_vocab_size=draw(st.integers(0, 3)),
        embedding=draw(st.none() | st.integers(1, 24)),
        position_offset=draw(st.sampled_from([0, padding + 1])),
        pooler_activation=draw(st.sampled_from(["tanh", "gelu", "relu"])),
    )


def stored_parameters(arch: Arch) -> int:
    """Elements of the attention and FFN tensors, LayerNorms left out, of a model that is built."""
    with torch.device("meta"):
        model = build(CofiConfig.from_arch(arch, "text-classification"))
    return sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, Attention | FeedForward)
        for name, parameter in module.named_parameters()
        if not name.startswith("norm.")
    )


@given(arch=arches())
def test_json_round_trip_is_exact(arch: Arch):
    text = json.dumps(arch.to_json())
    assert Arch.from_json(json.loads(text)) == arch
    assert json.dumps(Arch.from_json(json.loads(text)).to_json()) == text


@given(arch=arches().filter(lambda arch: arch.pooler is not None))
@settings(max_examples=30, deadline=None)
def test_counted_parameters_are_those_stored_in_a_built_model(arch: Arch):
    assert arch.prunable_parameters == stored_parameters(arch)
    dense = dense_arch(arch.dense)
    assert arch.dense.prunable_parameters == dense.prunable_parameters == stored_parameters(dense)
    assert arch.sparsity == 1 - stored_parameters(arch) / stored_parameters(dense)


def test_bert_base_has_85017600_prunable_parameters():
    # cofi-spec 2.1: 12 * (4 * 768^2 + 4 * 768  +  2 * 768 * 3072 + 3072 + 768)
    assert BERT_BASE.prunable_parameters == 85_017_600
    assert dense_arch(BERT_BASE).prunable_parameters == 85_017_600
    assert stored_parameters(dense_arch(BERT_BASE)) == 85_017_600
    assert layer_parameters(LayerArch(heads=12, ffn=0), 768, 64) == 2_362_368
    assert layer_parameters(LayerArch(heads=0, ffn=3072), 768, 64) == 4_722_432
    assert layer_parameters(LayerArch(heads=0, ffn=0), 768, 64) == 0


def test_dense_arch_has_no_sparsity_and_any_cut_ends_being_dense():
    dense = dense_arch(SMALL)
    assert dense.sparsity == 0
    assert dense.is_dense
    one_unit_less = (*dense.layers[:-1], LayerArch(heads=3, ffn=19))
    for change in ({"hidden": 23}, {"layers": one_unit_less}):
        smaller = dataclasses.replace(dense, **change)
        assert not smaller.is_dense
        assert smaller.sparsity > 0


def test_flops_are_two_for_each_multiply_add_of_every_matrix_product():
    arch = dense_arch(
        SMALL,
        layers=tuple(LayerArch(heads=heads, ffn=ffn) for heads, ffn in ((2, 5), (0, 7), (1, 0))),
        hidden=11,
    )
    batch, length, hidden, head = 3, 10, 11, 8

    def product(rows: int, inner: int, columns: int) -> int:
        return 2 * rows * inner * columns

    tokens = batch * length
    expected = 0
    for heads, ffn in ((2, 5), (0, 7), (1, 0)):
        expected += 3 * product(tokens, hidden, heads * head)  # query, key, value
        expected += batch * heads * product(length, head, length)  # scores
        expected += batch * heads * product(length, length, head)  # context
        expected += product(tokens, heads * head, hidden)
        expected += product(tokens, hidden, ffn) + product(tokens, ffn, hidden)
    assert arch.flops(batch, length) == expected


def test_flops_of_bert_base_are_the_published_22_gflops_at_128_tokens():
    # TinyBERT (arXiv:1909.10351, table 1) gives 22.5 billion with embeddings and head.
    assert dense_arch(BERT_BASE).flops(1, 128) == pytest.approx(22.4e9, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 0}, "hidden is 0, allowed: 1 to 24"),
        ({"hidden": 25}, "hidden is 25, allowed: 1 to 24"),
        ({"head_size": 4}, "head_size is 4, but heads of the dense one have 8"),
        ({"layers": (LayerArch(heads=1, ffn=1),)}, "1 layers, but the dense model has 3"),
        (
            {"layers": (LayerArch(heads=1, ffn=1),) * 2 + (LayerArch(heads=4, ffn=1),)},
            "layer 2 has 4 heads, allowed: 0 to 3",
        ),
        (
            {"layers": (LayerArch(heads=1, ffn=-1),) + (LayerArch(heads=1, ffn=1),) * 2},
            "layer 0 has FFN width -1, allowed: 0 to 20",
        ),
        ({"pad_token_id": 60}, "pad_token_id is 60, allowed: 0 to 59"),
        ({"pad_token_id": 1, "position_offset": 1}, "position_offset is 1, allowed: 0 or pad_"),
    ],
)
def test_sizes_that_no_cut_can_produce_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        dense_arch(SMALL, **changes)


def test_all_impossible_sizes_are_named_at_once():
    with pytest.raises(CheckpointError, match=r"hidden is 99.*head_size is 5"):
        dense_arch(SMALL, hidden=99, head_size=5)


def test_tables_have_the_rows_and_the_width_that_the_family_needs():
    roberta = dense_arch(pad_token_id=1, position_offset=2, type_vocab_size=1, max_positions=512)
    assert (roberta.position_rows, roberta.token_types, roberta.embedding_width) == (514, 2, 24)
    electra = dense_arch(embedding=10, type_vocab_size=3)
    assert (electra.position_rows, electra.token_types, electra.embedding_width) == (40, 3, 10)


def test_newer_schema_is_refused_with_both_versions():
    data = {**dense_arch().to_json(), "schema_version": 7}
    with pytest.raises(CheckpointError, match="schema_version 7, but this cofi-deploy reads 1"):
        Arch.from_json(data)
    del data["schema_version"]
    with pytest.raises(CheckpointError, match="schema_version None"):
        Arch.from_json(data)


@pytest.mark.parametrize("name", sorted(set(dense_arch().to_json()) - {"schema_version"}))
def test_missing_entries_are_named_unless_they_have_a_default(name: str):
    data = dense_arch().to_json()
    del data[name]
    field = next(field for field in dataclasses.fields(Arch) if field.name == name)
    if field.default is not dataclasses.MISSING:
        assert getattr(Arch.from_json(data), name) == field.default
        return
    with pytest.raises(CheckpointError, match=f"missing or unknown entry: .*{name}"):
        Arch.from_json(data)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("colour", "red", "colour"),
        ("layers", None, "NoneType"),
        ("layers", [{"heads": 1, "ffn": 1, "width": 3}] * 3, "width"),
        ("layers", [{"heads": 1}] * 3, "ffn"),
        ("layers", [{"heads": "1", "ffn": 1}] * 3, "str"),
        ("dense", {"layers": 3}, "hidden"),
        ("hidden", "24", "str"),
    ],
)
def test_unknown_or_mistyped_entries_are_refused(entry: str, value: Any, words: str):
    data = {**dense_arch().to_json(), entry: value}
    with pytest.raises(CheckpointError, match=f"missing or unknown entry: .*{words}"):
        Arch.from_json(data)


def test_flops_behind_the_last_attention_are_those_of_one_token_for_each_text():
    layers = (LayerArch(heads=2, ffn=5), LayerArch(heads=1, ffn=0), LayerArch(heads=0, ffn=7))
    arch = dense_arch(SMALL, layers=layers)
    batch, length, width = 3, 10, arch.head_size  # of the one head that layer 1 has
    whole = arch.flops_by_sublayer(batch, length)
    few = arch.flops_by_sublayer(batch, length, first_token_only=True)
    assert few[0] == whole[0]
    maps = 2 * batch * arch.hidden * 4 * width
    assert few[1].attention == maps + 2 * batch * length * 2 * arch.hidden
    assert few[2].ffn * length == whole[2].ffn
