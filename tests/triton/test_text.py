"""Text in, answer out, on the real server: over HTTP, with the answers that PyTorch gives."""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cofi_deploy.export.triton import export_triton
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.kinds import TASK_KINDS
from tests.texts import PAIRS, QUESTIONS, TEXTS, save_text_model
from tests.triton_models.chain import Chain, strings
from tests.triton_models.conftest import open_served, triton_utils

__all__ = ["open_served", "triton_utils"]

pytestmark = pytest.mark.triton

REQUESTS = {
    "text-classification": [{"text": [[text] for text in TEXTS]}, {"text": [list(PAIRS[0])]}],
    "text-regression": [{"text": [[text] for text in TEXTS]}, {"text": [list(PAIRS[0])]}],
    "token-classification": [{"text": [[text] for text in TEXTS]}, {"text": [["\x07"]]}],
    "question-answering": [
        {"question": [question], "context": [context]} for question, context in QUESTIONS
    ],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_text_model(kind, folder / kind) for kind in TASK_KINDS}


def infer(server, name, texts):
    """Status and answer of an HTTP request, written as a user of curl would write it."""
    inputs = [
        {"name": key, "shape": strings(rows).shape, "datatype": "BYTES", "data": rows}
        for key, rows in texts.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    status, answer = server.request("POST", f"/v2/models/{name}_text/infer", body)
    return status, json.loads(answer)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_server_answers_text_as_the_model_does(
    models, tmp_path, serve_repository, open_served, kind
):
    options = TritonOptions(backend="python")
    export_triton(models[kind], tmp_path / "repository", name="small", options=options)
    server = serve_repository(tmp_path / "repository")
    chain = Chain(models[kind], tmp_path / "chain", open_served, options)

    for texts in REQUESTS[kind]:
        status, answer = infer(server, "small", texts)
        assert status == 200, answer
        expected = chain.ask(**{name: strings(rows) for name, rows in texts.items()})
        got = {output["name"]: output for output in answer["outputs"]}
        assert set(got) == set(expected)
        for name, array in expected.items():
            assert got[name]["shape"] == list(array.shape)
            if name == "scores":
                assert got[name]["data"] == pytest.approx(array.ravel().tolist(), abs=1e-5)
            elif array.dtype == object:
                assert got[name]["data"] == [text.decode() for text in array.ravel()]
            else:
                assert got[name]["data"] == array.ravel().tolist()


def test_malformed_strings_never_reach_the_answers_of_others(models, tmp_path, serve_repository):
    options = TritonOptions(backend="python")
    model = models["text-classification"]
    export_triton(model, tmp_path / "repository", name="small", options=options)
    server = serve_repository(tmp_path / "repository")
    _, alone = infer(server, "small", {"text": [["no"]]})
    expected = {output["name"]: output["data"] for output in alone["outputs"]}
    malformed = [
        struct.pack("<I", 65535) + b"abcd",  # says that it is longer than it is
        struct.pack("<I", 2**32 - 1) + b"abcd",
        b"\x01\x00",  # half a length
        struct.pack("<I", 2) + b"\xff\xfe",  # not UTF-8
        struct.pack("<I", 0),  # empty
    ]

    def ask(index):
        if index % 3:
            return infer(server, "small", {"text": [["no"]]})
        return send_bytes(server, malformed[index // 3 % len(malformed)])

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(600)))

    for index, (status, answer) in enumerate(answers):
        if index % 3:
            assert status == 200, answer
            got = {output["name"]: output["data"] for output in answer["outputs"]}
            assert got["labels"] == expected["labels"]
            assert got["scores"] == pytest.approx(expected["scores"], abs=1e-6)
        else:
            assert status == 400
            assert "error" in answer


def send_bytes(server, raw):
    """Send one string as the bytes that stand for it on the wire."""
    sizes = {"binary_data_size": len(raw)}
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "parameters": sizes}
    header = json.dumps({"inputs": [tensor]}).encode()
    connection = http.client.HTTPConnection(server.http_address, timeout=60)
    with contextlib.closing(connection):
        length = {"Inference-Header-Content-Length": str(len(header))}
        connection.request("POST", "/v2/models/small_text/infer", header + raw, length)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
