"""ONNX exports open in Optimum's `ORTModelFor...` classes, in an environment that has them.

Optimum holds transformers below 4.58, so it gets a virtual environment of its own; torch, numpy and
ONNX Runtime in it are those of the running one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cofi_deploy.arch import LayerArch
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import TaskKind, output_names
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.runner import open_runner
from tests.builders import random_inputs
from tests.texts import LABELS, save_text_model, text_arch

pytestmark = pytest.mark.slow

REQUIREMENTS = ("transformers==4.57.*", "optimum~=2.1.0", "optimum-onnx==0.1.0")
# Fewer retries than pip's own five: without a network they would take minutes.
PIP_OPTIONS = ("--only-binary=:all:", "--no-compile", "--retries=1", "--disable-pip-version-check")
READER = Path(__file__).with_name("optimum_reader.py")

SENTENCE = ("Anna and Bob went to New York City with Karl in Berlin.",)
QUESTION = ("Who went to Berlin?", "Anna and Bob went to New York City, Karl to Berlin.")
MAX_ANSWER_TOKENS = 15  # what the pipeline of transformers allows


@dataclass(frozen=True)
class Case:
    kind: TaskKind
    precision: str = "fp32"
    structure: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.precision}"

    @property
    def text(self) -> tuple[str, ...]:
        return QUESTION if self.kind == "question-answering" else SENTENCE


WIDE = {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 32}  # what int8 gains from
CASES = (*(Case(kind) for kind in LABELS), Case("text-classification", "int8", WIDE))


@dataclass(frozen=True)
class Read:
    """What the other environment made of the exports in ``folder``."""

    folder: Path
    loaded: dict[str, Any]
    answers: dict[str, dict[str, Any]]

    def logits(self, case: Case) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{case.name}.logits.npz") as file:
            return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment with Optimum; its 160 MB go away with the module."""
    folder = tmp_path_factory.mktemp("optimum") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # Added behind its own packages: pip installs only what is wanted in another version.
    outer = "\n".join(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    (Path(paths["purelib"]) / "outer.pth").write_text(outer, "utf-8")
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install"]
    done = subprocess.run(
        [*pip, *PIP_OPTIONS, *REQUIREMENTS], capture_output=True, text=True, check=False
    )
    if "(from versions: none)" in done.stderr:
        shutil.rmtree(folder)
        pytest.skip(f"pip finds no package index to fetch {', '.join(REQUIREMENTS)} from")
    assert done.returncode == 0, done.stderr
    yield interpreter
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def read(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Every case, exported here and read there."""
    folder = tmp_path_factory.mktemp("exports")
    for case in CASES:
        model = folder / "models" / case.name
        save_text_model(case.kind, model, arch=text_arch(**case.structure))
        export_onnx(model, folder / case.name, precision=case.precision)
        np.savez(folder / f"{case.name}.npz", **inputs_of())
    cases = [{"name": case.name, "kind": case.kind, "text": case.text} for case in CASES]
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    done = subprocess.run(
        [python, "-I", READER, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Read(folder, **json.loads((folder / "answers.json").read_text("utf-8")))


def inputs_of() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in random_inputs(vocabulary=100).items()}


def ours(directory: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_runner(directory, "onnxruntime-cpu", threads=1) as runner:
        return runner.infer(inputs)


def of_text(directory: Path, text: tuple[str, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """Our tokens of a text, and our logits of them."""
    encoded = load_tokenizer(directory)(
        *text, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    return encoded, ours(directory, {name: np.array([encoded[name]]) for name in names})


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_answers_in_optimum_as_in_our_runner(case, read):
    expected, got = ours(read.folder / case.name, inputs_of()), read.logits(case)
    assert tuple(got) == output_names(case.kind)
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_tokenizer_gives_the_same_ids_in_transformers_4(case, read):
    encoded, _ = of_text(read.folder / case.name, case.text)
    assert read.answers[case.name]["ids"] == encoded["input_ids"]


def test_the_int8_export_computes_on_bytes(read):
    assert check_export(read.folder / CASES[-1].name).options["int8_products"] > 0


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind == "text-classification"], ids=lambda c: c.name
)
def test_a_pipeline_names_the_class_and_its_probability(case, read):
    _, outputs = of_text(read.folder / case.name, case.text)
    (scores,) = softmax(outputs["logits"])
    (answer,) = read.answers[case.name]["answer"]
    assert answer["label"] == LABELS[case.kind][scores.argmax()]
    assert answer["score"] == pytest.approx(scores.max(), abs=1e-5)


def test_a_pipeline_gives_the_value_of_a_regression_as_it_is(read):
    case = Case("text-regression")
    _, outputs = of_text(read.folder / case.name, case.text)
    (answer,) = read.answers[case.name]["answer"]
    assert answer["score"] == pytest.approx(outputs["logits"].item(), abs=1e-5)


def test_a_pipeline_labels_every_token_with_its_place_in_the_text(read):
    case = Case("token-classification")
    encoded, outputs = of_text(read.folder / case.name, case.text)
    labels, expected = LABELS[case.kind], []
    for index, scores in enumerate(softmax(outputs["logits"][0])):
        label = labels[scores.argmax()]
        if label != "O" and not encoded["special_tokens_mask"][index]:
            expected.append((label, *encoded["offset_mapping"][index], scores.max()))
    got = read.answers[case.name]["answer"]
    assert [(item["entity"], item["start"], item["end"]) for item in got] == [
        item[:3] for item in expected
    ]
    np.testing.assert_allclose(
        [item["score"] for item in got], [item[3] for item in expected], atol=1e-5
    )


def test_a_pipeline_finds_the_answer_of_highest_probability(read):
    case = Case("question-answering")
    encoded, outputs = of_text(read.folder / case.name, case.text)
    # The pipeline shares probability among the context and [CLS], which means "no answer".
    allowed = np.array([part == 1 for part in encoded.sequence_ids(0)])
    allowed[0] = True
    start, end = (
        softmax(np.where(allowed, outputs[name][0], -np.inf)) for name in output_names(case.kind)
    )
    start[0] = end[0] = 0.0
    spans = np.tril(np.triu(np.outer(start, end)), MAX_ANSWER_TOKENS - 1)
    first, last = np.unravel_index(spans.argmax(), spans.shape)
    got, offsets = read.answers[case.name]["answer"], encoded["offset_mapping"]
    assert (got["start"], got["end"]) == (offsets[first][0], offsets[last][1])
    assert got["answer"] == case.text[1][got["start"] : got["end"]]
    assert got["score"] == pytest.approx(spans.max(), abs=1e-5)


def test_nothing_of_ours_was_needed_to_read_them(read):
    assert read.loaded["cofi_deploy"] is False
    assert read.loaded["transformers"].startswith("4.57.")
