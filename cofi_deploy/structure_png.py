"""A picture of `structure_svg.py` as PNG, for places that take no SVG: wikis, slides, chats.

Drawn by resvg, which needs no library of the system, only one font.
"""

from __future__ import annotations

from cofi_deploy.errors import EnvironmentProblem, MissingDependencyError

# Pixels of the picture for each one of the SVG: sharp on screens of twice the density.
_ZOOM = 2
_PROBE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">'
    '<text x="2" y="15" font-family="sans-serif">{}</text></svg>'
)


def png_from_svg(svg: str) -> bytes:
    """Draw an SVG on white, at twice its size.

    Raises:
        MissingDependencyError: resvg is not installed.
        EnvironmentProblem: There is no font: all words would be missing from the picture.
    """
    try:
        from resvg_py import svg_to_bytes  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError("resvg-py", "png", "--png") from error
    if svg_to_bytes(svg_string=_PROBE.format("M")) == svg_to_bytes(svg_string=_PROBE.format("")):
        raise EnvironmentProblem(
            "--png needs a font for its words, and this machine has none; install one, for example "
            "apt-get install fonts-dejavu-core, or write --svg instead"
        )
    return bytes(svg_to_bytes(svg_string=svg, background="white", zoom=_ZOOM))
