"""Measuring a latency table: sublayers as differences, and the sum held against whole models."""

from __future__ import annotations

import pytest

from cofi_deploy.api.latency_tables import held_against_models, measure_table
from cofi_deploy.arch import DenseShape
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import Masks
from cofi_deploy.targets import Target
from cofi_deploy.train.latency_table import LatencyCost, LatencyTable
from tests.builders import dense_arch
from tests.made_up_clock import (
    ATTENTION_MS,
    BASE_MS,
    FFN_MS,
    HEAD_MS,
    HIDDEN_MS,
    UNIT_MS,
    MadeUpClock,
    made_up_ms,
)

SHAPE = DenseShape(layers=4, hidden=32, heads=4, ffn=256, head_size=8)
DENSE = dense_arch(SHAPE)
TARGETS = (Target("speedup", 3.0), Target("speedup", 6.0))


def table_of(clock: MadeUpClock, kind: TaskKind = "text-classification") -> LatencyTable:
    return measure_table(DENSE, kind, clock, point="openvino@1x16", threads=1, key={"a": 1})


def test_sizes_reach_from_a_single_unit_to_the_dense_model():
    table = table_of(MadeUpClock())
    assert table.hidden == (2, 8, 16, 32)
    assert table.attention.sizes == (1, 4)
    assert table.ffn.sizes == (1, 16, 64, 256)
    assert (table.point, table.threads, table.key) == ("openvino@1x16", 1, {"a": 1})


def test_every_entry_is_what_the_sublayer_adds():
    table = table_of(MadeUpClock())
    assert table.base_ms[2] == pytest.approx(BASE_MS + 16 * HIDDEN_MS)
    assert table.attention.all_ms[2][1] == pytest.approx(ATTENTION_MS + HEAD_MS * 4 * 16)
    assert table.attention.first_ms[2][1] == pytest.approx(ATTENTION_MS + HEAD_MS * 4 * 16 / 10)
    assert table.ffn.all_ms[3][2] == pytest.approx(FFN_MS + UNIT_MS * 64 * 32)
    assert table.ffn.first_ms[3][2] == pytest.approx(FFN_MS + UNIT_MS * 64 * 32 / 10)
    assert table.dense_ms == pytest.approx(made_up_ms(DENSE))


def test_a_model_that_answers_for_every_token_computes_all_of_them_to_the_end():
    kind: TaskKind = "question-answering"
    table = table_of(MadeUpClock(kind), kind)
    assert table.attention.first_ms == table.attention.all_ms
    assert table.ffn.first_ms == table.ffn.all_ms


def test_no_structure_of_the_table_has_more_than_two_layers_or_a_long_vocabulary():
    clock = MadeUpClock()
    large = dense_arch(SHAPE, vocab_size=30_000)
    measure_table(large, "text-classification", clock, point="p", threads=1, key={})
    *small, dense = clock.timed
    assert dense == large
    assert {(len(arch.layers), arch.vocab_size) for arch in small} == {(2, 2048)}


def test_noise_leaves_a_table_that_never_falls():
    table = table_of(MadeUpClock(noise=0.3))
    for part in (table.attention, table.ffn):
        for row, wider in zip(part.all_ms, part.all_ms[1:], strict=False):
            assert list(row) == sorted(row)
            assert all(above >= below for below, above in zip(row, wider, strict=True))


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_the_table_is_scaled_to_what_whole_models_take(factor: float):
    clock = MadeUpClock(factor=factor)
    table = held_against_models(table_of(clock), DENSE, TARGETS, clock)
    assert table.scale == pytest.approx(factor)
    assert table.dense_ms == pytest.approx(made_up_ms(DENSE))
    ratios = table.notes["whole_models_over_table"]
    assert list(ratios.values()) == pytest.approx([factor] * len(ratios))
    assert {name.split(",")[0] for name in ratios} == {"3x", "6x"}
    foretold = LatencyCost(table, SHAPE).kept(Masks.ones(SHAPE))
    assert foretold == pytest.approx(factor * made_up_ms(DENSE))


def test_targets_that_no_structure_has_leave_the_table_as_it_is():
    clock = MadeUpClock()
    table = table_of(clock)
    assert held_against_models(table, DENSE, [Target("speedup", 1e6)], clock) == table
