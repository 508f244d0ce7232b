"""The report in a real browser: no errors, no requests, no overflow; both themes; print."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cofi_deploy.serve.bench import BenchSettings
from cofi_deploy.serve.latency import OperatingPoint, Schedule
from cofi_deploy.serve.report import render_report
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verify import VerifySettings, verify
from tests.serve.report_documents import family_document, training_steps

pytestmark = pytest.mark.e2e

WIDTHS = (390, 768, 1400)
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}

# Opens everything that opens, measures every frame, and leaves the result in the page.
PROBE = """
const found = [];
const broken = [];
addEventListener("error", event => broken.push(event.message));
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow;
    page.querySelectorAll("details").forEach(each => each.open = true);
    const root = page.documentElement;
    const small = [...page.querySelectorAll("svg.chart text")]
      .filter(each => each.getBoundingClientRect().height < 6).length;
    const cut = [...page.querySelectorAll("svg.chart")].flatMap(each => {
      const box = each.getBoundingClientRect();
      return [...each.querySelectorAll("text")].filter(text => {
        const own = text.getBoundingClientRect();
        return own.left < box.left - 2 || own.right > box.right + 2;
      }).map(text => text.textContent);
    });
    found.push({
      name: frame.title, width: view.innerWidth, room: root.clientWidth, needed: root.scrollWidth,
      small, cut,
      paper: view.getComputedStyle(page.body).backgroundColor,
      requests: view.performance.getEntriesByType("resource").map(each => each.name),
      images: page.querySelectorAll("svg[role=img]").length,
    });
  }
  document.getElementById("found").textContent = JSON.stringify({found, broken});
});
"""


@pytest.fixture(scope="module")
def pages(subjects, task, tmp_path_factory) -> dict[str, str]:
    """A report as `verify` writes it, and one with everything that a document may hold."""
    out = tmp_path_factory.mktemp("report")
    metrics = out / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(step) + "\n" for step in training_steps()))
    settings = VerifySettings(
        bench=BenchSettings(
            runtimes=("torch", "onnxruntime-cpu", "tensorrt"),
            points=(OperatingPoint.parse("2x8"), OperatingPoint.parse("1xtask")),
            threads=1,
            schedule=Schedule(min_repeats=3, max_seconds=0.0),
            fresh_process=False,
        ),
        limit=40,
        metrics_file=metrics,
    )
    members = [
        Subject(label=name, artifacts=subjects["pruned"].artifacts) for name in ("s60", "s95")
    ]
    real = verify(subjects["dense"], members, task, settings, out).report_file
    return {
        "real": real.read_text(encoding="utf-8"),
        "everything": render_report(family_document(), training_steps()),
    }


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, chromium, pages, tmp_path_factory) -> dict[str, Any]:
    """What the browser found in every page at every width, and what it said meanwhile."""
    folder = tmp_path_factory.mktemp(request.param)
    frames = "".join(
        f'<iframe title="{name}" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    (folder / "probe.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>probe</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="color-scheme" content="light dark"><script>{PROBE}</script>'
        f'<body>{frames}<pre id="found"></pre></body>',
        encoding="utf-8",
    )
    scheme = {"dark": 0, "light": 1}[request.param]
    done = run(
        chromium,
        folder,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--enable-logging=stderr",
        "--dump-dom",
        (folder / "probe.html").as_uri(),
    )
    match = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {
        **json.loads(html.unescape(match.group(1))),
        "console": console,
        "theme": request.param,
    }


def run(chromium: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            chromium,
            "--headless=new",
            "--no-sandbox",  # of no use as root, which containers are
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_nothing_is_wider_than_the_page(seen):
    assert [(each["name"], each["width"]) for each in seen["found"]] == [
        (name, width) for name in ("real", "everything") for width in WIDTHS
    ]
    for each in seen["found"]:
        assert each["needed"] <= each["room"], each


def test_the_browser_has_nothing_to_complain_about_and_fetches_nothing(seen):
    assert seen["console"] == []
    assert seen["broken"] == []
    assert [each["requests"] for each in seen["found"]] == [[]] * 6


def test_the_theme_is_the_readers(seen):
    assert {each["paper"] for each in seen["found"]} == {PAPER[seen["theme"]]}


def test_text_in_pictures_is_whole_and_not_tiny_on_any_screen(seen):
    for each in seen["found"]:
        assert each["images"] > 5
        assert each["cut"] == [], each
        assert each["small"] == 0, each


def test_a_page_that_errs_is_noticed(chromium, tmp_path):
    """The tests above would see a request, and a script's error."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>bad</title>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<img alt='' src='missing.png'>"
    )
    done = run(chromium, tmp_path, "--enable-logging=stderr", "--dump-dom", page.as_uri())
    assert "CONSOLE" in done.stderr
    assert "missing.png" in done.stderr


def test_it_prints(chromium, pages, tmp_path):
    for name, page in pages.items():
        source, printed = tmp_path / f"{name}.html", tmp_path / f"{name}.pdf"
        source.write_text(page, encoding="utf-8")
        run(chromium, tmp_path, f"--print-to-pdf={printed}", source.as_uri())
        data = printed.read_bytes()
        assert data.startswith(b"%PDF-")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 40
