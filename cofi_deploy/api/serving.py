"""`serve`: a model repository, a Triton server, and what it serves.

The repository is checked before anything is started or installed. The server ends when the `with`
block is left, and when this process dies.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cofi_deploy.api.places import find_model
from cofi_deploy.caches import cache_root
from cofi_deploy.errors import RunnerError, UsageError
from cofi_deploy.serve.triton_command import LOCAL_HOSTS, Launch, Server, ServerSettings
from cofi_deploy.serve.triton_launchers import plan_launch
from cofi_deploy.serve.triton_log import ModelNews, explain
from cofi_deploy.serve.triton_ports import check_ports
from cofi_deploy.serve.triton_served import (
    SampleRequest,
    needs_of,
    remove_compiled_code,
    sample_requests,
)
from cofi_deploy.serve.triton_server import READY_TIMEOUT_S, TritonServer, start_server
from cofi_deploy.triton_repository import check_repository

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
_SERVER_WORDS: Mapping[Server, str] = {
    "tritonserver": "tritonserver on PATH",
    "container": "a container",
    "pip": "the server that pip installs",
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A repository and the server that runs from it."""

    repository: Path
    server: TritonServer
    requests: tuple[SampleRequest, ...]

    def to_json(self) -> dict[str, Any]:
        """What `cofi-deploy serve` prints for programs."""
        server = self.server
        return {
            "repository": str(self.repository),
            "server": server.launch.server,
            "pid": server.pid,
            "http": server.http_url,
            "grpc": server.grpc_address,
            "metrics": server.metrics_url,
            "log": str(server.log_file),
            "models": server.models(),
            "requests": {
                request.model: {"url": server.http_url + request.path, "body": request.body}
                for request in self.requests
            },
        }

    def describe(self) -> str:
        """The same for a person, with the lines to paste."""
        server = self.server
        lines = [
            f"serving {self.repository} with {_SERVER_WORDS[server.launch.server]}",
            f"  HTTP     {server.http_url}",
            f"  gRPC     {server.grpc_address}",
            f"  metrics  {server.metrics_url}",
            f"  log      {server.log_file}",
        ]
        if server.launch.config_name:
            lines.append(
                f"  models   with configs/{server.launch.config_name}.pbtxt: this server, or its "
                "GPU, cannot run what config.pbtxt names"
            )
        if self.requests:
            lines += ["", "ask it:", *(request.curl(server.http_url) for request in self.requests)]
        return "\n".join([*lines, "", "Ctrl-C stops it"])

    def wait(self, say: Say = logger.info) -> None:
        """Stay until Ctrl-C, or until the server ends by itself.

        Args:
            say: Called with a line whenever a version is loaded, refused or unloaded.

        Raises:
            RunnerError: The server ended; carries Triton's own words.
        """
        news = ModelNews()
        news.read(self.server.new_log_text())  # what it said while it started is no news

        def tell() -> None:
            for line in news.read(self.server.new_log_text()):
                say(line)

        self.server.wait(each_second=tell)


@contextlib.contextmanager
def serve(
    repository: Path | None = None,
    *,
    server: Server | Literal["auto"] = "auto",
    settings: ServerSettings | None = None,
    log: Path | None = None,
    ready_timeout: float = READY_TIMEOUT_S,
    say: Say = logger.info,
) -> Iterator[Served]:
    """Start Triton on a repository, and stop it at the end of the `with` block.

    Call it from the main thread: the server ends with the thread that started it.

    Args:
        repository: A model repository, or a run: its Triton export. None: the newest run's.
        server: `tritonserver` on PATH, `container`, `pip`, or the first of them that is here.
        settings: Address, ports, control of versions.
        log: Gets what the server says; by default `logs/triton-<port>.log` in the cache directory.
        ready_timeout: Seconds until every model must be ready.
        say: Called with a line for a person about what takes long.

    Yields:
        The repository, with its server ready.

    Raises:
        CofiDeployError: See errors.py; nothing is left running.
    """
    settings = settings or ServerSettings()
    place = find_repository(repository)
    log = (log or cache_root() / "logs" / f"triton-{settings.http_port}.log").absolute()
    _check_log(log, place)
    _check(place, server, settings)
    check_ports(settings)  # before minutes are spent on an installation
    launch = plan_launch(place, needs_of(place), settings, server=server, install=say)
    say(f"starting {_SERVER_WORDS[launch.server]} on {place}; its log: {log}")
    if launch.server == "container":
        say(launch.shell_lines()[-1])
    with start_server(launch, settings, log, say=say) as started:
        started.wait_until_ready(ready_timeout, say=say)
        requests = tuple(sample_requests(place))
        for request in requests:
            _check_answer(started, request)
        yield Served(repository=place, server=started, requests=requests)


def serve_command(
    repository: Path | None = None,
    *,
    server: Server | Literal["auto"] = "auto",
    settings: ServerSettings | None = None,
) -> list[str]:
    """The lines that start the same server by hand; nothing is started or installed.

    Raises:
        CofiDeployError: As `serve`.
    """
    settings = settings or ServerSettings()
    place = find_repository(repository)
    return _check(place, server, settings).shell_lines()


def find_repository(path: Path | None) -> Path:
    """What the user typed as REPOSITORY: a directory of models, a run, or nothing.

    Raises:
        UsageError: There is no such directory, or the run has no Triton export.
    """
    if path is not None and path.is_dir() and not (path / "run.json").is_file():
        return path.resolve()
    if path is not None and not path.is_dir():
        raise UsageError(
            f"{str(path)!r} is no directory; name a model repository, which "
            "`cofi-deploy export --format triton` writes"
        )
    place = find_model(path)
    repository = place.exports / "triton"
    if not repository.is_dir():
        run = "" if path is None else f" {path}"
        raise UsageError(
            f"{str(repository)!r} does not exist; write it with: "
            f"cofi-deploy export{run} --format triton"
        )
    return repository.resolve()


def _check(place: Path, server: Server | Literal["auto"], settings: ServerSettings) -> Launch:
    """Refuse the repository before anything is installed for it."""
    remove_compiled_code(place)
    check_repository(place)
    launch = plan_launch(place, needs_of(place), settings, server=server)
    if launch.version is not None:
        check_repository(place, server=launch.version)
    if settings.model_control == "explicit" and settings.host not in LOCAL_HOSTS:
        logger.warning(
            "with --model-control explicit, whoever reaches %s:%d can load models of their own",
            settings.host,
            settings.http_port,
        )
    return launch


def _check_log(log: Path, place: Path) -> None:
    if log.resolve().is_relative_to(place):
        raise UsageError(
            f"--log {str(log)!r} lies in the repository, where a server that polls would take each "
            "line for a new version; name a file elsewhere"
        )


def _check_answer(server: TritonServer, request: SampleRequest) -> None:
    """A server can be ready and yet not answer: numpy 2 in its Python is one cause."""
    status, content = server.request("POST", request.path, json.dumps(request.body).encode())
    if status != 200:
        words = content.decode("utf-8", errors="replace")
        meaning = explain(words)
        raise RunnerError(
            f"{request.model!r} is ready, but answers with status {status}: {words}"
            f"{f'; {meaning}' if meaning else ''}; its log: {str(server.log_file)!r}"
        )
