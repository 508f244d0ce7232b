"""The kept structure of an `Arch` as a picture: heads and FFN width of each layer in outline.

In: an `Arch`. Out: one self-contained SVG, for a file of its own or inside an HTML page. Text and
outlines take the colour of their surroundings, so it reads on light and dark backgrounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from cofi_deploy.arch import Arch, LayerArch

# Pixels. A head's cell shrinks when many heads share the width.
_LABEL_WIDTH = 64
_HEADS_WIDTH = 208
_FFN_WIDTH = 320
_NUMBER_WIDTH = 56
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
.cofi-structure { color-scheme: light dark; }
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


def structure_svg(arch: Arch, *, name: str = "structure") -> str:
    """Draw what each layer keeps against the outline of the dense model.

    Which heads were kept is not drawn: an `Arch` knows how many, and a cut model has no others.

    Args:
        arch: Structure of a dense or compact model.
        name: Prefix of the ids in the picture; must differ between pictures on one page.
    """
    height = _HEADER_HEIGHT + _ROW_HEIGHT * len(arch.layers) + _MARGIN
    title_id, desc_id = f"{name}-title", f"{name}-desc"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cofi-structure" role="img" '
        f'aria-labelledby={quoteattr(f"{title_id} {desc_id}")} viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}">',
        f"<title id={quoteattr(title_id)}>{escape(_title(arch))}</title>",
        f"<desc id={quoteattr(desc_id)}>{escape(_description(arch))}</desc>",
        f"<style>{_STYLE}</style>",
        *_header(arch),
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


def _title(arch: Arch) -> str:
    return (
        f"{arch.prunable_parameters / 1e6:.2f} M of {arch.dense.prunable_parameters / 1e6:.2f} M "
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


def _header(arch: Arch) -> Iterator[str]:
    """Title, the bar of the residual stream's width, and the names of the columns."""
    yield _text(_MARGIN, _MARGIN - 4, _title(arch), style="cofi-title")
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
        yield from _vanished(_HEADS_X, _HEADS_WIDTH, top, "attention")
        return
    step = _HEADS_WIDTH / dense
    for head in range(dense):
        style = "cofi-heads" if head < kept else "cofi-outline"
        yield _rect(_HEADS_X + head * step, top, max(step - _GAP, 1), style=style)
    yield _number(_HEADS_X + _HEADS_WIDTH, top, kept)


def _ffn(kept: int, dense: int, top: int) -> Iterator[str]:
    if kept == 0:
        yield from _vanished(_FFN_X, _FFN_WIDTH, top, "FFN")
        return
    # At least one pixel: a narrow sublayer is still there.
    yield _rect(_FFN_X, top, max(_FFN_WIDTH * kept / dense, 1), style="cofi-ffn")
    yield _rect(_FFN_X, top, _FFN_WIDTH, style="cofi-outline")
    yield _number(_FFN_X + _FFN_WIDTH, top, kept)


def _vanished(x: float, width: float, top: int, what: str) -> Iterator[str]:
    yield _rect(x, top, width - _GAP, style="cofi-outline cofi-vanished")
    yield _text(x + 6, top, f"{what} gone", style="cofi-gone")


def _number(right: float, top: int, value: int) -> str:
    return _text(right + _NUMBER_WIDTH - 16, top, str(value), style="cofi-number")


def _rect(x: float, top: float, width: float, *, style: str) -> str:
    return (
        f'<rect class="{style}" x="{x:g}" y="{top:g}" width="{width:.6g}" height="{_BAR_HEIGHT}" '
        f'rx="1.5"/>'
    )


def _text(x: float, top: float, content: str, *, style: str | None = None) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:g}" y="{top + 11:g}">{escape(content)}</text>'
