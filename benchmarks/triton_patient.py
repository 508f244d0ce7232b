"""What is served, asked and counted while something goes wrong.

In: a model directory, its `Case`s and a scratch directory. Out: repositories with the model, good
traffic against it, and malformed requests sent from threads. Next: `triton_faults.py`,
`triton_file_faults.py`.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from triton_cases import Cases
from triton_malformed import Doors, Malformed, Target
from triton_service import MAX_BATCH_SIZE, add_model
from triton_traffic import Counts, Traffic, grpc_door, http_door

from cofi_deploy.loading import load
from cofi_deploy.serve.triton_server import TritonServer

NAME = "model"
ANSWERED = "answered"

Row = dict[str, Any]
Outcome = Counter[tuple[str, str]]  # kind of request, words of the refusal


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is served while something goes wrong.

    Attributes:
        model: A pruned model directory.
        cases: Its requests.
        scratch: An empty directory for repositories and logs.
        requests: Malformed ones.
        seconds: Of load around every other fault.
    """

    model: Path
    cases: Cases
    scratch: Path
    requests: int = 10_000
    seconds: float = 8.0

    def repository(self, name: str, parent: Path | None = None) -> Path:
        """A new repository with the model in it."""
        repository = (parent or self.scratch) / name
        add_model(repository, NAME, self.model)
        return repository

    def traffic(self, ports: dict[str, int], *, retry_s: float = 0.0) -> Traffic:
        """Clients of all four ways in: token ids and text, gRPC and HTTP."""
        grpc, http_ = (f"127.0.0.1:{ports[name]}" for name in ("grpc_port", "http_port"))
        ids, text = self.cases.ids, self.cases.text
        return Traffic(
            [
                (partial(grpc_door, grpc, NAME), ids),
                (partial(grpc_door, grpc, f"{NAME}_text"), text),
                (partial(http_door, http_, NAME), ids[::-1]),
                (partial(http_door, http_, f"{NAME}_text"), text[::-1]),
            ],
            retry_s=retry_s,
        )

    def target(self) -> Target:
        """What malformed requests are aimed at."""
        arch = load(self.model).config.structure
        return Target(
            model=NAME,
            vocab_size=arch.vocab_size,
            max_positions=arch.max_positions,
            max_batch_size=MAX_BATCH_SIZE,
        )


def send(server: TritonServer, requests: Sequence[Malformed], clients: int) -> Outcome:
    """Send from threads; how often each kind was turned down in which words."""
    outcome: Outcome = Counter()
    waiting = list(reversed(requests))
    lock = threading.Lock()

    def client() -> None:
        doors = Doors(server.grpc_address, server.http_address)
        while True:
            with lock:
                if not waiting:
                    break
                request = waiting.pop()
            try:
                words = doors.refusal(request) or ANSWERED
            except OSError as error:
                words = type(error).__name__
            with lock:
                outcome[request.name, words] += 1
        doors.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def counted(good: Counts) -> Row:
    """The keys of a row that count good requests."""
    return {**asdict(good), "errors": dict(good.errors)}


def serves(server: TritonServer) -> bool:
    """Whether the text ensemble is ready.

    Triton's own `/v2/health/ready` says no while any version loads, and for good after one that
    could not be loaded, though the version before goes on answering.
    """
    try:
        status, _ = server.request("GET", f"/v2/models/{NAME}_text/ready")
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def is_clean(good: Counts) -> bool:
    """Whether every good request was answered, and rightly."""
    return good.answered > 0 and not good.wrong and not good.lost
