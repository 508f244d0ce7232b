"""The picture as pixels: of the right size, not empty, and refused where it would lie."""

from __future__ import annotations

import struct
import sys

import pytest

from cofi_deploy import structure_png
from cofi_deploy.errors import EnvironmentProblem, MissingDependencyError
from cofi_deploy.structure_png import png_from_svg
from cofi_deploy.structure_svg import structure_svg
from tests.test_structure_svg import arch_of


@pytest.fixture
def resvg() -> None:
    pytest.importorskip("resvg_py")


@pytest.mark.usefixtures("resvg")
def test_picture_has_twice_the_size_of_the_svg() -> None:
    svg = structure_svg(arch_of((3, 16), (0, 0)))
    png = png_from_svg(svg)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert f'width="{width // 2}" height="{height // 2}"' in svg


@pytest.mark.usefixtures("resvg")
def test_another_structure_is_another_picture() -> None:
    one, other = (png_from_svg(structure_svg(arch_of((heads, 16)))) for heads in (1, 2))
    assert one != other


def test_without_resvg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(
        MissingDependencyError, match=r"--png needs the package 'resvg-py'.*\[png\]"
    ):
        png_from_svg("<svg/>")


@pytest.mark.usefixtures("resvg")
def test_without_a_font_no_picture_without_words_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # A probe whose words draw nothing is what a machine without fonts sees.
    monkeypatch.setattr(structure_png, "_PROBE", structure_png._PROBE.replace("<text", "<title"))
    monkeypatch.setattr(structure_png, "_PROBE", structure_png._PROBE.replace("/text", "/title"))
    with pytest.raises(EnvironmentProblem, match="has none; install one, for example apt-get"):
        png_from_svg(structure_svg(arch_of((1, 1))))
