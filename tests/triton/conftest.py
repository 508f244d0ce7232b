"""A real Triton server for tests: the one that pip installs, prepared once, on free ports.

`serve_repository` starts it on a directory, `repositories` has exports of tiny models to start it
on; copy one before changing it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cofi_deploy import api
from cofi_deploy.kinds import TaskKind
from cofi_deploy.serve.triton_command import Needs, ServerSettings
from cofi_deploy.serve.triton_environment import (
    TritonEnvironment,
    prepare_environment,
    unsupported_reason,
)
from cofi_deploy.serve.triton_launchers import plan_launch
from cofi_deploy.serve.triton_server import TritonServer, start_server
from tests.export.conftest import WriteModel, write_model

__all__ = ["write_model"]

MODEL_NAME = "tiny"
ServeRepository = Callable[..., TritonServer]
Repositories = Callable[..., Path]


@pytest.fixture(scope="session")
def triton_environment() -> TritonEnvironment:
    """The environment of the pip-shipped server, where `cofi-deploy serve` keeps it."""
    reason = unsupported_reason()
    if reason is not None:
        pytest.skip(reason)
    return prepare_environment(print)


@pytest.fixture
def serve_repository(
    triton_environment: TritonEnvironment, tmp_path: Path
) -> Iterator[ServeRepository]:
    """Start a server on a repository and wait until it is ready; stopped after the test.

    Keywords are those of `ServerSettings`; `needs`, `ready=False` (do not wait) and `log_file`
    are understood, too. Every model is started with its `configs/python.pbtxt`, where it has one.
    """
    with contextlib.ExitStack() as servers:

        def serve(
            repository: Path,
            *,
            needs: Needs | None = None,
            ready: bool = True,
            log_file: Path | None = None,
            **settings: Any,
        ) -> TritonServer:
            chosen = ServerSettings(**{**free_ports(), "poll_seconds": 1, **settings})
            needs = needs or Needs(backends={"any": {"": "absent", "python": "python"}})
            launch = plan_launch(repository, needs, chosen, server="pip")
            log = log_file or tmp_path / f"triton-{chosen.http_port}.log"
            server = servers.enter_context(start_server(launch, chosen, log))
            if ready:
                server.wait_until_ready()
            return server

        yield serve


@pytest.fixture(scope="session")
def repositories(write_model: WriteModel, tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    """The Triton export of a tiny model of a kind, made once; its name is `MODEL_NAME`."""
    made: dict[TaskKind, Path] = {}

    def export(kind: TaskKind = "text-classification") -> Path:
        if kind not in made:
            output = tmp_path_factory.mktemp("served") / "models"
            made[kind] = api.export(
                write_model(kind), format="triton", name=MODEL_NAME, output=output
            )
        return made[kind]

    return export


def free_ports() -> dict[str, int]:
    """Three ports that nothing listens on, by their names in `ServerSettings`."""
    with contextlib.ExitStack() as sockets:
        names = ("http_port", "grpc_port", "metrics_port")
        probes = {name: sockets.enter_context(socket.socket()) for name in names}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in probes.items()}
