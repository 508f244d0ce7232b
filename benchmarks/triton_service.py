"""The repositories and servers that the Triton benchmarks measure, made by the product itself.

In: model directories. Out: a repository as `cofi-deploy export --format triton --repository DIR`
writes it, and a server as `cofi-deploy serve` starts it, on free ports.
Next: `triton_serving.py`, `triton_faults.py`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cofi_deploy import api
from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.loading import load_tokenizer, save_compact
from cofi_deploy.model import CofiConfig, build
from cofi_deploy.serve.triton_command import ServerSettings
from cofi_deploy.serve.triton_server import TritonServer

BACKEND = "python"  # the one that every server has
MAX_BATCH_SIZE = 32
# Initial weights alone would give every text nearly the same answer.
_SPREAD = 0.5


def add_model(repository: Path, name: str, model: Path, **settings: Any) -> int:
    """Add a model directory to a repository, as its next version where the name is known.

    Args:
        repository: Made if need be.
        name: On the server.
        model: Model directory.
        settings: Of `TritonOptions`.

    Returns:
        Number of the version.
    """
    version = api.export(
        model,
        format="triton",
        backend=BACKEND,
        batch_size=(1, MAX_BATCH_SIZE, MAX_BATCH_SIZE),
        repository=repository,
        name=name,
        settings=settings,
    )
    return int(version.name)


def trivial_model(directory: Path, like: Path) -> Path:
    """Write a classifier that takes the same requests as ``like`` and computes next to nothing.

    What it can answer in a second is the ceiling of everything around a model: generator, gRPC,
    batching, the pipe between Triton and Python.
    """
    tokenizer = load_tokenizer(like)
    shape = DenseShape(layers=1, hidden=4, heads=1, ffn=1, head_size=4)
    arch = Arch(
        family="bert",
        vocab_size=len(tokenizer),
        max_positions=512,
        type_vocab_size=2,
        hidden=4,
        head_size=4,
        layers=(LayerArch(heads=0, ffn=1),),
        dense=shape,
        pooler=4,
    )
    torch.manual_seed(0)
    model = build(CofiConfig.from_arch(arch, "text-classification", labels=("no", "yes"))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * _SPREAD)
    save_compact(model, tokenizer, directory)
    return directory


@contextlib.contextmanager
def running(
    repository: Path, log_file: Path, ports: dict[str, int] | None = None, **settings: Any
) -> Iterator[TritonServer]:
    """A server that is ready; stopped with all its processes in the end.

    Args:
        repository: What it serves.
        log_file: Of the server.
        ports: As `free_ports` gives them; free ones if left out.
        settings: Of `ServerSettings`.
    """
    chosen = ServerSettings(**{"poll_seconds": 1, **(ports or free_ports()), **settings})
    with api.serve(repository, server="pip", settings=chosen, log=log_file, say=print) as served:
        yield served.server


def free_ports() -> dict[str, int]:
    """Three ports that nothing listens on, by their names in `ServerSettings`."""
    with contextlib.ExitStack() as sockets:
        names = ("http_port", "grpc_port", "metrics_port")
        probes = {name: sockets.enter_context(socket.socket()) for name in names}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in probes.items()}
