"""Pictures are valid, true to scale and in words; odd values break nothing."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.serve.charts import accuracy_against_speedup, latency_strips
from cofi_deploy.serve.curves import read_metrics, training_curves
from cofi_deploy.serve.svg import Scale, scale, short

SVG = "{http://www.w3.org/2000/svg}"
positive = st.floats(1e-3, 1e6)


def accuracy(metric=0.9, dense=0.91):
    return [{"runtime": "ort", "metric": metric, "metric_dense": dense, "metric_name": "accuracy"}]


def point(speedup, batch_size=1):
    return {
        "runtime": "ort",
        "batch_size": batch_size,
        "seq_len": 128,
        "speedup": speedup,
        "speedup_low": speedup and speedup * 0.9,
        "speedup_high": speedup and speedup * 1.1,
    }


@given(st.lists(positive, min_size=1, max_size=8), st.booleans())
def test_a_scale_shows_all_its_values_and_some_ticks(values, log):
    axis = scale(values, 10.0, 100.0, log=log)
    assert all(10 <= axis(value) <= 100 for value in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 25
    assert all(axis.low <= tick <= axis.high for tick in ticks)


def test_a_logarithmic_scale_gives_equal_factors_equal_room():
    axis = Scale(low=1, high=100, start=0, end=200, log=True)
    assert axis(10) - axis(1) == pytest.approx(axis(100) - axis(10)) == pytest.approx(100)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (91.23, "91.2"), (0.905, "0.905"), (0.00012, "0.00012")],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_faster_is_further_right_and_worse_is_lower():
    root = ET.fromstring(
        accuracy_against_speedup(accuracy(), [point(4.0), point(8.0, 32)], targets={})
    )
    dense, slow, fast = root.iter(f"{SVG}circle")
    assert float(dense.get("cx")) < float(slow.get("cx")) < float(fast.get("cx"))
    assert float(dense.get("cy")) < float(slow.get("cy")) == float(fast.get("cy"))
    words = root.find(f"{SVG}desc").text
    assert "ort at 32x128: 8.00 times faster, metric 0.9000." in words


def test_the_region_that_was_asked_for_begins_at_the_targets():
    root = ET.fromstring(
        accuracy_against_speedup(
            accuracy(), [point(4.0)], targets={"max_drop": 1.0, "min_speedup": 4.0}
        )
    )
    region = next(rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "asked")
    _, marker = root.iter(f"{SVG}circle")
    assert float(region.get("x")) == pytest.approx(float(marker.get("cx")), abs=0.11)
    floor = float(region.get("y")) + float(region.get("height"))
    assert floor == pytest.approx(float(marker.get("cy")), abs=0.2)


def test_without_a_believable_speedup_there_is_no_picture():
    assert accuracy_against_speedup(accuracy(), [point(None)], targets={}) is None
    assert latency_strips([], "dense") is None


@given(
    st.lists(st.floats(0.1, 500), min_size=1, max_size=6),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.sampled_from([{}, {"max_drop": 2.0}, {"min_speedup": 8.0}]),
)
def test_any_result_gives_a_valid_picture(speedups, metric, dense, targets):
    points = [point(speedup, at + 1) for at, speedup in enumerate(speedups)]
    ET.fromstring(accuracy_against_speedup(accuracy(metric, dense), points, targets=targets))


@given(st.lists(st.lists(positive, min_size=1, max_size=5), min_size=1, max_size=6))
def test_any_durations_give_a_valid_picture(durations):
    samples = [
        {
            "model": "dense" if at % 2 == 0 else "<pruned>",
            "runtime": "ort",
            "batch_size": 1,
            "seq_len": at // 2,
            "sorted_ms": sorted(values),
        }
        for at, values in enumerate(durations)
    ]
    root = ET.fromstring(latency_strips(samples, "dense"))
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("rx") == "2"]
    assert len(bars) == len(durations)


def test_stages_follow_each_other_although_each_counts_from_the_beginning():
    steps = [
        *({"stage": "teacher", "step": step, "loss": 1.0} for step in (0, 50, 100)),
        *({"stage": "prune", "step": step, "loss": 2.0} for step in (0, 50, 100)),
    ]
    (picture,) = training_curves(steps)
    root = ET.fromstring(picture)
    curve = next(root.iter(f"{SVG}polyline")).get("points").split()
    places = [float(pair.split(",")[0]) for pair in curve]
    assert places == sorted(places)
    assert places[-1] - places[0] == pytest.approx(2 * (places[2] - places[0]), abs=0.2)
    marks = [line for line in root.iter(f"{SVG}line") if line.get("class") == "stage"]
    assert len(marks) == 2


def test_each_group_of_keys_has_its_picture():
    steps = [
        {
            "stage": "prune",
            "step": step,
            "loss": 1.0,
            "loss_layer": 0.5,
            "target_sparsity": step / 10,
            "realized_sparsity": step / 11,
            "metric": 0.8,
        }
        for step in range(10)
    ]
    titles = [ET.fromstring(picture).find(f"{SVG}title").text for picture in training_curves(steps)]
    assert titles == ["Loss", "Sparsity of the encoder", "Metric"]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="none"),
        pytest.param([{"loss": 1.0}], id="one point"),
        pytest.param([{"step": "x", "loss": None}] * 3, id="no numbers"),
        pytest.param(
            [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": True}], id="not finite"
        ),
    ],
)
def test_steps_without_a_curve_give_no_picture(steps):
    assert training_curves(steps) == []


def test_a_long_run_is_thinned_but_keeps_its_end():
    steps = [{"step": step, "loss": float(step)} for step in range(5000)]
    (picture,) = training_curves(steps)
    curve = next(ET.fromstring(picture).iter(f"{SVG}polyline")).get("points").split()
    assert len(curve) <= 242
    assert "Ends at total 4999." in picture


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n[1]\n\n" + '{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_a_run_without_metrics_has_no_steps(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
