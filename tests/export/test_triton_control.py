"""What a server is asked and what its answers mean; a stand-in speaks as Triton 2.51 does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cofi_deploy.errors import EnvironmentProblem, RunnerError, UsageError
from cofi_deploy.export.triton_control import TritonControl

NOT_EXPLICIT = "explicit model load / unload is not allowed if polling is enabled"
REFUSAL = "load failed for model 'tiny': version 2 is at UNAVAILABLE state: Internal: bad;\n;\n"


class StandIn(ThreadingHTTPServer):
    """Answers from a script: path -> (status, JSON) or a list of them, one for each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, object] = {"/v2/health/live": (200, None)}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def index(self, *states: tuple[str, str]) -> None:
        """States of version 2, one for each time that it is asked for; the last one stays."""
        self.answers["/v2/repository/index"] = [
            (200, [{"name": "tiny", "version": "2", "state": state, "reason": reason}])
            for state, reason in states
        ]

    def ready_after(self, asked: int) -> None:
        """Version 2 is ready when it has been asked for so often before."""
        path = "/v2/models/tiny/versions/2/ready"
        self.answers[path] = [(400, None)] * asked + [(200, None)]


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path, (400, {"error": "unknown model"}))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        status, document = answer
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        thread = threading.Thread(target=stand_in.serve_forever, args=(0.01,))
        thread.start()
        yield stand_in
        stand_in.shutdown()
        thread.join()


def control(server: StandIn, **limits: float) -> TritonControl:
    return TritonControl(url=server.url + "/", **{"notice_s": 0.0, "timeout_s": 5.0, **limits})


LOAD = "/v2/repository/models/tiny/load"
TEXT_READY = "/v2/models/tiny_text/ready"


def test_an_explicit_server_is_told_and_its_ensemble_left_alone_when_it_is_ready(server):
    server.answers |= {LOAD: (200, None), TEXT_READY: (200, None)}
    server.ready_after(0)
    control(server).serve("tiny", 2)
    assert server.asked == [LOAD, "/v2/models/tiny/versions/2/ready", TEXT_READY]


def test_an_ensemble_that_is_not_there_yet_is_loaded_too(server):
    text = "/v2/repository/models/tiny_text/load"
    server.answers |= {LOAD: (200, None), text: (200, None)}
    server.ready_after(0)
    control(server).serve("tiny", 2)
    assert server.asked[-1] == text


def test_a_refusal_carries_the_words_of_the_server_on_one_line(server):
    server.answers[LOAD] = (400, {"error": REFUSAL})
    words = (
        f"the server at {server.url + '/'!r} refused 'tiny': load failed for model 'tiny': "
        "version 2 is at UNAVAILABLE state: Internal: bad"
    )
    with pytest.raises(RunnerError, match=re.escape(words) + "$"):
        control(server).serve("tiny", 2)


def test_a_server_that_polls_is_waited_for(server):
    server.answers[LOAD] = (503, {"error": NOT_EXPLICIT})
    server.index(("UNAVAILABLE", "unloaded"), ("LOADING", ""))
    server.ready_after(2)
    control(server, notice_s=1.0).serve("tiny", 2)
    assert server.asked.count("/v2/models/tiny/versions/2/ready") == 3


def test_a_version_that_is_being_loaded_gets_more_time_than_one_that_nobody_noticed(server):
    server.answers[LOAD] = (503, {"error": NOT_EXPLICIT})
    server.index(("LOADING", ""))
    server.ready_after(3)
    control(server, notice_s=0.0).serve("tiny", 2)


def test_a_server_that_polls_and_refuses_is_quoted(server):
    server.answers[LOAD] = (503, {"error": NOT_EXPLICIT})
    server.index(("LOADING", ""), ("UNAVAILABLE", "Internal: model.onnx has\n\nsha256 1;\n"))
    server.ready_after(9)
    words = "refused version 2 of 'tiny': Internal: model.onnx has sha256 1"
    with pytest.raises(RunnerError, match=re.escape(words) + "$"):
        control(server).serve("tiny", 2)


def test_a_server_that_does_not_notice_is_given_up_with_what_may_be_wrong(server):
    server.answers[LOAD] = (503, {"error": NOT_EXPLICIT})
    server.answers["/v2/repository/index"] = (200, [{"name": "other"}])
    words = (
        "does not serve version 2 of 'tiny' after 0 s (state: unknown); does it run from this "
        "repository, with --model-control-mode=explicit or poll?"
    )
    with pytest.raises(RunnerError, match=re.escape(words)):
        control(server).serve("tiny", 2)


def test_a_server_of_another_repository_is_found_out(server):
    server.answers[LOAD] = (200, None)
    with pytest.raises(RunnerError, match=r"does not serve version 2 .* does it run from this rep"):
        control(server).serve("tiny", 2)


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "grpc://host:8001", ""])
def test_what_is_no_address_is_said_to_be_none(url):
    words = f"--url is {url!r}, expected an address like http://host:8000"
    with pytest.raises(UsageError, match=re.escape(words)):
        TritonControl(url=url).check_live()


def test_a_server_that_is_not_there_is_an_environment_problem(server):
    url = server.url
    server.server_close()
    words = f"no Triton server answers at {url!r}: "
    with pytest.raises(EnvironmentProblem, match=re.escape(words) + ".*--url is its HTTP address"):
        TritonControl(url=url).check_live()


def test_another_service_is_not_taken_for_triton(server):
    server.answers = {}
    words = "answers /v2/health/live with status 400, which no live Triton server does"
    with pytest.raises(EnvironmentProblem, match=re.escape(words)):
        control(server).check_live()


def test_models_are_let_go_even_if_the_server_is_gone(server):
    control(server).unload(["tiny", "tiny_text"])
    assert server.asked == [
        "/v2/repository/models/tiny/unload",
        "/v2/repository/models/tiny_text/unload",
    ]
    url = server.url
    server.server_close()
    TritonControl(url=url).unload(["tiny"])
