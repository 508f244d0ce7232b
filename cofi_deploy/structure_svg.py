"""The kept structure of an `Arch` as a picture: heads and FFN width of each layer in outline.

In: an `Arch`, or several. Out: one self-contained SVG, for a file of its own or for an HTML page.
Text and outlines take the colour of their surroundings, so it reads on light and dark backgrounds;
in a narrow page it shrinks. Next file: `structure_png.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

from cofi_deploy.arch import Arch, LayerArch

# Pixels. A head's cell shrinks when many heads share the width.
_LABEL_WIDTH = 64
_HEADS_WIDTH = 208
_FFN_WIDTH = 320
_NUMBER_WIDTH = 56
_HEAD_DIGITS, _FFN_DIGITS = 20, 40  # from a bar to the right end of its number
_ROW_HEIGHT = 20
_BAR_HEIGHT = 14
_HEADER_HEIGHT = 76
_MARGIN = 12
_GAP = 2

_HEADS_X = _MARGIN + _LABEL_WIDTH
_FFN_X = _HEADS_X + _HEADS_WIDTH + _NUMBER_WIDTH
_WIDTH = _FFN_X + _FFN_WIDTH + _NUMBER_WIDTH + _MARGIN

# Classes carry a prefix, because inside an HTML page these rules reach the whole page.
_STYLE = """
.cofi-structure { color-scheme: light dark; max-width: 100%; height: auto; }
.cofi-structure text { fill: currentColor; font: 11px system-ui, sans-serif; }
.cofi-structure .cofi-title { font-weight: 600; font-size: 13px; }
.cofi-structure .cofi-number { text-anchor: end; font-variant-numeric: tabular-nums; }
.cofi-structure .cofi-gone { font-style: italic; opacity: 0.75; }
.cofi-structure .cofi-outline { fill: none; stroke: currentColor; stroke-opacity: 0.35; }
.cofi-structure .cofi-vanished { stroke-dasharray: 3 3; }
.cofi-structure .cofi-heads { fill: #3b82f6; }
.cofi-structure .cofi-ffn { fill: #12a08a; }
.cofi-structure .cofi-hidden { fill: #a16be0; }
"""


def structure_svg(arch: Arch, *, name: str = "structure", label: str = "") -> str:
    """Draw what each layer keeps against the outline of the dense model.

    Which heads were kept is not drawn: an `Arch` knows how many, and a cut model has no others.

    Args:
        arch: Structure of a dense or compact model.
        name: Prefix of the ids in the picture; must differ between pictures on one page.
        label: Stands before the title: which model this is.
    """
    height = _height(arch)
    title_id, desc_id = f"{name}-title", f"{name}-desc"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cofi-structure" role="img" '
        f'aria-labelledby={quoteattr(f"{title_id} {desc_id}")} viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}">',
        f"<title id={quoteattr(title_id)}>{escape(_title(arch, label))}</title>",
        f"<desc id={quoteattr(desc_id)}>{escape(_description(arch))}</desc>",
        f"<style>{_STYLE}</style>",
        *_header(arch, label),
    ]
    for index, layer in enumerate(arch.layers):
        top = _HEADER_HEIGHT + _ROW_HEIGHT * index
        parts += [
            _text(_MARGIN, top, f"layer {index}"),
            *_heads(layer.heads, arch.dense.heads, top),
            *_ffn(layer.ffn, arch.dense.ffn, top),
        ]
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def structures_svg(archs: Mapping[str, Arch]) -> str:
    """Draw several models below each other, each under its label."""
    height = sum(map(_height, archs.values()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" style="max-width: 100%; height: auto" '
        f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
    ]
    top = 0
    for index, (label, arch) in enumerate(archs.items()):
        picture = structure_svg(arch, name=f"structure-{index}", label=label)
        parts.append(picture.replace("<svg ", f'<svg y="{top}" ', 1))
        top += _height(arch)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _height(arch: Arch) -> int:
    return _HEADER_HEIGHT + _ROW_HEIGHT * len(arch.layers) + _MARGIN


def _title(arch: Arch, label: str) -> str:
    return (
        f"{label + ': ' if label else ''}{arch.prunable_parameters / 1e6:.2f} M of "
        f"{arch.dense.prunable_parameters / 1e6:.2f} M "
        f"encoder parameters kept ({arch.sparsity:.1%} pruned)"
    )


def _description(arch: Arch) -> str:
    """The whole picture in words, for those who cannot see it."""
    hidden = f"Hidden size {arch.hidden} of {arch.dense.hidden}."
    layers = (
        f"Layer {index}: {_in_words(layer, arch)}." for index, layer in enumerate(arch.layers)
    )
    return " ".join([hidden, *layers])


def _in_words(layer: LayerArch, arch: Arch) -> str:
    heads = f"{layer.heads} of {arch.dense.heads} heads" if layer.heads else "attention gone"
    ffn = f"FFN {layer.ffn} of {arch.dense.ffn}" if layer.ffn else "FFN gone"
    return f"{heads}, {ffn}"


def _header(arch: Arch, label: str) -> Iterator[str]:
    """Title, the bar of the residual stream's width, and the names of the columns."""
    yield _text(_MARGIN, _MARGIN - 4, _title(arch, label), style="cofi-title")
    top = _MARGIN + 16
    width = _HEADS_WIDTH
    yield _text(_MARGIN, top, "hidden")
    yield _rect(_HEADS_X, top, width * arch.hidden / arch.dense.hidden, style="cofi-hidden")
    yield _rect(_HEADS_X, top, width, style="cofi-outline")
    yield _text(_HEADS_X + width + 6, top, f"{arch.hidden} of {arch.dense.hidden}")
    names = top + _ROW_HEIGHT + 4
    yield _text(_HEADS_X, names, f"attention heads (dense: {arch.dense.heads})")
    yield _text(_FFN_X, names, f"FFN width (dense: {arch.dense.ffn})")


def _heads(kept: int, dense: int, top: int) -> Iterator[str]:
    if kept == 0:
        yield from _vanished(_HEADS_X, _HEADS_WIDTH - _GAP, top, "attention")
        return
    step = _HEADS_WIDTH / dense
    for head in range(dense):
        style = "cofi-heads" if head < kept else "cofi-outline"
        yield _rect(_HEADS_X + head * step, top, max(step - _GAP, 1), style=style)
    yield _number(_HEADS_X + _HEADS_WIDTH + _HEAD_DIGITS, top, kept)


def _ffn(kept: int, dense: int, top: int) -> Iterator[str]:
    if kept == 0:
        yield from _vanished(_FFN_X, _FFN_WIDTH, top, "FFN")
        return
    # At least one pixel: a narrow sublayer is still there.
    yield _rect(_FFN_X, top, max(_FFN_WIDTH * kept / dense, 1), style="cofi-ffn")
    yield _rect(_FFN_X, top, _FFN_WIDTH, style="cofi-outline")
    yield _number(_FFN_X + _FFN_WIDTH + _FFN_DIGITS, top, kept)


def _vanished(x: float, width: float, top: int, what: str) -> Iterator[str]:
    yield _rect(x, top, width, style="cofi-outline cofi-vanished")
    yield _text(x + 6, top, f"{what} gone", style="cofi-gone")


def _number(right: float, top: int, value: int) -> str:
    return _text(right, top, str(value), style="cofi-number")


def _rect(x: float, top: float, width: float, *, style: str) -> str:
    return (
        f'<rect class="{style}" x="{x:g}" y="{top:g}" width="{width:.6g}" height="{_BAR_HEIGHT}" '
        f'rx="1.5"/>'
    )


def _text(x: float, top: float, content: str, *, style: str | None = None) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:g}" y="{top + 11:g}">{escape(content)}</text>'
