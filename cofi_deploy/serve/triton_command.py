"""What it takes to start a Triton server: settings, needs of the models, and the command line.

In: nothing but values. Out: `Launch`, which `triton_launchers.py` makes for this machine and
`triton_server.py` runs.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cofi_deploy.errors import RepositoryError

Server = Literal["tritonserver", "container", "pip"]
SERVERS: tuple[Server, ...] = get_args(Server)
ModelControl = Literal["poll", "explicit", "none"]

LOCAL_HOST = "127.0.0.1"
LOCAL_HOSTS = (LOCAL_HOST, "localhost", "::1")
ALL_HOSTS = "0.0.0.0"  # also inside of a container, whose published ports say who reaches it
# How long a server waits for requests in flight when it is told to stop.
EXIT_TIMEOUT_S = 30

_ANSWER_TIMEOUT_S = 20.0
# What a repository's models have beside `config.pbtxt`, fastest first.
_CONFIG_NAMES = ("", "onnxruntime", "python")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server listens, and when it looks for new versions."""

    host: str = LOCAL_HOST
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model_control: ModelControl = "poll"
    poll_seconds: int = 5
    cache_mib: int = 0  # of the response cache; 0: none

    @property
    def ports(self) -> dict[str, int]:
        """Each port by the flag that sets it."""
        return {
            "--http-port": self.http_port,
            "--grpc-port": self.grpc_port,
            "--metrics-port": self.metrics_port,
        }


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a repository asks of a server.

    ``backends`` has, for each model, its backend by the name of the configuration: `""` is
    `config.pbtxt`, any other `configs/<name>.pbtxt`. Ensembles need none and are left out.
    ``capabilities`` has, for each model of TensorRT engines, the compute capabilities that there
    is an engine for ("9.0").
    """

    backends: Mapping[str, Mapping[str, str]]
    gpu: bool = False
    capabilities: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A command to run before the server's: ``argv``, fed with ``text``."""

    argv: tuple[str, ...]
    text: str

    def shell_line(self) -> str:
        """The same for a shell."""
        text = self.text.replace("\n", "\\n")
        return f"printf {shlex.quote(text)} | {shlex.join(self.argv)}"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A server to start: its command line, the variables it needs beside ours, and how to end it.

    ``version`` is the server's, or its container release, where it is known; ``config_name`` what
    `--model-config-name` says; ``stop`` a command that ends what a signal would leave.
    """

    server: Server
    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    config_name: str = ""
    preparation: Preparation | None = None
    stop: tuple[str, ...] = ()

    def shell_lines(self) -> list[str]:
        """What to type to get the same server."""
        lines = [] if self.preparation is None else [self.preparation.shell_line()]
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return [*lines, shlex.join(["env", *variables, *self.argv] if variables else self.argv)]


def server_arguments(repository: Path | str, settings: ServerSettings) -> list[str]:
    """The arguments that every server gets."""
    arguments = [
        f"--model-repository={repository}",
        # Our configurations are complete; a server that completes them hides what they lack.
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--model-control-mode={settings.model_control}",
        f"--http-address={settings.host}",
        f"--http-port={settings.http_port}",
        f"--grpc-address={settings.host}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-address={settings.host}",
        f"--metrics-port={settings.metrics_port}",
        # Names of shared memory; two servers on one machine must not meet there.
        f"--backend-config=python,shm-region-prefix-name={shm_prefix(settings)}",
    ]
    if settings.model_control == "poll":
        arguments.append(f"--repository-poll-secs={settings.poll_seconds}")
    if settings.model_control == "explicit":
        arguments.append("--load-model=*")
    if settings.cache_mib:
        arguments.append(f"--cache-config=local,size={settings.cache_mib * 2**20}")
    return arguments


def reachable_host(host: str) -> str:
    """Where clients on this machine find a server that listens on ``host``."""
    return {ALL_HOSTS: LOCAL_HOST, "::": "[::1]"}.get(host, host)


def shm_prefix(settings: ServerSettings) -> str:
    """How the names of a server's shared memory in /dev/shm begin."""
    return f"cofi-deploy-{settings.http_port}-"


def config_name_for(needs: Needs, backends: Iterable[str], *, server: str) -> str:
    """The configuration with which every model finds its backend; `""` is `config.pbtxt`.

    Raises:
        RepositoryError: There is none; names a model and the backend that it lacks.
    """
    available = set(backends)
    for name in _CONFIG_NAMES:
        if all(_backend(configs, name) in available for configs in needs.backends.values()):
            return name
    model, backend = next(
        (model, configs[""])
        for model, configs in needs.backends.items()
        if _backend(configs, _CONFIG_NAMES[-1]) not in available
    )
    raise RepositoryError(
        f"model {model!r} needs backend {backend!r}, but {server} has: "
        f"{', '.join(sorted(available))}; export it again with --backend python, or choose another "
        "server with --server"
    )


def config_argument(name: str) -> tuple[str, ...]:
    """The argument that picks a configuration; none for `config.pbtxt`."""
    return (f"--model-config-name={name}",) if name else ()


def usable_backends(backends: Iterable[str], needs: Needs) -> set[str]:
    """Without a device, or without an engine for it, TensorRT is of no use here."""
    engines_run = has_gpu() and all(
        gpu_capabilities() <= built_for for built_for in needs.capabilities.values()
    )
    return set(backends) - (set() if engines_run else {"tensorrt"})


def has_gpu() -> bool:
    """Whether the NVIDIA driver sees a device."""
    return "GPU 0" in answer_of(["nvidia-smi", "-L"])


def gpu_capabilities() -> set[str]:
    """Compute capability of every device, as "9.0"; empty where the driver does not tell."""
    answer = answer_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    return set(re.findall(r"^\d+\.\d+$", answer, re.MULTILINE))


def answer_of(argv: list[str]) -> str:
    """What a command prints; empty when it is absent, fails or hangs."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _backend(configs: Mapping[str, str], name: str) -> str:
    return configs.get(name, configs[""])
