"""The picture of profiles: stacked bars of the parts, dense above pruned, on one scale.

In: profiles as JSON. Out: one self-contained SVG, for a file of its own or inside an HTML page.
Text takes the colour of its surroundings, so it reads on light and dark backgrounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from cofi_deploy.parts import PARTS
from cofi_deploy.serve import svg
from cofi_deploy.serve.bars import part_name

Profile = Mapping[str, Any]

# Pixels.
_WIDTH = 640
_MARGIN = 12
_BAR_WIDTH = _WIDTH - 2 * _MARGIN
_BAR_HEIGHT = 18
_ROW_HEIGHT = 44
_GROUP_HEIGHT = 28
_LEGEND_HEIGHT = 34
_MIN_LABEL = 34  # narrower segments have only a hint

# Attention and FFN are as in the picture of the structure.
_COLOURS = {
    "embedding": "#c98a1b",
    "attention": "#3b82f6",
    "ffn": "#12a08a",
    "layer_norm": "#a16be0",
    "head": "#d9578a",
    "overhead": "#8a8f98",
}

# Classes carry a prefix, because inside an HTML page these rules reach the whole page.
_STYLE = """
.cofi-profile { color-scheme: light dark; }
.cofi-profile text { fill: currentColor; font: 11px system-ui, sans-serif; }
.cofi-profile .cofi-place { font-weight: 600; font-size: 13px; }
.cofi-profile .cofi-share { fill: #fff; text-anchor: middle; }
"""


def profile_chart(profiles: Sequence[Profile], *, name: str = "profile") -> str:
    """Draw profiles, grouped by runtime and shape.

    A bar of less than half of its group's longest is drawn a second time, at full width, so that
    its own parts can be compared, too.

    Args:
        profiles: As `profiles.profiles_for` gives them.
        name: Prefix of the ids in the picture; must differ between pictures on one page.
    """
    drawn = list(_drawn(profiles))
    height = drawn[-1][0] if drawn else _MARGIN
    title, described = f"{name}-title", f"{name}-desc"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cofi-profile" role="img" '
        f'aria-labelledby="{escape(title)} {escape(described)}" '
        f'viewBox="0 0 {_WIDTH} {height + _LEGEND_HEIGHT}">',
        f'<title id="{escape(title)}">Where the time of one inference goes</title>',
        f'<desc id="{escape(described)}">{escape(" ".join(map(_in_words, profiles)))}</desc>',
        f"<style>{_STYLE}</style>",
        *(shape for _, shape in drawn),
        *_legend(profiles, height + 16),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def part_ms(profile: Profile) -> dict[str, float]:
    """Milliseconds of each part, over all layers, in the order of `PARTS`; absent parts left out.

    Args:
        profile: As JSON.
    """
    present = {each["part"] for each in profile["parts"]}
    return {
        part: sum(each["ms"] for each in profile["parts"] if each["part"] == part)
        for part in PARTS
        if part in present
    }


def _drawn(profiles: Sequence[Profile]) -> Iterator[tuple[int, str]]:
    """Shapes, each with the height that is used up with it."""
    groups: dict[tuple[Any, ...], list[Profile]] = {}
    for each in profiles:
        key = (each["runtime"], each["batch_size"], each["seq_len"])
        groups.setdefault(key, []).append(each)
    y = 0
    for (runtime, batch, length), group in groups.items():
        yield y + _GROUP_HEIGHT, _text(_MARGIN, y + 20, f"{runtime}, {batch} x {length}", "place")
        y += _GROUP_HEIGHT
        longest = max(each["wall_ms"] for each in group)
        for each in group:
            share = each["wall_ms"] / longest
            widths = [share] if share > 0.5 else [share, 1.0]
            for width in widths:
                note = "" if width == share else f", enlarged {1 / share:.1f} times"
                label = f"{each['model']}: {svg.short(each['wall_ms'])} ms{note}"
                yield y + _ROW_HEIGHT, _bar(each, y, width * _BAR_WIDTH, label)
                y += _ROW_HEIGHT


def _bar(profile: Profile, top: int, width: float, label: str) -> str:
    shapes = [_text(_MARGIN, top + 12, label)]
    x, y = float(_MARGIN), top + 17
    for part, ms in part_ms(profile).items():
        share = ms / profile["wall_ms"]
        wide = share * width
        hint = f"{part}: {svg.short(ms)} ms, {share:.0%}"
        shapes.append(
            f'<rect x="{x:.2f}" y="{y}" width="{wide:.2f}" height="{_BAR_HEIGHT}" '
            f'fill="{_COLOURS[part]}"><title>{escape(hint)}</title></rect>'
        )
        if wide >= _MIN_LABEL:
            shapes.append(_text(x + wide / 2, y + 13, f"{share:.0%}", "share"))
        x += wide
    return "\n".join(shapes)


def _legend(profiles: Sequence[Profile], top: int) -> Iterator[str]:
    present = {part for each in profiles for part in part_ms(each)}
    x = float(_MARGIN)
    for part in (each for each in PARTS if each in present):
        yield f'<rect x="{x:.1f}" y="{top - 9}" width="12" height="10" fill="{_COLOURS[part]}"/>'
        yield _text(x + 17, top, part_name(part))
        x += 34 + svg.text_width(part_name(part))


def _in_words(profile: Profile) -> str:
    """The bar, for those who cannot see it."""
    parts = ", ".join(
        f"{part_name(part)} {ms / profile['wall_ms']:.0%}" for part, ms in part_ms(profile).items()
    )
    return (
        f"{profile['model']} in {profile['runtime']} at {profile['batch_size']} x "
        f"{profile['seq_len']}: {svg.short(profile['wall_ms'])} ms, of which {parts}."
    )


def _text(x: float, y: float, content: str, style: str = "") -> str:
    kind = f' class="cofi-{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:g}">{escape(content)}</text>'
