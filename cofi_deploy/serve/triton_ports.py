"""Are the ports of a server free, and who has them if not?

In: `ServerSettings`. Out: nothing, or an error that names port, flag and holder. Called by
`triton_server.py` before a server is started, which itself would find out seconds later. For a
server that nobody else has to find there is `on_free_ports`.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import psutil

from cofi_deploy.errors import EnvironmentProblem, UsageError
from cofi_deploy.serve.triton_command import LOCAL_HOST, ServerSettings


def check_ports(settings: ServerSettings) -> None:
    """Refuse ports that are given twice, or that something listens on.

    Raises:
        UsageError: Two flags name the same port.
        EnvironmentProblem: A port cannot be had; names the process that has it, where it is known.
    """
    flags: dict[int, str] = {}
    for flag, port in settings.ports.items():
        if port in flags:
            raise UsageError(f"{flags[port]} and {flag} are both {port}; give each its own port")
        flags[port] = flag
    for port, flag in flags.items():
        try:
            _try_port(settings.host, port)
        except OSError as error:
            raise EnvironmentProblem(
                f"port {port} ({flag}) on {settings.host!r} cannot be had: {error.strerror}"
                f"{_holder(port)}; choose another, for example {flag} {port + 100}"
            ) from error


def on_free_ports(settings: ServerSettings) -> ServerSettings:
    """The same settings on loopback ports that nothing listens on."""
    with contextlib.ExitStack() as sockets:
        # All are held until the last one is found, so that they differ.
        probes = [sockets.enter_context(socket.socket()) for _ in settings.ports]
        for probe in probes:
            probe.bind((LOCAL_HOST, 0))
        http, grpc, metrics = (probe.getsockname()[1] for probe in probes)
    return replace(settings, host=LOCAL_HOST, http_port=http, grpc_port=grpc, metrics_port=metrics)


def _try_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier server that wait for their end are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)


def _holder(port: int) -> str:
    """Which process listens on a port; empty where the system does not tell."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listens and connection.pid:
                name = psutil.Process(connection.pid).name()
                return f" (process {connection.pid}, {name!r}, has it)"
    except (psutil.Error, OSError):
        pass
    return ""
