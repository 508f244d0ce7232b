"""The report is one valid, self-contained page that shows every row, whatever the rows lack."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from cofi_deploy.serve.report import render_report
from tests.serve.report_documents import MEMBERS, family_document, pair_document, training_steps

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting, and collects what tests ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def document():
    return pair_document()


@pytest.fixture
def family():
    return family_document()


def test_the_verdict_is_the_first_sentence(document):
    page = parse(render_report(document))
    heading = page.text.index("Missed: accuracy in onnxruntime-cpu drops by 1.23 points.")
    assert heading < page.text.index("Accuracy")
    assert ("div", {"class": "verdict missed"}) in page.tags


def test_every_row_is_shown(document):
    shown = [[cell.strip() for cell in row] for row in parse(render_report(document)).rows]
    assert ["dense", "onnxruntime-cpu fp32", "0.9300"] in [row[:3] for row in shown]
    pruned = next(row for row in shown if row[:3] == ["pruned", "onnxruntime-cpu fp32", "0.9177"])
    assert pruned[3:6] == ["−1.23", "0.9990", "2e-06"]  # noqa: RUF001
    assert pruned[6] == pruned[7] != ""  # no row of this document has a mean, or was padded
    assert pruned[8:] == ["4.0 MiB", "1.00 M", "3.2"]
    timed = [row for row in shown if row[1:3] == ["onnxruntime-cpu fp32", "1 × 128"]]  # noqa: RUF001
    assert [row[3:6] for row in timed] == [["91.2", "95.8", "109"], ["7.13", "7.48", "8.55"]]
    assert timed[1][6].split() == ["12.80×", "12.50–13.10"]  # noqa: RUF001


def test_the_page_needs_nothing_from_elsewhere(document):
    page = parse(render_report(document))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert all(not attrs.keys() & {"src", "xlink:href"} for _, attrs in page.tags)
    links = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(page.ids())
    assert "@import" not in render_report(document)
    assert "url(" not in render_report(document)


def test_ids_are_unique_and_references_lead_somewhere(document):
    page = parse(render_report(document))
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attrs.get(name) or "").split()) <= set(ids)


def test_pictures_have_a_title_and_a_description(document):
    html = render_report(document, [{"step": at, "loss": 1.0 / (at + 1)} for at in range(4)])
    pictures = [part.split("</svg>")[0] + "</svg>" for part in html.split("<svg ")[1:]]
    assert len(pictures) == 4
    for picture in pictures:
        root = ET.fromstring(f"<svg {picture}")
        names = [child.tag.rpartition("}")[2] for child in root][:2]
        assert names == ["title", "desc"]
        assert all(child.text for child in list(root)[:2])


def test_tables_have_headers_with_a_scope(document):
    page = parse(render_report(document))
    headers = [attrs for tag, attrs in page.tags if tag == "th"]
    assert headers
    assert all(attrs.get("scope") in {"col", "row"} for attrs in headers)


def test_foreign_text_is_escaped(document):
    html = render_report(document)
    assert "<script>alert" not in html
    page = parse(html)
    assert "<script>alert(1)</script> fine" in page.text
    assert "a note & its <consequences>" in page.text
    assert "A & B <fast>" in page.text


def test_skipped_runtimes_and_the_test_are_told(document):
    text = " ".join(parse(render_report(document)).text.split())
    assert "tensorrt was skipped: the CUDA driver shows no NVIDIA GPU" in text
    assert (
        "Only dense is right on 18, only pruned on 7; both are wrong, each in its way, on 0."
        in text
    )
    assert "p = 0.043" in text
    assert "1 of 18 where only dense is right (all)" in text


def test_scores_are_told_by_who_is_closer(document):
    document["comparisons"][0]["kind"] = "text-regression"
    text = " ".join(parse(render_report(document)).text.split())
    assert "dense is closer to the label on 18 examples, pruned on 7." in text
    assert "1 of 18 where dense is closer" in text


def test_a_noisy_speedup_is_called_noisy(document):
    document = copy.deepcopy(document)
    document["rows"][3] |= {"speedup": None, "speedup_low": None, "speedup_high": None}
    page = parse(render_report(document))
    assert "too noisy" in [cell.strip() for row in page.rows for cell in row]
    assert "Accuracy against speedup" not in page.text


def test_a_result_without_timings_curves_or_targets_is_a_page_too(document):
    document = copy.deepcopy(document)
    document["rows"] = document["rows"][:2]
    for row in document["rows"]:
        for key in ("agreement", "max_abs_logit_diff", "parameters"):
            del row[key]
    document |= {"latency_samples": [], "skipped": [], "notes": [], "comparisons": []}
    document["verdict"] = {"ok": True, "sentence": "No targets were set.", "claims": []}
    page = parse(render_report(document))
    assert ("div", {"class": "verdict none"}) in page.tags
    assert "Read this first" not in page.text


def test_colours_follow_the_reader_and_print_is_light(document):
    html = render_report(document)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport"' in html


def test_a_family_of_four_in_four_runtimes_is_a_small_page(family):
    assert len(render_report(family, training_steps())) < 1_000_000


def test_every_member_is_in_every_table_and_picture(family):
    html = render_report(family, training_steps())
    page = parse(html)
    for label in MEMBERS:
        rows = [row for row in page.rows if row and row[0].strip() == label]
        assert len(rows) == 4 + 4 * 3 + 1  # accuracy, latency, profile
    titles = [part.split("</title>")[0].split(">")[-1] for part in html.split("<title")[1:]]
    for shape in ("1x128", "32x128", "1xtask"):
        assert f"Accuracy against speedup at {shape}" in titles
    for runtime in ("torch", "openvino"):
        assert f"Latency distributions in {runtime}" in titles
    assert {"Parameters by part", "Where the time of one inference goes"} <= set(titles)


def test_a_diagnosis_stands_directly_under_the_verdict(family):
    text = " ".join(parse(render_report(family)).text.split())
    told = "s95 in openvino: wrong precision. It answers at bf16 where fp32 was asked for"
    assert text.index("Missed: accuracy") < text.index(told) < text.index("claims, one by one")


def test_columns_that_only_some_results_have_are_shown_where_there_are_any(family, document):
    names = ["requests", "tokens/s", "clients", "seq/s saturated", "load", "first", "peak MiB"]
    headings = [cell.strip() for row in parse(render_report(family)).rows for cell in row]
    assert all(name in headings for name in names)
    headings = [cell.strip() for row in parse(render_report(document)).rows for cell in row]
    assert not set(names) & set(headings)


def test_where_the_time_goes_is_told_with_its_table(family):
    page = parse(render_report(family))
    text = " ".join(page.text.split())
    assert "openvino at 1 × 128. Attention is below its share" in text  # noqa: RUF001
    assert "8.10 times faster with 12.40 times fewer operations." in text
    cells = [[cell.strip() for cell in row] for row in page.rows]
    assert ["FFN", "8.00", "1.00", "8.00×", "11.00×"] in cells  # noqa: RUF001


def test_sizes_are_told_with_their_share_of_the_dense_ones(family):
    cells = [[" ".join(cell.split()) for cell in row] for row in parse(render_report(family)).rows]
    (ffn,) = [row for row in cells if row[0] == "FFN" and "7,100,000" in row]
    assert ffn[2] == "1,420,000 20.0%"
    assert ["pooler", *["147,000"], *["147,000 100.0%"] * 4] in cells


def test_conditions_stand_beside_the_machine(family):
    text = parse(render_report(family)).text
    for fact in ("affinity0-1", "busy percent0.4", "governorperformance", "cores2"):
        assert fact in text


def test_the_errors_of_the_judged_member_come_first(family):
    text = parse(render_report(family)).text
    assert text.index("s95 against dense, in torch") < text.index("s60 against dense, in torch")
    assert "20 of 60 where only dense is right (evenly spaced over the split)" in text
    assert "20 of 25 where only s95 is right (evenly spaced over the split)" in text


def test_every_table_has_a_caption_and_every_picture_a_role(family):
    page = parse(render_report(family, training_steps()))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 10
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) > 15
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)
    assert len(page.ids()) == len(set(page.ids()))


def test_what_scrolls_and_what_opens_can_be_reached_by_keyboard(family):
    page = parse(render_report(family))
    for _, attrs in page.tags:
        if attrs.get("class") == "scroll":
            assert attrs["tabindex"] == "0"
            assert attrs["role"] == "region"
            assert attrs.get("aria-label") or attrs.get("aria-labelledby")
        assert "onclick" not in attrs
    tags = [tag for tag, _ in page.tags]
    assert tags.count("details") == tags.count("summary") > 0


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_has_enough_contrast(document, theme):
    colours = css_colours(render_report(document), theme)
    tinted = mixed(colours["pruned"], colours["paper"], 0.08)  # the judged model's rows
    grounds = [colours["paper"], colours["panel"], tinted]
    words = ["ink", "soft", "held", "missed", "undecided", "none", "pruned"]
    words += [f"series-{number}" for number in range(1, 7)]
    for name in words:
        for ground in grounds:
            # Labels of a picture stand on paper only.
            if not name.startswith("series") or ground == colours["paper"]:
                assert contrast(colours[name], ground) >= 4.5, (name, ground)
    assert contrast(colours["dense"], colours["paper"]) >= 3  # of marks: WCAG 1.4.11


def css_colours(html: str, theme: str) -> dict[str, tuple[float, ...]]:
    """Custom properties of the page in one theme, as red, green and blue from 0 to 1."""
    blocks = [part.split("}")[0] for part in html.split(":root {")[1:]]
    before = {"light": "", "dark": "prefers-color-scheme: dark", "print": "@media print"}[theme]
    heads = [part[-60:] for part in html.split(":root {")[:-1]]
    (block,) = [
        block
        for head, block in zip(heads, blocks, strict=True)
        if (before in head if before else "@media" not in head)
    ]
    pairs = re.findall(r"--([a-z0-9-]+): #([0-9a-f]{6})", block)
    return {name: tuple(bytes.fromhex(value)) for name, value in pairs}


def mixed(one, other, share):
    return tuple(share * a + (1 - share) * b for a, b in zip(one, other, strict=True))


def contrast(one, other) -> float:
    """WCAG 2.2, "contrast ratio"."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour) -> float:
    parts = [value / 255 for value in colour]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
