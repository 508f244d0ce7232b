from __future__ import annotations

import re
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest

from cofi_deploy import hub
from cofi_deploy.errors import HubUnreachableError, UsageError


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


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("data_is_local", [True, False], ids=["local-data", "hub-data"])
def test_a_model_out_of_reach_names_the_ways_on(data_is_local: bool) -> None:
    with pytest.raises(HubUnreachableError, match="'owner/name' is no local directory") as caught:
        hub.check_model_reachable("owner/name", data_is_local=data_is_local)
    assert "give --model a local model directory" in str(caught.value)
    assert ("--data-dir" in str(caught.value)) is not data_is_local


@pytest.mark.usefixtures("unreachable")
def test_a_local_or_cached_model_needs_no_hub(tmp_path: Path) -> None:
    hub.check_model_reachable(str(tmp_path), data_is_local=True)
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    hub.check_model_reachable("owner/name", data_is_local=True)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere"])
def test_a_path_where_nothing_is_is_a_typing_error(name: str) -> None:
    words = f"model {name!r} does not exist; expected a model directory or a hub id"
    with pytest.raises(UsageError, match=re.escape(words)):
        hub.check_model_reachable(name, data_is_local=True)


@pytest.mark.usefixtures("unreachable")
def test_what_is_neither_path_nor_hub_id_is_left_to_the_loading_of_models() -> None:
    hub.check_model_reachable("a/b/c", data_is_local=True)
