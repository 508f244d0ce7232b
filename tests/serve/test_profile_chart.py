"""The picture and the table of profiles say what the numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from rich.console import Console

from cofi_deploy.serve.profile_chart import part_ms, profile_chart
from cofi_deploy.serve.profile_table import render

SVG = "{http://www.w3.org/2000/svg}"


def made(model, wall_ms, **changes):
    parts = [
        {"layer": 0, "part": "attention", "ms": wall_ms * 0.25, "flops": 10**7},
        {"layer": 1, "part": "attention", "ms": wall_ms * 0.25, "flops": 10**7},
        {"layer": None, "part": "overhead", "ms": wall_ms * 0.5, "flops": 0},
    ]
    return {
        "model": model,
        "runtime": "openvino",
        "precision": "fp32",
        "threads": 2,
        "batch_size": 1,
        "seq_len": 128,
        "wall_ms": wall_ms,
        "peak_gflops": 100.0,
        "unfolded_share": 0.015,
        "scale": 1.0,
        "parts": parts,
        **changes,
    }


def bars(picture):
    """Widths of the segments, bar by bar."""
    rows = {}
    for each in ElementTree.fromstring(picture).iter(f"{SVG}rect"):
        if each.find(f"{SVG}title") is not None:
            rows.setdefault(each.get("y"), []).append(float(each.get("width")))
    return list(rows.values())


def test_bars_of_a_group_share_one_scale_and_a_short_one_is_enlarged():
    long, short, enlarged = bars(profile_chart([made("dense", 20.0), made("pruned", 4.0)]))
    assert sum(short) == pytest.approx(sum(long) / 5, abs=0.1)
    assert enlarged == pytest.approx(long)
    assert short[0] == pytest.approx(short[1], abs=0.1)


def test_a_bar_of_half_the_length_is_not_enlarged():
    assert len(bars(profile_chart([made("dense", 20.0), made("pruned", 11.0)]))) == 2


def test_groups_have_a_scale_of_their_own():
    first, second = bars(
        profile_chart([made("dense", 20.0), made("dense", 1.0, runtime="onnxruntime-cpu")])
    )
    assert sum(first) == pytest.approx(sum(second))


def test_the_picture_is_told_in_words_and_escapes_names():
    picture = profile_chart([made("<a & b>", 20.0)], name="p1")
    root = ElementTree.fromstring(picture)
    assert root.find(f"{SVG}desc").text == (
        "<a & b> in openvino at 1 x 128: 20 ms, of which attention 50%, overhead 50%."
    )
    assert root.get("aria-labelledby") == "p1-title p1-desc"


def test_no_profiles_are_an_empty_picture():
    assert bars(profile_chart([])) == []


def test_layers_are_added_up():
    assert part_ms(made("a", 8.0)) == {"attention": 4.0, "overhead": 4.0}


def shown(profiles, explanations=()):
    console = Console(width=140)
    with console.capture() as captured:
        console.print(render(profiles, explanations))
    return captured.get()


def test_the_table_shows_speed_share_of_the_peak_and_distance_to_the_floor():
    text = shown([made("dense", 4.0)])
    # 10 MFLOP in 1 ms are 10 GFLOP/s; at 100 they would take 0.1 ms.
    row = next(line for line in text.splitlines() if " 1 " in line and "attention" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells == ["1", "attention", "1.000", "25.0%", "10.0", "10.0", "10%", "0.900"]
    assert "peak 100 GFLOP/s; no part is known for 1.5% of the time" in text


def test_a_scaled_profile_and_a_missing_peak_are_told():
    text = " ".join(shown([made("dense", 4.0, scale=0.5, peak_gflops=None)]).split())
    assert "no peak was measured" in text
    assert "multiplied by 0.50" in text


def test_the_sentence_names_model_and_place():
    explained = {
        "model": "pruned",
        "runtime": "openvino",
        "batch_size": 1,
        "seq_len": 128,
        "sentence": "2.0x and not 3.0x: head take all",
    }
    assert "pruned in openvino at 1x128: 2.0x and not 3.0x" in shown([], [explained])
