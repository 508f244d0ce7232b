"""What a repository needs, and the requests that its text models answer."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from cofi_deploy.errors import RepositoryError
from cofi_deploy.serve.triton_served import needs_of, sample_requests

ENCODER = """
name: "tiny"
backend: "{backend}"
max_batch_size: 8
instance_group [ {{ kind: {kind} count: 1 }} ]
"""
STEP = 'name: "tiny_tokenizer" backend: "python"'
TEXT = """
name: "tiny_text"
platform: "ensemble"
max_batch_size: {largest}
input [ {{ name: "text" data_type: TYPE_STRING dims: [ -1 ] }} ]
"""
QUESTION = """
name: "tiny_text"
platform: "ensemble"
max_batch_size: 0
input [
  { name: "question" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "context" data_type: TYPE_STRING dims: [ -1 ] }
]
"""


def write(repository: Path, **files: str) -> Path:
    for name, text in files.items():
        folder, _, other = name.partition("__")
        path = repository / folder / (f"configs/{other}.pbtxt" if other else "config.pbtxt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return repository


def test_needs_are_the_backends_of_every_configuration_without_the_ensemble(tmp_path: Path) -> None:
    repository = write(
        tmp_path,
        tiny=ENCODER.format(backend="openvino", kind="KIND_CPU"),
        tiny__onnxruntime=ENCODER.format(backend="onnxruntime", kind="KIND_CPU"),
        tiny__python=ENCODER.format(backend="python", kind="KIND_CPU"),
        tiny_tokenizer=STEP,
        tiny_text=TEXT.format(largest=8),
    )
    needs = needs_of(repository)
    assert needs.backends == {
        "tiny": {"": "openvino", "onnxruntime": "onnxruntime", "python": "python"},
        "tiny_tokenizer": {"": "python"},
    }
    assert not needs.gpu


@pytest.mark.parametrize(
    ("backend", "kind", "wants"),
    [
        ("tensorrt", "KIND_AUTO", True),
        ("onnxruntime", "KIND_GPU", True),
        ("onnxruntime", "KIND_AUTO", False),
    ],
)
def test_a_gpu_is_wanted_by_engines_and_where_the_configuration_says_so(
    backend: str, kind: str, wants: bool, tmp_path: Path
) -> None:
    repository = write(tmp_path, tiny=ENCODER.format(backend=backend, kind=kind))
    assert needs_of(repository).gpu is wants


def test_a_model_without_a_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match=r"empty/config\.pbtxt' is missing"):
        needs_of(tmp_path)


@pytest.mark.parametrize(("largest", "rows"), [(8, 2), (1, 1)])
def test_a_text_model_is_asked_as_many_sentences_as_it_takes(
    largest: int, rows: int, tmp_path: Path
) -> None:
    repository = write(tmp_path, tiny_text=TEXT.format(largest=largest), tiny_tokenizer=STEP)
    (request,) = sample_requests(repository)
    (tensor,) = request.body["inputs"]
    assert tensor["name"] == "text"
    assert tensor["shape"] == [rows, 1]
    assert tensor["datatype"] == "BYTES"
    assert len(tensor["data"]) == rows


def test_a_question_is_asked_with_its_context(tmp_path: Path) -> None:
    (request,) = sample_requests(write(tmp_path, tiny_text=QUESTION))
    question, context = request.body["inputs"]
    assert (question["name"], context["name"]) == ("question", "context")
    assert question["shape"] == context["shape"] == [1]
    assert question["data"][0].endswith("?")


def test_the_curl_line_carries_the_request_through_a_shell(tmp_path: Path) -> None:
    (request,) = sample_requests(write(tmp_path, tiny_text=TEXT.format(largest=8)))
    words = shlex.split(request.curl("http://127.0.0.1:8000"))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v2/models/tiny_text/infer"]
    assert words[3] == "-d"
    assert json.loads(words[4]) == request.body


def test_models_of_token_ids_get_no_sample(tmp_path: Path) -> None:
    encoder = ENCODER.format(backend="python", kind="KIND_CPU")
    assert sample_requests(write(tmp_path, tiny=encoder)) == []
