"""The report is one valid, self-contained page that shows every row, whatever the rows lack."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.serve.report import render_report

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


def arch_json(heads: int, ffn: int):
    layers = (LayerArch(heads=heads, ffn=ffn),) * 2
    sizes = DenseShape(layers=2, hidden=16, heads=4, ffn=32, head_size=4)
    return Arch(
        family="bert",
        vocab_size=99,
        max_positions=40,
        type_vocab_size=2,
        hidden=16,
        head_size=4,
        layers=layers,
        dense=sizes,
    ).to_json()


def accuracy_row(model, runtime, metric):
    return {
        "task": "sst2",
        "split": "validation",
        "examples": 872,
        "model": model,
        "parameters": 1_000_000,
        "realized_sparsity": 0.95,
        "size_bytes": 4 * 2**20,
        "metric_name": "accuracy",
        "metric": metric,
        "metric_dense": 0.93,
        "agreement": 0.999,
        "max_abs_logit_diff": 2e-6,
        "runtime": runtime,
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "wall_s": 3.25,
    }


def latency_row(model, runtime, p50, **more):
    return {
        "task": "sst2",
        "split": "validation",
        "model": model,
        "runtime": runtime,
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "batch_size": 1,
        "seq_len": 128,
        "p50_ms": p50,
        "p90_ms": p50 * 1.05,
        "p99_ms": p50 * 1.2,
        "sequences_per_s": 1000 / p50,
        **more,
    }


@pytest.fixture
def document():
    speedup = {"speedup": 12.8, "speedup_low": 12.5, "speedup_high": 13.1}
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "cofi-deploy verify runs/sst2/model",
        "git_commit": None,
        "machine": {"cpu": "A & B <fast>", "cpu_flags": ["avx2", "fma"], "gpu": None, "cores": 2},
        "versions": {"torch": "2.13.0"},
        "rows": [
            accuracy_row("dense", "onnxruntime-cpu", 0.93),
            accuracy_row("pruned", "onnxruntime-cpu", 0.9177),
            latency_row("dense", "onnxruntime-cpu", 91.23),
            latency_row("pruned", "onnxruntime-cpu", 7.127, **speedup),
        ],
        "verdict": {
            "ok": False,
            "sentence": "Missed: accuracy in onnxruntime-cpu drops by 1.23 points.",
            "claims": [
                {
                    "claim": "max_drop",
                    "asked": 1.0,
                    "outcome": "missed",
                    "sentence": "accuracy drops by 1.23 points, allowed: 1",
                },
                {
                    "claim": "min_speedup",
                    "asked": 8.0,
                    "outcome": "held",
                    "sentence": "12.8 times faster, asked: 8",
                },
            ],
        },
        "skipped": [{"runtime": "tensorrt", "reason": "the CUDA driver shows no NVIDIA GPU"}],
        "notes": ["a note & its <consequences>"],
        "dense": "dense",
        "members": ["pruned"],
        "judged": "pruned",
        "comparisons": [
            {
                "model": "pruned",
                "runtime": "onnxruntime-cpu",
                "kind": "text-classification",
                "test": {
                    "difference": -0.0123,
                    "low": -0.02,
                    "high": 0.001,
                    "only_first": 18,
                    "only_second": 7,
                    "p_value": 0.043,
                },
                "agreement": 0.98,
                "disagreements": 17,
                "lost": {
                    "count": 12,
                    "chosen": "all",
                    "examples": [
                        {
                            "id": "1",
                            "text": "<script>alert(1)</script> fine",
                            "text_pair": None,
                            "label": "positive",
                            "dense": "positive",
                            "pruned": "negative",
                        }
                    ],
                },
                "gained": {"count": 5, "chosen": "all", "examples": []},
                "both_wrong": 0,
            }
        ],
        "structures": {"dense": arch_json(4, 32), "pruned": arch_json(1, 3)},
        "latency_samples": [
            {
                "model": model,
                "runtime": "onnxruntime-cpu",
                "batch_size": 1,
                "seq_len": 128,
                "sorted_ms": [p50 * 0.98, p50, p50 * 1.2],
            }
            for model, p50 in (("dense", 91.2), ("pruned", 7.1))
        ],
    }


def test_the_verdict_is_the_first_sentence(document):
    page = parse(render_report(document))
    heading = page.text.index("Missed: accuracy in onnxruntime-cpu drops by 1.23 points.")
    assert heading < page.text.index("Accuracy")
    assert ("div", {"class": "verdict missed"}) in page.tags


def test_every_row_is_shown(document):
    shown = [[cell.strip() for cell in row] for row in parse(render_report(document)).rows]
    assert ["dense", "onnxruntime-cpu", "fp32", "0.9300"] in [row[:4] for row in shown]
    pruned = next(
        row for row in shown if row[:4] == ["pruned", "onnxruntime-cpu", "fp32", "0.9177"]
    )
    assert pruned[4:] == ["−1.23 points", "0.9990", "2e-06", "4.0 MiB", "1.00 M", "3.2"]  # noqa: RUF001
    timed = [row for row in shown if row[1] == "onnxruntime-cpu fp32"]
    assert [row[3:6] for row in timed] == [["91.2", "95.8", "109"], ["7.13", "7.48", "8.55"]]
    assert timed[1][6].split() == ["12.80×", "12.50–13.10"]  # noqa: RUF001


def test_the_page_needs_nothing_from_elsewhere(document):
    page = parse(render_report(document))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert all(not attrs.keys() & {"src", "href", "xlink:href"} for _, attrs in page.tags)
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
    assert "Only dense is right on 18 examples, only pruned on 7" in text
    assert "p = 0.043" in text


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
