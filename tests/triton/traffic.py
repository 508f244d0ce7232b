"""Steady requests to one served classifier: by gRPC and HTTP, as token ids and as text.

Every answer is compared with what ONNX Runtime computes from the version that gave it.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import tritonclient.grpc as triton

from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.serve.triton_server import TritonServer
from tests.export.conftest import LABELS, tiny_tokenizer

TEXTS = ("a fine day", "bad", "what a long story that was", "so so")
CLASSES = LABELS["text-classification"]
TOLERANCE = 1e-4


class Traffic:
    """Threads that ask until they are stopped, and remember everything that was not right."""

    def __init__(self, server: TritonServer, name: str, threads: int = 2) -> None:
        """``threads`` for each of the four ways to ask."""
        self.errors: list[str] = []
        self.answers: Counter[tuple[str, int]] = Counter()  # way, version that answered
        self._server, self._name = server, name
        self._expected: dict[int, np.ndarray] = {}  # version -> logits of every text
        self._lock, self._stop = threading.Lock(), threading.Event()
        ways = (self._grpc_ids, self._http_ids, self._grpc_text, self._http_text)
        self._threads = [threading.Thread(target=self._ask, args=(way,)) for way in ways * threads]

    def expect(self, version: int, folder: Path) -> None:
        """What the version in ``folder`` answers; call it before a server can serve it."""
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        logits = [session.run(None, _encoded(text))[0][0] for text in TEXTS]
        self._expected[version] = np.stack(logits)  # (texts, labels)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_answers()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, version: int | None = None, count: int = 50) -> None:
        """Return when so many more answers came, of one version where one is named."""
        target = self._count(version) + count
        deadline = time.monotonic() + 60
        while self._count(version) < target:
            assert not self.errors, self.errors[:5]
            assert time.monotonic() < deadline, f"no more answers of version {version}"
            time.sleep(0.05)

    def _count(self, version: int | None) -> int:
        with self._lock:
            answers = self.answers.items()
            return sum(n for (_, number), n in answers if version in {None, number})

    def _ask(self, way: Any) -> None:
        client = triton.InferenceServerClient(self._server.grpc_address)
        index = 0
        while not self._stop.is_set():
            index = (index + 1) % len(TEXTS)
            try:
                problem, version = way(client, index)
            except (triton.InferenceServerException, HTTPError, OSError) as error:
                body = error.read().decode() if isinstance(error, HTTPError) else str(error)
                problem, version = body, 0
            with self._lock:
                self.answers[way.__name__, version] += 1
                if problem:
                    self.errors.append(f"{way.__name__}: {problem}")
        client.close()

    def _grpc_ids(self, client: Any, index: int) -> tuple[str, int]:
        tensors = []
        for name, array in _encoded(TEXTS[index]).items():
            tensor = triton.InferInput(name, array.shape, "INT64")
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        answer = client.infer(self._name, tensors)
        version = int(answer.get_response().model_version)
        return self._logits_problem(version, index, answer.as_numpy("logits")[0]), version

    def _http_ids(self, _: Any, index: int) -> tuple[str, int]:
        tensors = [
            {"name": name, "shape": array.shape, "datatype": "INT64", "data": array.tolist()}
            for name, array in _encoded(TEXTS[index]).items()
        ]
        answer = self._post(self._name, tensors)
        version = int(answer["model_version"])
        return self._logits_problem(version, index, answer["outputs"][0]["data"]), version

    def _grpc_text(self, client: Any, index: int) -> tuple[str, int]:
        tensor = triton.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[TEXTS[index].encode()]], dtype=object))
        answer = client.infer(f"{self._name}_text", [tensor])
        labels = [label.decode() for label in answer.as_numpy("labels")[0]]
        return self._text_problem(index, labels, answer.as_numpy("scores")[0])

    def _http_text(self, _: Any, index: int) -> tuple[str, int]:
        tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [TEXTS[index]]}
        answer = self._post(f"{self._name}_text", [tensor])
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return self._text_problem(index, outputs["labels"], outputs["scores"])

    def _post(self, model: str, tensors: list[dict[str, Any]]) -> Any:
        url = f"{self._server.http_url}/v2/models/{model}/infer"
        request = Request(url, data=json.dumps({"inputs": tensors}).encode())
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _logits_problem(self, version: int, index: int, logits: Any) -> str:
        if version not in self._expected:
            return f"answered by version {version}, which nobody added"
        difference = float(np.abs(self._expected[version][index] - logits).max())
        return f"version {version} is off by {difference}" if difference > TOLERANCE else ""

    def _text_problem(self, index: int, labels: list[str], scores: Any) -> tuple[str, int]:
        """The ensemble's answer does not say which version of the encoder it is from."""
        got = dict(zip(labels, map(float, scores), strict=True))
        for version, expected in self._expected.items():
            powers = np.exp(expected[index] - expected[index].max())
            right = dict(zip(CLASSES, powers / powers.sum(), strict=True))
            if all(abs(got[label] - right[label]) < TOLERANCE for label in CLASSES):
                return "", version
        return f"{got} is the answer of no version", 0


@functools.cache
def _encoded(text: str) -> dict[str, np.ndarray]:
    encoded = tiny_tokenizer()(text, return_tensors="np", return_token_type_ids=True)
    return {name: encoded[name].astype(np.int64) for name in INPUT_NAMES}
