from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from cofi_deploy import hub


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*hub.OFFLINE_VARIABLES, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def serve(monkeypatch: pytest.MonkeyPatch, status: int) -> HTTPServer:
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    return server


@pytest.mark.parametrize("status", [200, 404])
def test_a_hub_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    server = serve(monkeypatch, status)
    assert hub.why_unreachable() is None
    server.shutdown()
    server.server_close()


def test_a_proxy_that_cannot_get_through_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch, 503)
    assert str(hub.why_unreachable()).endswith("answers 503")
    server.shutdown()
    server.server_close()


def test_a_refused_connection_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert "no answer from http://127.0.0.1:9" in str(hub.why_unreachable())
    assert time.monotonic() - began < 2 * hub.PROBE_TIMEOUT_S


@pytest.mark.parametrize("name", hub.OFFLINE_VARIABLES)
def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert hub.why_unreachable() == f"{name} is set"


def test_an_address_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert str(hub.why_unreachable()) == "HF_ENDPOINT is 'file:///etc', which is no http address"
