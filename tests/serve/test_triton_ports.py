"""Ports that are taken, and ports that are given twice."""

from __future__ import annotations

import os
import re
import socket

import pytest

from cofi_deploy.errors import EnvironmentProblem, UsageError
from cofi_deploy.serve.triton_command import ServerSettings
from cofi_deploy.serve.triton_ports import check_ports, on_free_ports
from tests.triton.conftest import free_ports


def test_free_ports_are_accepted() -> None:
    check_ports(ServerSettings(**free_ports()))


def test_settings_are_moved_to_free_ports_of_this_machine() -> None:
    moved = on_free_ports(ServerSettings(host="0.0.0.0", model_control="none"))
    check_ports(moved)
    assert len(set(moved.ports.values())) == 3
    assert (moved.host, moved.model_control) == ("127.0.0.1", "none")


def test_a_port_that_is_taken_is_named_with_its_flag_its_holder_and_a_way_on() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        words = f"port {port} (--grpc-port) on '127.0.0.1' cannot be had: Address already in use"
        with pytest.raises(EnvironmentProblem, match=re.escape(words)) as caught:
            check_ports(ServerSettings(**{**free_ports(), "grpc_port": port}))
    assert f"(process {os.getpid()}, " in str(caught.value)
    assert str(caught.value).endswith(f"choose another, for example --grpc-port {port + 100}")


def test_an_address_that_this_machine_has_not_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match=r"on '192\.0\.2\.1' cannot be had: Cannot assign"):
        check_ports(ServerSettings(**free_ports(), host="192.0.2.1"))


def test_a_host_that_is_no_address_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match=r"on 'no such host' cannot be had: "):
        check_ports(ServerSettings(**free_ports(), host="no such host"))


def test_a_port_that_is_given_twice_is_refused() -> None:
    words = "--http-port and --metrics-port are both 8000; give each its own port"
    with pytest.raises(UsageError, match=re.escape(words)):
        check_ports(ServerSettings(metrics_port=8000))
