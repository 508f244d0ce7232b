"""Pictures are valid, true to scale and in words; odd values break nothing."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.serve.bars import size_bars
from cofi_deploy.serve.charts import latency_strips
from cofi_deploy.serve.curves import read_metrics, training_curves
from cofi_deploy.serve.pareto import accuracy_against_speedup, on_front
from cofi_deploy.serve.svg import Scale, scale, short

SVG = "{http://www.w3.org/2000/svg}"
positive = st.floats(1e-3, 1e6)


def accuracy(metric=0.9, dense=0.91, model="pruned", **more):
    row = {"model": model, "runtime": "ort", "metric": metric, "metric_dense": dense}
    return [{**row, "metric_name": "accuracy", **more}]


def point(speedup, batch_size=1, model="pruned"):
    return {
        "model": model,
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
    (picture,) = accuracy_against_speedup(accuracy(), [point(4.0), point(8.0, 32)], targets={})
    root = ET.fromstring(picture)
    dense, slow, fast = root.iter(f"{SVG}circle")
    assert float(dense.get("cx")) < float(slow.get("cx")) < float(fast.get("cx"))
    assert float(dense.get("cy")) < float(slow.get("cy")) == float(fast.get("cy"))
    words = root.find(f"{SVG}desc").text
    assert "pruned in ort at 32x128: 8.00 times faster (7.20 to 8.80), metric 0.9000." in words


def test_the_region_that_was_asked_for_begins_at_the_targets():
    (picture,) = accuracy_against_speedup(
        accuracy(), [point(4.0)], targets={"max_drop": 1.0, "min_speedup": 4.0}
    )
    root = ET.fromstring(picture)
    region = next(rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "asked")
    _, marker = root.iter(f"{SVG}circle")
    assert float(region.get("x")) == pytest.approx(float(marker.get("cx")), abs=0.11)
    floor = float(region.get("y")) + float(region.get("height"))
    assert floor == pytest.approx(float(marker.get("cy")), abs=0.2)


def test_whiskers_span_both_intervals():
    rows = accuracy(0.9, 0.91, change_low=-0.03, change_high=0.01)
    (picture,) = accuracy_against_speedup(rows, [point(4.0)], targets={})
    root = ET.fromstring(picture)
    across, up = [each for each in root.iter(f"{SVG}line") if each.get("class") == "bar"]
    dense, marker = root.iter(f"{SVG}circle")
    assert float(across.get("x1")) < float(marker.get("cx")) < float(across.get("x2"))
    # From 0.88 to 0.92: the dense metric 0.91 is inside, and the marker in the middle.
    low, high = float(up.get("y1")), float(up.get("y2"))
    assert high < float(dense.get("cy")) < low
    assert float(marker.get("cy")) == pytest.approx((low + high) / 2, abs=0.11)


def test_without_a_believable_speedup_there_is_no_picture():
    assert accuracy_against_speedup(accuracy(), [point(None)], targets={}) == []
    assert latency_strips([], "dense", "pruned") == {}


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([(1, 0.9), (2, 0.8), (4, 0.7)], [True] * 3, id="each trades"),
        pytest.param([(1, 0.9), (2, 0.7), (4, 0.8)], [True, False, True], id="beaten in both"),
        pytest.param([(2, 0.8), (2, 0.9)], [False, True], id="beaten in one"),
        pytest.param([(2, 0.8), (2, 0.8)], [True, True], id="twins"),
        pytest.param([(1, 0.9), (0.5, 0.9)], [True, False], id="slower for nothing"),
    ],
)
def test_the_front_is_what_nothing_beats(points, expected):
    assert on_front(points) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 2, 3, 4]), st.sampled_from([0.6, 0.7, 0.8])), min_size=1
    )
)
def test_whatever_is_off_the_front_is_beaten_by_something_on_it(points):
    front = on_front(points)
    kept = [each for each, is_front in zip(points, front, strict=True) if is_front]
    assert kept
    for speedup, metric in (e for e, is_front in zip(points, front, strict=True) if not is_front):
        better = [k for k in kept if k[0] >= speedup and k[1] >= metric]
        assert any(k != (speedup, metric) for k in better)


def test_a_family_has_a_picture_for_each_operating_point_and_dominated_members_are_hollow():
    rows = [*accuracy(0.9, model="s60"), *accuracy(0.7, model="s80"), *accuracy(0.8, model="s95")]
    timed = [
        point(speedup * batch_size, batch_size, model)
        for batch_size in (1, 2)
        for model, speedup in (("s60", 2.0), ("s80", 3.0), ("s95", 4.0))
    ]
    pictures = [ET.fromstring(each) for each in accuracy_against_speedup(rows, timed, targets={})]
    assert [each.find(f"{SVG}title").text for each in pictures] == [
        "Accuracy against speedup at 1x128",
        "Accuracy against speedup at 2x128",
    ]
    for root in pictures:
        _, s60, s80, s95 = root.iter(f"{SVG}circle")
        assert [each.get("class") for each in (s60, s80, s95)] == [None, "lighter", None]
        labels = {each.text for each in root.iter(f"{SVG}text")}
        assert {"s60", "s80", "s95"} <= labels
        (front,) = root.iter(f"{SVG}polyline")
        corners = [pair.split(",") for pair in front.get("points").split()]
        assert corners[-1] == [s95.get("cx"), s95.get("cy")]
        assert [s80.get("cx"), s80.get("cy")] not in corners


def test_a_server_is_drawn_with_the_row_of_what_was_timed():
    rows = [
        *accuracy(0.9, change_low=-0.02, change_high=0.01, requests="token ids"),
        *accuracy(0.5, requests="text"),
    ]
    (svg,) = accuracy_against_speedup(rows, [point(4.0)], targets={})
    assert "metric 0.9000" in svg
    assert "metric 0.5000" not in svg


def test_the_pictures_of_a_family_come_in_the_order_that_was_asked_for():
    rows = [*accuracy(model="a"), *accuracy(0.88, model="b")]
    timed = [
        point(speedup, batch_size, model)
        for batch_size, speedup in ((1, 9.0), (32, 3.0), (8, None), (4, 5.0))
        for model in ("a", "b")
    ]
    titles = [
        ET.fromstring(svg).find(f"{SVG}title").text
        for svg in accuracy_against_speedup(rows, timed, targets={})
    ]
    assert [title.split(" at ")[1] for title in titles] == ["1x128", "32x128", "4x128"]


@given(
    st.lists(st.floats(0.1, 500), min_size=1, max_size=6),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.sampled_from([{}, {"max_drop": 2.0}, {"min_speedup": 8.0}]),
    st.sampled_from([1, 2]),
)
def test_any_result_gives_a_valid_picture(speedups, metric, dense, targets, models):
    points = [
        point(speedup, at // models + 1, f"<{at % models}>") for at, speedup in enumerate(speedups)
    ]
    rows = [row for at in range(models) for row in accuracy(metric, dense, f"<{at}>")]
    pictures = accuracy_against_speedup(rows, points, targets=targets)
    assert pictures
    for picture in pictures:
        ET.fromstring(picture)


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
    root = ET.fromstring(latency_strips(samples, "dense", "<pruned>")["ort"])
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("rx") == "2"]
    assert len(bars) == len(durations)


def test_each_runtime_has_its_strips_on_a_common_axis():
    samples = [
        {"model": "dense", "runtime": name, "batch_size": 1, "seq_len": 8, "sorted_ms": [2.0, 2.0]}
        for name in ("ort", "openvino")
    ]
    samples[1]["sorted_ms"] = [200.0, 200.0]
    found = {
        name: next(
            line for line in ET.fromstring(each).iter(f"{SVG}line") if line.get("class") == "median"
        )
        for name, each in latency_strips(samples, "dense", "pruned").items()
    }
    assert float(found["ort"].get("x1")) + 100 < float(found["openvino"].get("x1"))


def test_the_name_of_a_strip_that_spans_everything_stays_inside_the_picture():
    sample = {"model": "a-long-name", "runtime": "ort", "batch_size": 1, "seq_len": 8}
    durations = [0.1, *[1.0] * 8, 100.0]
    picture = latency_strips([{**sample, "sorted_ms": durations}], "dense", "a-long-name")["ort"]
    (name,) = [e for e in ET.fromstring(picture).iter(f"{SVG}text") if "a-long-name" in e.text]
    assert name.get("text-anchor") == "end"
    assert 8 * len(name.text) < float(name.get("x")) < 480


def test_bars_are_as_long_as_what_they_stand_for():
    sizes = [
        {"model": "dense", "parameters_by_part": {"embeddings": 6e6, "ffn": 4e6, "pooler": 0}},
        {"model": "pruned", "parameters_by_part": {"embeddings": 6e6, "ffn": 1e6, "pooler": 0}},
    ]
    root = ET.fromstring(size_bars(sizes))
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("height") == "16"]
    widths = [float(bar.get("width")) for bar in bars]
    assert len(bars) == 4  # the pooler is nowhere
    assert widths[0] == pytest.approx(widths[2], abs=0.02)
    assert widths[1] == pytest.approx(4 * widths[3], rel=0.01)
    assert float(bars[1].get("x")) == pytest.approx(float(bars[0].get("x")) + widths[0], abs=0.02)
    words = root.find(f"{SVG}desc").text
    assert (
        words == "In million parameters. dense: embeddings 6, FFN 4. pruned: embeddings 6, FFN 1."
    )


def test_nothing_gives_no_bars():
    assert size_bars([]) is None
    assert size_bars([{"model": "dense", "parameters_by_part": {"ffn": 0}}]) is None


def test_stages_follow_each_other_although_each_counts_from_the_beginning():
    steps = [
        *({"stage": "teacher", "step": step, "loss": 1.0} for step in (0, 50, 100)),
        *({"stage": "prune", "step": step, "loss": 2.0} for step in (0, 50, 100)),
    ]
    (picture,) = training_curves(steps)
    root = ET.fromstring(picture)
    curves = [curve.get("points").split() for curve in root.iter(f"{SVG}polyline")]
    assert len(curves) == 2
    places = [float(pair.split(",")[0]) for curve in curves for pair in curve]
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
            "lambda_linear": 0.1,
            "lambda_quadratic": 0.2,
            "metric": 0.8,
            "teacher_layers": [3, 6],
            "matched_layers": [1, 4],
        }
        for step in range(10)
    ]
    pictures = [ET.fromstring(picture) for picture in training_curves(steps)]
    assert [picture.find(f"{SVG}title").text for picture in pictures] == [
        "Loss",
        "Sparsity of the encoder",
        "Multipliers of the budget's constraint, and their penalty",
        "Metric",
        "Student layer that each teacher layer is matched to",
    ]
    ids = [picture.find(f"{SVG}title").get("id") for picture in pictures]
    assert len(set(ids)) == len(ids)


def test_layers_are_told_by_their_numbers_and_lie_where_they_were_matched():
    steps = [
        {"stage": "prune", "step": step, "teacher_layers": [3, 12], "matched_layers": [step, 5]}
        for step in range(4)
    ]
    (picture,) = training_curves(steps)
    root = ET.fromstring(picture)
    third, twelfth = (each.get("d") for each in root.iter(f"{SVG}path"))
    heights = [float(mark.split()[1].removesuffix("h0")) for mark in third.split("M")[1:]]
    assert heights == sorted(heights, reverse=True)  # higher layers are drawn higher
    assert len(twelfth.split("M")[1:]) == 4
    assert (
        root.find(f"{SVG}desc").text == "Ends with teacher 3 to student 4, teacher 12 to student 6."
    )


def test_layers_of_an_older_run_are_counted():
    (picture,) = training_curves([{"step": step, "matched_layers": [0, 2]} for step in range(3)])
    assert "Ends with teacher 1 to student 1, teacher 2 to student 3." in picture


def test_a_curve_does_not_reach_over_a_stage_that_lacks_it():
    stages = [
        ("prune-0.6", "target_sparsity"),
        ("finetune-0.6", "loss"),
        ("prune-0.8", "target_sparsity"),
    ]
    steps = [
        {"stage": stage, "step": step, key: step / 10}
        for stage, key in stages
        for step in range(1, 4)
    ]
    pictures = [ET.fromstring(each) for each in training_curves(steps)]
    sparsity = next(p for p in pictures if p.find(f"{SVG}title").text.startswith("Sparsity"))
    curves = list(sparsity.iter(f"{SVG}polyline"))
    assert [len(curve.get("points").split()) for curve in curves] == [3, 3]
    assert all(curve.get("stroke-dasharray") for curve in curves)  # a target is not a result


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="none"),
        pytest.param([{"loss": 1.0}], id="one point"),
        pytest.param([{"step": "x", "loss": None}] * 3, id="no numbers"),
        pytest.param([{"step": 1, "matched_layers": ["a"]}] * 3, id="no layers"),
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
