"""Why a speedup is not what operations promise: sums that must hold, and the sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.serve.profile_explanation import explain, explanations_for

MS = st.floats(0.01, 100.0)


def made(model, parts, **changes):
    rows = [
        {"layer": layer, "part": part, "ms": ms, "flops": flops} for layer, part, ms, flops in parts
    ]
    wall = sum(row["ms"] for row in rows)
    place = {"runtime": "onnxruntime-cpu", "batch_size": 1, "seq_len": 128}
    return {"model": model, **place, "wall_ms": wall, "parts": rows, **changes}


DENSE = made(
    "dense",
    [
        (0, "attention", 40.0, 400),
        (0, "ffn", 50.0, 800),
        (0, "layer_norm", 6.0, 0),
        (None, "overhead", 4.0, 0),
    ],
)
PRUNED = made(
    "pruned",
    [
        (0, "attention", 4.0, 40),
        (0, "ffn", 5.0, 20),
        (0, "layer_norm", 5.0, 0),
        (None, "overhead", 4.0, 0),
    ],
)


def test_the_numbers_of_each_part():
    explained = explain(DENSE, PRUNED)
    assert explained["speedup"] == pytest.approx(100 / 18)
    assert explained["flops_ratio"] == 1200 / 60
    rows = {row["part"]: row for row in explained["parts"]}
    assert rows["attention"]["speedup"] == rows["attention"]["flops_ratio"] == 10.0
    assert rows["ffn"] == {
        "part": "ffn",
        "dense_ms": 50.0,
        "pruned_ms": 5.0,
        "speedup": 10.0,
        "flops_ratio": 40.0,
        "at_dense_efficiency_ms": 1.25,
    }
    assert rows["overhead"]["flops_ratio"] is None
    assert explained["at_dense_efficiency_ms"] == 4.0 + 1.25 + 5.0 + 4.0


def test_the_sentence_names_the_largest_reason_first():
    assert explain(DENSE, PRUNED)["sentence"] == (
        "5.6x and not 20.0x: LayerNorm and overhead take 50% of the pruned time and are only 1.1x "
        "faster; FFN runs at 25% of its dense efficiency"
    )


def test_the_layer_that_loses_most_is_named():
    dense = made("dense", [(0, "ffn", 50.0, 500), (1, "ffn", 50.0, 500)])
    pruned = made("pruned", [(0, "ffn", 10.0, 20), (1, "ffn", 2.5, 20)])
    assert explain(dense, pruned)["sentence"] == (
        "8.0x and not 25.0x: FFN runs at 32% of its dense efficiency (layer 0: 20%)"
    )


def test_a_speedup_as_promised_needs_no_reason():
    pruned = made("pruned", [(0, "attention", 4.0, 40), (0, "ffn", 5.0, 80)])
    assert explain(DENSE, pruned)["sentence"] == (
        "11.1x: as much as the operations promise (10.0x)"
    )


def test_without_operations_left_there_is_no_ratio():
    explained = explain(DENSE, made("pruned", [(None, "overhead", 4.0, 0)]))
    assert explained["flops_ratio"] is None
    assert explained["sentence"].startswith("25.0x: no operations are left")


@given(dense=st.tuples(MS, MS, MS, MS), pruned=st.tuples(MS, MS, MS, MS))
def test_parts_add_up_and_no_reason_is_told_without_need(dense, pruned):
    profiles = [
        made(
            name,
            [
                (0, "attention", times[0], flops),
                (1, "ffn", times[1], 2 * flops),
                (1, "layer_norm", times[2], 0),
                (None, "overhead", times[3], 0),
            ],
        )
        for name, times, flops in (("dense", dense, 1200), ("pruned", pruned, 100))
    ]
    explained = explain(*profiles)
    for key, times in (("dense_ms", dense), ("pruned_ms", pruned)):
        assert sum(row[key] for row in explained["parts"]) == pytest.approx(sum(times))
    assert explained["speedup"] == pytest.approx(sum(dense) / sum(pruned))
    assert explained["flops_ratio"] == 12.0
    is_less = explained["speedup"] < 12.0 * 0.95
    assert (" and not 12.0x: " in explained["sentence"]) == is_less


@given(times=st.tuples(MS, MS, MS))
def test_a_model_against_itself_is_as_fast_as_promised(times):
    parts = [(0, "attention", times[0], 5), (0, "ffn", times[1], 7), (None, "head", times[2], 0)]
    explained = explain(made("a", parts), made("b", parts))
    assert explained["sentence"] == "1.0x: as much as the operations promise (1.0x)"
    assert explained["at_dense_efficiency_ms"] == pytest.approx(sum(times))


def test_each_model_is_explained_against_the_first_of_its_runtime_and_shape():
    elsewhere = [{**each, "runtime": "openvino"} for each in (DENSE, PRUNED)]
    found = explanations_for([DENSE, PRUNED, *elsewhere, {**PRUNED, "model": "other"}])
    assert [(each["model"], each["runtime"]) for each in found] == [
        ("pruned", "onnxruntime-cpu"),
        ("pruned", "openvino"),
        ("other", "onnxruntime-cpu"),
    ]
