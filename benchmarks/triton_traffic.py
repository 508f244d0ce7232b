"""Good traffic while something goes wrong: clients that check every answer, and may ask again.

In: the addresses of a server and `Case`s. Out: `Counts`: what was sent, answered, wrong and lost.
Next: `triton_faults.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from triton_load import Arrays, Case
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

TIMEOUT_S = 10.0
PAUSE_S = 0.05  # before a client asks again

# Asks one case and returns the outputs; raises where there is no answer.
Ask = Callable[[Case], Arrays]
NoAnswer = (InferenceServerException, http.client.HTTPException, OSError)


@dataclass(kw_only=True)
class Counts:
    """What came of good requests.

    A request is lost when it had no answer, however often it was asked again. ``retried`` counts
    the attempts that failed and were followed by another.
    """

    sent: int = 0
    answered: int = 0
    wrong: int = 0
    lost: int = 0
    retried: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0


class Traffic:
    """Clients in threads, each with one request in flight; use as a context manager.

    Args:
        doors: Opens one client each.
        retry_s: For so long a request without an answer is sent again; 0: never.
    """

    def __init__(
        self,
        doors: Sequence[
            tuple[Callable[[], contextlib.AbstractContextManager[Ask]], Sequence[Case]]
        ],
        *,
        retry_s: float = 0.0,
    ) -> None:
        self.counts = Counts()
        self._doors = doors
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=door) for door in doors]

    def __enter__(self) -> Counts:
        """Start; the counts go on changing until the end of the block."""
        for thread in self._threads:
            thread.start()
        return self.counts

    def __exit__(self, *_: object) -> None:
        """Wait for what is in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(
        self, door: Callable[[], contextlib.AbstractContextManager[Ask]], cases: Sequence[Case]
    ) -> None:
        with door() as ask:
            for case in itertools.cycle(cases):
                if self._stop.is_set():
                    return
                self._ask(ask, case)

    def _ask(self, ask: Ask, case: Case) -> None:
        with self._lock:
            self.counts.sent += 1
        began = time.perf_counter()
        while True:
            try:
                right = case.is_right(ask(case))
            except NoAnswer as error:
                gone_s = time.perf_counter() - began
                with self._lock:
                    self.counts.errors[_words(error)] += 1
                    self.counts.retried += gone_s < self._retry_s
                    self.counts.lost += gone_s >= self._retry_s
                if gone_s >= self._retry_s:
                    return
                time.sleep(PAUSE_S)
                continue
            with self._lock:
                self.counts.answered += 1
                self.counts.wrong += not right
                took_ms = (time.perf_counter() - began) * 1e3
                self.counts.slowest_ms = max(self.counts.slowest_ms, took_ms)
            return


@contextlib.contextmanager
def grpc_door(address: str, model: str) -> Iterator[Ask]:
    """A gRPC client of a model."""
    with InferenceServerClient(address) as server:

        def ask(case: Case) -> Arrays:
            answer = server.infer(model, case.infer_inputs(), client_timeout=TIMEOUT_S)
            return {name: answer.as_numpy(name) for name in case.answer}

        yield ask


@contextlib.contextmanager
def http_door(address: str, model: str) -> Iterator[Ask]:
    """An HTTP client of a model, with JSON."""

    def ask(case: Case) -> Arrays:
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/models/{model}/infer", _body(case))
            answer = connection.getresponse()
            content = json.loads(answer.read())
        if answer.status != http.client.OK:
            raise InferenceServerException(str(content), status=str(answer.status))
        return {item["name"]: _array(item) for item in content["outputs"]}

    yield ask


def _body(case: Case) -> bytes:
    inputs = []
    for name, array in case.inputs.items():
        strings = array.dtype == np.object_
        data = [item.decode() for item in array.flat] if strings else array.ravel().tolist()
        data_type = "BYTES" if strings else "INT64"
        inputs.append({"name": name, "shape": array.shape, "datatype": data_type, "data": data})
    return json.dumps({"inputs": inputs}).encode()


def _array(output: dict[str, Any]) -> Any:
    data = output["data"]
    if output["datatype"] == "BYTES":
        data = [item.encode() for item in data]
    return np.array(data, triton_to_np_dtype(output["datatype"])).reshape(output["shape"])


def _words(error: Exception) -> str:
    if isinstance(error, InferenceServerException):
        return f"{error.status()}: {error.message()}"[:120]
    return type(error).__name__
