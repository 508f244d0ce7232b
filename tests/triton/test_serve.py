"""`serve` on the real server: what an operator sees, and what is left when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from cofi_deploy import api
from cofi_deploy.errors import EnvironmentProblem, RepositoryError, RunnerError
from cofi_deploy.serve.triton_command import ServerSettings
from cofi_deploy.serve.triton_environment import TritonEnvironment
from cofi_deploy.serve.triton_server import TritonServer
from tests.e2e.commands import command, environment
from tests.triton.conftest import MODEL_NAME, Repositories, ServeRepository, free_ports

pytestmark = pytest.mark.triton

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 4
input [ {{ name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }} ]
output [ {{ name: "doubled" data_type: TYPE_INT64 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""
DOUBLER = """
import time

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(request, "ids").as_numpy() for request in requests]
        time.sleep(arrays[0].max() / 1000)
        return [pb.InferenceResponse([pb.Tensor("doubled", 2 * array)]) for array in arrays]
"""
WAIT_S = 60.0


def write_doubler(repository: Path, *, code: str = DOUBLER, version: int = 1) -> Path:
    """A model that doubles its ids, and takes as many milliseconds as the largest one says."""
    folder = repository / "doubler" / str(version)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code, encoding="utf-8")
    (folder.parent / "config.pbtxt").write_text(CONFIG.format(name="doubler"), encoding="utf-8")
    return repository


def doubled(server: TritonServer, values: list[int]) -> Any:
    tensor = {"name": "ids", "shape": [1, len(values)], "datatype": "INT64", "data": values}
    body = json.dumps({"inputs": [tensor]}).encode()
    status, answer = server.request("POST", "/v2/models/doubler/infer", body)
    assert status == 200, answer
    return json.loads(answer)["outputs"][0]["data"]


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def group_of(pid: int) -> list[int]:
    """Processes of the group that ``pid`` leads: the server, and the stubs of its models."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


def nothing_left(pid: int, ports: list[int]) -> bool:
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return not group_of(pid)


class Typed:
    """`cofi-deploy serve` in a process of its own; reads what it prints into files."""

    def __init__(self, folder: Path, *arguments: str | Path, **variables: str) -> None:
        self.out, self.err = folder / "out.json", folder / "err.txt"
        self.ports = free_ports()
        flags = [f"--{name.replace('_', '-')}={port}" for name, port in self.ports.items()]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command("serve", *arguments, *flags, "--log", folder / "triton.log"),
                cwd=folder,
                env={**environment(), **variables},
                stdout=out,
                stderr=err,
            )

    @property
    def said(self) -> str:
        return self.err.read_text("utf-8")

    def wait_until_said(self, words: str) -> dict[str, Any]:
        until(lambda: words in self.said or self.process.poll() is not None, f"not said: {words}")
        assert words in self.said, self.said
        document: dict[str, Any] = json.loads(self.out.read_text("utf-8") or "{}")
        return document

    def end(self, with_signal: signal.Signals | None = None) -> int:
        if with_signal is not None:
            self.process.send_signal(with_signal)
        return self.process.wait(timeout=WAIT_S)


@pytest.fixture
def typed(triton_environment: TritonEnvironment, tmp_path: Path) -> Iterator[Callable[..., Typed]]:
    started: list[Typed] = []

    def start(*arguments: str | Path, **variables: str) -> Typed:
        folder = tmp_path / f"typed-{len(started)}"
        folder.mkdir()
        started.append(Typed(folder, *arguments, **variables))
        return started[-1]

    yield start
    for command_line in started:
        command_line.process.kill()
        command_line.process.wait()


