"""`examples/02-in-the-browser`: a real browser classifies as our ONNX Runtime does.

Each sentence is typed into the page of the example, and what the page then shows is compared with
the runner's answer to the same sentence. Chromium can reach nothing but the server of the test.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import AutoTokenizer

from cofi_deploy.arch import DenseShape, LayerArch
from cofi_deploy.export import word_bits
from cofi_deploy.export.calibration import calibration_from_file
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.exports import check_export
from cofi_deploy.serve.runner import open_runner
from tests.texts import LABELS, MAX_LENGTH, TEXTS, save_text_model, text_arch

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02-in-the-browser"
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "TIMEDOUT", "_TIMEOUT")
NEVER_TYPED = "\t\r\n\0\x07\x1b"  # a form changes line ends and drops what keys do not send
SENTENCES = tuple(text for text in TEXTS if not set(text) & set(NEVER_TYPED))
# Heads and widths as pruning leaves them; all but the second layer are wide enough for int8.
ARCH = text_arch(
    layers=(LayerArch(heads=5, ffn=77), LayerArch(heads=0, ffn=3), LayerArch(heads=4, ffn=40)),
    hidden=45,
    dense=DenseShape(layers=3, hidden=64, heads=8, ffn=128, head_size=8),
)
# Of scores from 0 to 1. WebAssembly sums in another order, so at int8 a number beside the edge of a
# step may be rounded the other way: that moved scores of a model for SST-2 by up to 0.005.
TOLERANCE = {"fp32": 1e-5, "int8": 5e-3, "small": 5e-3}  # small: int8 with a cut vocabulary

# Types every sentence into the page of every folder, and sends what the pages then show.
PROBE = """
const until = async is => {
  const end = Date.now() + 30000;
  while (!is() && Date.now() < end) await new Promise(done => setTimeout(done, 10));
};
const ask = async (name, sentences) => {
  const frame = document.createElement("iframe");
  frame.src = `${name}/index.html`;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const page = frame.contentDocument;
  const button = page.querySelector("button"), status = page.querySelector("[role=status]");
  await until(() => !status.textContent.startsWith("Loading"));
  const answers = [];
  for (const sentence of button.disabled ? [] : sentences) {
    page.querySelector("textarea").value = sentence;
    page.querySelector("table").replaceChildren();
    button.click();
    await until(() => !button.disabled);
    answers.push([...page.querySelectorAll("tr")].map(row =>
      [row.querySelector("th").textContent, row.querySelector("meter").value]));
  }
  const requests = frame.contentWindow.performance.getEntriesByType("resource");
  return {status: status.textContent, answers, requests: requests.map(each => each.name)};
};
const found = {};
for (const name of FOLDERS) {
  found[name] = await ask(name, SENTENCES).catch(error => ({status: `${error}`, answers: []}));
}
await fetch("found", {method: "POST", body: JSON.stringify(found)});
"""


@pytest.fixture(scope="module")
def example(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on PATH; it comes with Node.js")
    folder = tmp_path_factory.mktemp("example")
    for file in ("index.html", "classifier.js", "package.json"):
        shutil.copy(EXAMPLE / file, folder)
    flags = ("--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0")
    done = subprocess.run(
        ["npm", "install", *flags, "--fetch-timeout=60000"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if any(code in done.stderr for code in UNREACHABLE):
        pytest.skip("npm does not reach its registry")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pruned classifier in fp32, in int8 fitted to text, and with a cut vocabulary."""
    folder = tmp_path_factory.mktemp("exports")
    model = save_text_model("text-classification", folder / "model", arch=ARCH, seed=11)
    lines = folder / "lines.txt"
    lines.write_text("".join(f"{' '.join(text.split())}\n" for text in TEXTS), encoding="utf-8")
    text = calibration_from_file(lines, max_length=MAX_LENGTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_bits, "MAX_METRIC_DROP", 1.0)  # nothing was learnt that could be lost
        small = export_onnx(
            model, folder / "small", precision="int8", text=text, shrink_embeddings=True
        )
    return {
        "fp32": export_onnx(model, folder / "fp32"),
        "int8": export_onnx(model, folder / "int8", precision="int8", text=text),
        "small": small,
    }


