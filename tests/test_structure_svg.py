"""The picture of a structure: valid XML, accessible, and true to the Arch."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.structure_svg import structure_svg, structures_svg

SVG = "{http://www.w3.org/2000/svg}"


def arch_of(*layers: tuple[int, int], hidden: int = 30) -> Arch:
    return Arch(
        family="bert",
        vocab_size=99,
        max_positions=40,
        type_vocab_size=2,
        hidden=hidden,
        head_size=8,
        layers=tuple(LayerArch(heads=heads, ffn=ffn) for heads, ffn in layers),
        dense=DenseShape(layers=len(layers), hidden=32, heads=4, ffn=64, head_size=8),
    )


def rectangles(root: ET.Element, style: str) -> list[ET.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if style in rect.get("class", "").split()]


def test_kept_heads_and_ffn_width_are_drawn_to_scale() -> None:
    root = ET.fromstring(structure_svg(arch_of((3, 16), (1, 64))))
    assert len(rectangles(root, "cofi-heads")) == 3 + 1
    narrow, full = (float(rect.get("width", "nan")) for rect in rectangles(root, "cofi-ffn"))
    assert narrow / full == pytest.approx(16 / 64)


def test_vanished_sublayers_stay_visible_as_dashed_outlines() -> None:
    root = ET.fromstring(structure_svg(arch_of((0, 16), (1, 0), (0, 0))))
    assert len(rectangles(root, "cofi-vanished")) == 4
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts.count("attention gone") == 2
    assert texts.count("FFN gone") == 2


def test_picture_is_labelled_by_its_title_and_description() -> None:
    root = ET.fromstring(structure_svg(arch_of((3, 16), (0, 0)), name="pruned"))
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "pruned-title pruned-desc"
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert title.get("id") == "pruned-title"
    assert "pruned)" in (title.text or "")
    assert desc is not None
    assert desc.text == (
        "Hidden size 30 of 32. Layer 0: 3 of 4 heads, FFN 16 of 64. "
        "Layer 1: attention gone, FFN gone."
    )


def test_picture_refers_to_nothing_outside_of_itself() -> None:
    text = structure_svg(arch_of((3, 16)))
    assert "href" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert "@import" not in text


def test_name_with_markup_cannot_break_out_of_its_attribute() -> None:
    root = ET.fromstring(structure_svg(arch_of((3, 16)), name='"><script>'))
    assert not list(root.iter(f"{SVG}script"))


@given(
    layers=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 64)), min_size=1, max_size=48),
    hidden=st.integers(1, 32),
)
def test_everything_lies_inside_the_picture(layers: list[tuple[int, int]], hidden: int) -> None:
    root = ET.fromstring(structure_svg(arch_of(*layers, hidden=hidden)))
    width, height = float(root.get("width", "nan")), float(root.get("height", "nan"))
    for rect in root.iter(f"{SVG}rect"):
        x, y, wide, high = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert wide > 0
        assert 0 <= x <= x + wide <= width
        assert 0 <= y <= y + high <= height


def test_several_models_lie_below_each_other_under_their_labels() -> None:
    archs = {"A: dense": arch_of((4, 64), (4, 64), hidden=32), "B: a<b": arch_of((1, 9), (0, 0))}
    root = ET.fromstring(structures_svg(archs))
    first, second = root.findall(f"{SVG}svg")
    assert float(second.get("y", "nan")) == float(first.get("height", "nan"))
    heights = [float(each.get("height", "nan")) for each in (first, second)]
    assert float(root.get("height", "nan")) == sum(heights)
    titles = [each.findtext(f"{SVG}title") or "" for each in (first, second)]
    assert [title.split(":")[1].split()[0] for title in titles] == ["dense", "a<b"]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) == 4


def test_hidden_size_is_drawn_to_scale() -> None:
    root = ET.fromstring(structure_svg(arch_of((1, 1), hidden=8)))
    (bar,) = rectangles(root, "cofi-hidden")
    outline = next(
        rect for rect in rectangles(root, "cofi-outline") if rect.get("y") == bar.get("y")
    )
    widths = [float(rect.get("width", "nan")) for rect in (bar, outline)]
    assert widths[0] / widths[1] == pytest.approx(8 / 32)
    assert "8 of 32" in [text.text for text in root.iter(f"{SVG}text")]