def test_a_started_server_answers_and_shows_metrics(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    server = serve_repository(write_doubler(tmp_path / "models"))
    assert doubled(server, [1, 2, 3]) == [2, 4, 6]
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        metrics = answer.read().decode()
    assert 'nv_inference_request_success{model="doubler",version="1"} 1' in metrics
    assert "successfully loaded 'doubler'" in server.log_text()


def test_a_stop_leaves_no_process_no_port_and_no_shared_memory(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    ports = free_ports()
    server = serve_repository(write_doubler(tmp_path / "models"), **ports)
    shared = Path("/dev/shm")
    assert len(group_of(server.pid)) == 2
    assert list(shared.glob(f"cofi-deploy-{ports['http_port']}-*"))
    server.stop()
    assert nothing_left(server.pid, list(ports.values()))
    assert not list(shared.glob(f"cofi-deploy-{ports['http_port']}-*"))


def test_a_server_that_does_not_stop_is_killed_with_its_models(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    ports = free_ports()
    server = serve_repository(write_doubler(tmp_path / "models"), **ports)
    os.kill(server.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.5)
    assert nothing_left(server.pid, list(ports.values()))


def test_two_servers_do_not_meet(serve_repository: ServeRepository, tmp_path: Path) -> None:
    repository = write_doubler(tmp_path / "models")
    one, other = serve_repository(repository), serve_repository(repository)
    assert doubled(one, [1]) == doubled(other, [1]) == [2]
    one.stop()
    assert doubled(other, [5]) == [10]


def test_serving_leaves_nothing_in_the_repository(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    repository = write_doubler(tmp_path / "models")
    before = sorted(repository.rglob("*"))
    doubled(serve_repository(repository), [1])
    assert sorted(repository.rglob("*")) == before


def test_a_taken_port_is_named_with_its_holder(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    ports = free_ports()
    first = serve_repository(write_doubler(tmp_path / "models"), **ports)
    words = (
        f"port {ports['grpc_port']} (--grpc-port) on '127.0.0.1' cannot be had: Address already "
        f"in use (process {first.pid}, 'tritonserver', has it); choose another, for example "
        f"--grpc-port {ports['grpc_port'] + 100}"
    )
    with pytest.raises(EnvironmentProblem, match=re.escape(words)):
        serve_repository(tmp_path / "models", **{**free_ports(), "grpc_port": ports["grpc_port"]})


def test_a_model_that_does_not_load_is_told_in_tritons_words_and_in_ours(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    code = "import no_such_package\n" + DOUBLER
    server = serve_repository(write_doubler(tmp_path / "models", code=code), ready=False)
    with pytest.raises(RunnerError) as caught:
        server.wait_until_ready()
    message = str(caught.value)
    assert message.startswith("the server ended (1) before it was ready: Triton says")
    assert "doubler version 1: ModuleNotFoundError: No module named 'no_such_package'" in message
    assert "the Python of this server has no package 'no_such_package'" in message
    assert message.endswith(f"its log: {str(server.log_file)!r}")
    assert not group_of(server.pid)


def test_a_server_that_takes_too_long_is_given_up(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    code = DOUBLER + "    def initialize(self, args):\n        time.sleep(60)\n"
    server = serve_repository(write_doubler(tmp_path / "models", code=code), ready=False)
    with pytest.raises(RunnerError, match=re.escape("not ready after 1 s (--ready-timeout)")):
        server.wait_until_ready(1.0)
    server.stop(timeout_s=0.5)
    assert not group_of(server.pid)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("text-classification", {"labels", "scores"}),
        ("text-regression", {"scores"}),
        ("token-classification", {"labels", "words", "scores", "starts", "ends"}),
        ("question-answering", {"answers", "scores", "starts", "ends"}),
    ],
)
def test_each_kind_of_model_answers_the_request_that_is_printed(
    kind: str,
    outputs: set[str],
    repositories: Repositories,
    triton_environment: TritonEnvironment,
    tmp_path: Path,
) -> None:
    settings = ServerSettings(**free_ports())
    with api.serve(
        repositories(kind), server="pip", settings=settings, log=tmp_path / "log"
    ) as served:
        (request,) = served.requests
        line = request.curl(served.server.http_url)
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=True, timeout=WAIT_S
        )
    answer = json.loads(done.stdout)
    assert answer["model_name"] == f"{MODEL_NAME}_text"
    assert {output["name"] for output in answer["outputs"]} == outputs


def test_the_command_serves_until_ctrl_c(
    typed: Callable[..., Typed], repositories: Repositories
) -> None:
    repository = repositories()
    served = typed(repository, "--server", "pip")
    document = served.wait_until_said("Ctrl-C stops it")
    assert document["repository"] == str(repository)
    assert document["server"] == "pip"
    assert document["http"] == f"http://127.0.0.1:{served.ports['http_port']}"
    assert {model["state"] for model in document["models"]} == {"READY"}
    assert "curl -s" in served.said
    assert "CUDA" not in served.said
    assert served.end(signal.SIGINT) == 0
    assert served.said.endswith("stopped\n")
    assert nothing_left(document["pid"], list(served.ports.values()))


def test_a_stop_of_the_system_is_as_clean_as_ctrl_c(
    typed: Callable[..., Typed], repositories: Repositories
) -> None:
    served = typed(repositories(), "--server", "pip")
    document = served.wait_until_said("Ctrl-C stops it")
    assert served.end(signal.SIGTERM) == 0
    assert nothing_left(document["pid"], list(served.ports.values()))


def test_a_killed_command_leaves_no_server_behind(
    typed: Callable[..., Typed], repositories: Repositories
) -> None:
    served = typed(repositories(), "--server", "pip")
    document = served.wait_until_said("Ctrl-C stops it")
    assert group_of(document["pid"])
    assert served.end(signal.SIGKILL) == -signal.SIGKILL
    ports = list(served.ports.values())
    until(lambda: nothing_left(document["pid"], ports), "the server outlives its command")


def test_a_killed_server_ends_the_command_with_1(
    typed: Callable[..., Typed], repositories: Repositories
) -> None:
    served = typed(repositories(), "--server", "pip")
    document = served.wait_until_said("Ctrl-C stops it")
    os.kill(document["pid"], signal.SIGKILL)
    assert served.end() == 1
    assert "error: the server was killed by SIGKILL: " in served.said
    assert nothing_left(document["pid"], list(served.ports.values()))


def test_a_version_that_is_refused_is_told_while_the_other_one_serves(
    typed: Callable[..., Typed], repositories: Repositories, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(repositories(), tmp_path / "models"))
    served = typed(repository, "--server", "pip", "--poll-seconds", "1")
    document = served.wait_until_said("Ctrl-C stops it")
    staged = Path(shutil.copytree(repository / MODEL_NAME / "1", tmp_path / "staged"))
    (staged / "model.onnx").write_bytes(b"no model at all")
    staged.rename(repository / MODEL_NAME / "2")
    served.wait_until_said("tiny version 2 is refused: ")
    assert "has sha256" in served.said
    assert "cofi-deploy rollback; what was served before goes on" in served.said
    request = document["requests"]["tiny_text"]
    body = json.dumps(request["body"]).encode()
    with urllib.request.urlopen(request["url"], data=body, timeout=10) as answer:
        assert json.load(answer)["model_name"] == "tiny_text"


def test_code_that_is_not_ours_is_refused_before_a_server_starts(tmp_path: Path) -> None:
    repository = write_doubler(tmp_path / "models")
    with (
        pytest.raises(RepositoryError, match="is not the code that this cofi-deploy ships"),
        api.serve(repository, settings=ServerSettings(**free_ports())),
    ):
        pass


def test_a_server_with_explicit_control_loads_everything_at_its_start(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    server = serve_repository(write_doubler(tmp_path / "models"), model_control="explicit")
    status, _ = server.request("POST", "/v2/repository/models/doubler/unload", b"{}")
    assert status == 200
    status, _ = server.request("POST", "/v2/repository/models/doubler/load", b"{}")
    assert status == 200
    assert doubled(server, [2]) == [4]


def test_a_response_cache_is_found(serve_repository: ServeRepository, tmp_path: Path) -> None:
    server = serve_repository(write_doubler(tmp_path / "models"), cache_mib=1)
    assert doubled(server, [2]) == [4]
    assert "Creating TritonCache with name: 'local'" in server.log_text()


def test_requests_in_flight_are_answered_before_a_stop(
    serve_repository: ServeRepository, tmp_path: Path
) -> None:
    server = serve_repository(write_doubler(tmp_path / "models"))
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(doubled, server, [1500])
        time.sleep(0.5)
        server.stop()
        assert answer.result() == [3000]