@pytest.fixture(scope="module")
def seen(
    chromium: str,
    example: Path,
    exports: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the page shows for each export, and without one."""
    site = tmp_path_factory.mktemp("site")
    for name in (*exports, "empty"):
        shutil.copytree(example, site / name, ignore=shutil.ignore_patterns("node_modules"))
        (site / name / "node_modules").symlink_to(example / "node_modules")
        if name in exports:
            shutil.copytree(exports[name], site / name / "model")
    known = (
        f"const FOLDERS = {json.dumps([*exports, 'empty'])}, SENTENCES = {json.dumps(SENTENCES)};"
    )
    (site / "probe.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>probe</title><body>'
        f'<script type="module">{known}{PROBE}</script>',
        encoding="utf-8",
    )
    return browse(chromium, site)


class Handler(SimpleHTTPRequestHandler):
    """`python -m http.server`, which also takes what the probe found."""

    found: queue.Queue[dict[str, Any]]

    def do_POST(self) -> None:
        """Keep the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.found.put(json.loads(body))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def browse(chromium: str, site: Path) -> dict[str, Any]:
    handler = type("Kept", (Handler,), {"found": queue.Queue()})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=site)) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        (site / "chromium.log").open("w") as log,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [
                chromium,
                "--headless=new",
                "--no-sandbox",  # of no use as root, which containers are
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--enable-logging=stderr",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--remote-debugging-port=0",  # else it leaves at once
                f"--user-data-dir={profile}",
                f"http://127.0.0.1:{server.server_port}/probe.html",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            return handler.found.get(timeout=120)
        except queue.Empty:
            pytest.fail((site / "chromium.log").read_text(errors="replace")[-2000:])
        finally:
            browser.terminate()
            browser.wait(timeout=30)
            server.shutdown()


@pytest.fixture(scope="module")
def expected(exports: dict[str, Path]) -> dict[str, list[dict[str, float]]]:
    """The runner's scores of every sentence, by label."""
    return {name: scores_in_runner(directory) for name, directory in exports.items()}


def scores_in_runner(directory: Path) -> list[dict[str, float]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    answers = []
    with open_runner(directory, "onnxruntime-cpu", threads=1) as runner:
        for sentence in SENTENCES:
            encoded = tokenizer(
                sentence, truncation=True, max_length=MAX_LENGTH, return_tensors="np"
            )
            inputs = {name: encoded[name].astype(np.int64) for name in runner.input_names}
            (logits,) = runner.infer(inputs)["logits"].astype(np.float64)
            powers = np.exp(logits - logits.max())
            labels = LABELS["text-classification"]
            answers.append(dict(zip(labels, powers / powers.sum(), strict=True)))
    return answers


@pytest.mark.parametrize("artifact", TOLERANCE)
def test_the_page_answers_like_our_onnxruntime(artifact, seen, expected):
    page = seen[artifact]
    assert len(page["answers"]) == len(SENTENCES) > 5, page["status"]
    for sentence, shown, scores in zip(SENTENCES, page["answers"], expected[artifact], strict=True):
        assert dict(shown) == pytest.approx(scores, abs=TOLERANCE[artifact]), sentence
        label, score = shown[0]
        assert label == max(scores, key=scores.__getitem__), sentence
        assert score == max(score for _, score in shown)


def test_the_sentences_tell_labels_and_precisions_apart(exports, expected):
    """What the test above compares depends on the sentence, and int8 is no fp32."""
    winners = {max(scores, key=scores.__getitem__) for scores in expected["int8"]}
    assert len(winners) > 1
    products = [
        node.name
        for node in onnx.load(exports["int8"] / "model.onnx").graph.node
        if node.op_type == "DequantizeLinear" and node.name.endswith(".weight.numbers")
    ]
    assert len(products) == 10  # two layers; the last has neither keys nor values
    both = zip(expected["fp32"], expected["int8"], strict=True)
    apart = max(abs(exact[label] - lossy[label]) for exact, lossy in both for label in exact)
    assert apart > 2 * TOLERANCE["int8"]
    manifest = check_export(exports["small"])
    assert (manifest.options["word_bits"], manifest.options["rare_word_bits"]) == (6, 2)


def test_the_page_asks_nobody_else(seen):
    requests = seen["int8"]["requests"]
    assert any(address.endswith("model/model.onnx") for address in requests)
    assert all(address.startswith("http://127.0.0.1:") for address in requests)


def test_without_an_export_the_page_says_what_is_missing(seen):
    assert seen["empty"]["status"] == "model/export.json: 404 File not found"
    assert seen["empty"]["answers"] == []
