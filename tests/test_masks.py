"""`Masks`: what they keep, and the `Arch` that they lead to."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings

from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import CheckpointError
from cofi_deploy.folding import Kept
from cofi_deploy.masks import FAMILIES, Masks, mask_shapes
from tests.builders import BERT_BASE, SMALL, any_masks, dense_arch, masks_of


def test_families_shapes_and_fields_are_the_same_five():
    assert tuple(mask_shapes(SMALL)) == FAMILIES
    assert {field.name for field in dataclasses.fields(Masks)} == set(FAMILIES)
    assert mask_shapes(BERT_BASE) == {
        "hidden": (768,),
        "heads": (12, 12),
        "ffn": (12, 3072),
        "attn_block": (12,),
        "ffn_block": (12,),
    }


def test_ones_prune_nothing():
    assert Masks.ones(SMALL).arch(dense_arch()) == dense_arch()


def test_a_switch_takes_all_units_of_its_layer_with_it():
    masks = masks_of(SMALL, heads=[3, 2, 1], ffn=[20, 5, 0], attn_off=[1], ffn_off=[0])
    assert masks.arch(dense_arch()).layers == (
        LayerArch(heads=3, ffn=0),
        LayerArch(heads=0, ffn=5),
        LayerArch(heads=1, ffn=0),
    )
    assert masks.kept_heads(1) == []
    assert masks.kept_ffn(0) == []


def test_kept_indices_are_ascending_places_of_nonzero_values():
    masks = Masks.ones(SMALL)
    masks.hidden[[0, 5, 23]] = 0.0
    masks.heads[2] = torch.tensor([0.0, 1e-6, 0.4])
    assert masks.kept_hidden() == [index for index in range(24) if index not in {0, 5, 23}]
    assert masks.kept_heads(2) == [1, 2]


@given(masks=any_masks(SMALL))
@settings(deadline=None)
def test_arch_counts_what_kept_holds(masks: Masks):
    arch, kept = masks.arch(dense_arch()), Kept.of(masks)
    assert arch.hidden == len(kept.hidden)
    assert kept.hidden.tolist() == masks.kept_hidden()
    for index, layer in enumerate(arch.layers):
        assert kept.heads[index].tolist() == masks.kept_heads(index)
        assert kept.ffn[index].tolist() == masks.kept_ffn(index)
        assert (layer.heads, layer.ffn) == (len(kept.heads[index]), len(kept.ffn[index]))
    unchanged = {"hidden": 24, "layers": dense_arch().layers}
    assert dataclasses.replace(arch, **unchanged) == dense_arch()


def test_detached_masks_have_the_same_values_and_no_gradient():
    values = {
        name: torch.rand(size, requires_grad=True) for name, size in mask_shapes(SMALL).items()
    }
    masks = Masks(**values)
    for copy in (masks.detach(), masks.detach().to("cpu")):
        for name in FAMILIES:
            assert torch.equal(getattr(copy, name), values[name])
            assert not getattr(copy, name).requires_grad


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_of_another_shape_are_refused_with_both_shapes(name: str):
    size = mask_shapes(SMALL)[name]
    wrong = (*size[:-1], size[-1] + 1)
    masks = dataclasses.replace(Masks.ones(SMALL), **{name: torch.ones(wrong)})
    words = f"mask {name!r} has shape {wrong}, but the model needs {size}"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        masks.arch(dense_arch())


def test_masks_without_any_hidden_dimension_are_refused():
    with pytest.raises(CheckpointError, match="hidden is 0, allowed: 1 to 24"):
        masks_of(SMALL, hidden=0).arch(dense_arch())
