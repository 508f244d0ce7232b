"""Runtime `triton`: a real server answers like ONNX Runtime, fails in words, and leaves nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cofi_deploy import api
from cofi_deploy.errors import EnvironmentProblem, RunnerError, UsageError
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.serve import runner_triton
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.probe import probe
from cofi_deploy.serve.runner import availability, open_runner, physical_cores, runs_elsewhere
from cofi_deploy.serve.triton_server import TritonServer
from cofi_deploy.serve.triton_service import running_server
from tests.export.conftest import write_model
from tests.triton.conftest import (
    MODEL_NAME,
    free_ports,
    repositories,
    serve_repository,
    triton_environment,
)
from tests.triton.test_serve import group_of, nothing_left

__all__ = ["repositories", "serve_repository", "triton_environment", "write_model"]

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with the client, but without any server."""
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.fixture
def opened(triton_environment, repositories):
    """Open the export of a tiny model in a server; closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_(kind="text-classification", **settings):
            runner = open_runner(repositories(kind), "triton", **{"threads": 1, **settings})
            return stack.enter_context(runner)

        yield open_


def server_of(runner) -> TritonServer:
    return runner._session._service.server


def test_without_the_client_it_names_the_extra(monkeypatch):
    find_spec = runner_triton.importlib.util.find_spec
    monkeypatch.setattr(
        runner_triton.importlib.util,
        "find_spec",
        lambda name: None if name == "tritonclient" else find_spec(name),
    )
    assert availability("triton") == (
        "the package 'tritonclient' is not installed; run: pip install 'cofi-deploy[triton]'"
    )


def test_without_a_server_it_says_what_installs_one_and_installs_nothing(bare):
    began = time.monotonic()
    assert availability("triton") == (
        "no Triton server is here yet; `cofi-deploy serve` installs one, about 340 MB, and so does "
        "`cofi-deploy verify --runtime triton`"
    )
    assert time.monotonic() - began < 1
    assert not (bare / "cache").exists()


def test_where_no_server_can_be_installed_it_says_so(bare, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    reason = availability("triton")
    assert reason is not None
    assert "runs on Linux x86_64, this is Linux aarch64" in reason
    assert reason.endswith("name a server that runs elsewhere with --triton-url")


def test_a_server_on_the_path_is_enough(bare):
    binary = bare / "bin" / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    assert availability("triton") is None


@pytest.mark.parametrize("url", ["localhost", "http://localhost:8001", ":8001", "a:b", "a:70000"])
def test_an_address_that_is_none_is_refused_with_an_example(url):
    with (
        pytest.raises(UsageError, match=re.escape(f"--triton-url is {url!r}, expected HOST:PORT")),
        running_server(url),
    ):
        pytest.fail("entered")


def test_an_address_where_nothing_answers_is_the_machines_fault():
    port = free_ports()["grpc_port"]
    words = f"no Triton server answers gRPC at '127.0.0.1:{port}' (--triton-url): "
    with (
        pytest.raises(EnvironmentProblem, match=re.escape(words)) as caught,
        running_server(f"127.0.0.1:{port}"),
    ):
        pytest.fail("entered")
    assert str(caught.value).endswith("; start one with: cofi-deploy serve")


def test_an_export_of_another_format_is_refused_with_the_command(pruned, monkeypatch):
    monkeypatch.setattr(runner_triton, "unavailable", lambda _: None)
    words = "triton opens exports of format 'triton'"
    with pytest.raises(RunnerError, match=rf"{words}, .* --format triton"):
        open_runner(pruned.artifacts["onnxruntime-cpu"], "triton")


def test_a_version_that_the_export_does_not_describe_is_refused(
    repositories, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner_triton, "unavailable", lambda _: None)
    copy = tmp_path / "models"
    shutil.copytree(repositories(), copy)
    shutil.copytree(copy / MODEL_NAME / "1", copy / MODEL_NAME / "2")
    words = f"serves version 2 of {MODEL_NAME!r}, but its export.json describes version 1"
    with pytest.raises(RunnerError, match=re.escape(words)):
        open_runner(copy, "triton")


@pytest.mark.triton
@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_it_answers_like_onnx_runtime_with_padding(kind, opened, write_model, tmp_path):
    runner = opened(kind)
    inputs = random_inputs(runner.limits, 3, 11, seed=1)
    inputs["attention_mask"][1:, 7:] = 0
    artifact = export_onnx(write_model(kind), tmp_path / "onnx")
    with open_runner(artifact, "onnxruntime-cpu", threads=1) as reference:
        expected = reference.infer(inputs)
    got = runner.infer(inputs)
    assert set(got) == set(expected)
    real = inputs["attention_mask"].astype(bool)
    for name, array in expected.items():
        assert got[name].dtype == np.float32
        # What stands behind the last token of a row is padding, which the server does not compute.
        shown = real if kind == "question-answering" else ...
        np.testing.assert_allclose(got[name][shown], array[shown], atol=1e-5)


@pytest.mark.triton
def test_more_rows_than_the_largest_batch_are_asked_for_in_pieces(opened, write_model, tmp_path):
    runner = opened()
    inputs = random_inputs(runner.limits, 70, 9, seed=2)
    artifact = export_onnx(write_model(), tmp_path / "onnx")
    with open_runner(artifact, "onnxruntime-cpu", threads=1) as reference:
        expected = reference.infer(inputs)["logits"]
    np.testing.assert_allclose(runner.infer(inputs)["logits"], expected, atol=1e-5)


@pytest.mark.triton
def test_threads_are_those_of_the_repository_and_that_is_told_once(
    write_model, tmp_path, triton_environment, caplog
):
    options = {"format": "triton", "name": "two", "settings": {"threads": 3}}
    repository = api.export(write_model(), output=tmp_path / "models", **options)
    for _ in range(2):
        with open_runner(repository, "triton", threads=1) as runner:
            assert (runner.runtime, runner.precision, runner.device) == ("triton", "fp32", "cpu")
            assert runner.threads == 3
    told = [
        record.getMessage() for record in caplog.records if "computes on" in record.getMessage()
    ]
    assert told == [
        f"triton computes on 3 threads, as {str(repository)!r} says; export it with "
        "--set threads=N for another number"
    ]


@pytest.mark.triton
def test_all_cores_are_told_as_our_physical_cores(opened):
    assert opened().threads == physical_cores()


@pytest.mark.triton
def test_a_server_that_is_killed_between_requests_is_told_with_its_log(opened):
    runner = opened()
    inputs = random_inputs(runner.limits, 1, 5, seed=0)
    runner.infer(inputs)
    server = server_of(runner)
    psutil.Process(server.pid).kill()
    with pytest.raises(RunnerError) as caught:
        runner.infer(inputs)
    assert "the server was killed by SIGKILL while it was asked" in str(caught.value)
    assert f"its log: {str(server.log_file)!r}" in str(caught.value)
    runner.close()
    assert "successfully loaded" in server.log_file.read_text("utf-8")  # kept for the reader
    server.log_file.unlink()


@pytest.mark.triton
def test_a_models_process_that_is_killed_is_told_in_tritons_words(opened):
    runner = opened()
    inputs = random_inputs(runner.limits, 1, 5, seed=0)
    server = server_of(runner)
    for process in psutil.Process(server.pid).children(recursive=True):
        process.kill()
    with pytest.raises(RunnerError) as caught:
        runner.infer(inputs)
    assert f"Triton gives no answer from {MODEL_NAME!r}: " in str(caught.value)
    assert f"its log: {str(server.log_file)!r}" in str(caught.value)
    runner.close()
    server.log_file.unlink()


@pytest.mark.triton
def test_closing_leaves_no_process_no_port_no_memory_and_no_log(opened):
    runner = opened()
    call = runner.bind(random_inputs(runner.limits, 1, 5, seed=0))
    server = server_of(runner)
    ports = [int(address.rsplit(":")[-1]) for address in (server.http_address, server.grpc_address)]
    assert len(group_of(server.pid)) > 1
    runner.close()
    assert nothing_left(server.pid, ports)
    assert not list(SHARED_MEMORY.glob(f"cofi-deploy-{ports[0]}-*"))
    assert not server.log_file.exists()
    with pytest.raises(RunnerError, match="this triton session is closed; open the artifact again"):
        call()


@pytest.mark.triton
def test_an_exception_in_the_with_block_leaves_no_process(repositories, triton_environment):
    def fails():
        with open_runner(repositories(), "triton") as runner:
            pids.append(server_of(runner).pid)
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fails()
    assert not group_of(pids[0])


@pytest.mark.triton
def test_ctrl_c_while_it_starts_leaves_no_process(repositories, triton_environment, monkeypatch):
    pids: list[int] = []
    wait = TritonServer.wait_until_ready

    def interrupted(server: TritonServer) -> None:
        pids.append(server.pid)
        signal.raise_signal(signal.SIGINT)
        wait(server)

    monkeypatch.setattr(TritonServer, "wait_until_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_runner(repositories(), "triton")
    assert not group_of(pids[0])


@pytest.mark.triton
def test_a_server_that_waits_for_its_turn_does_next_to_nothing(opened):
    runner = opened()
    runner.infer(random_inputs(runner.limits, 4, 20, seed=0))
    processes = [psutil.Process(pid) for pid in group_of(server_of(runner).pid)]

    def used_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = used_s()
    time.sleep(3)
    assert used_s() - before < 0.15  # of 3 s; one thread that spins would take them all


@pytest.mark.triton
@pytest.mark.slow
def test_the_memory_of_a_fresh_server_is_measured_and_not_that_of_its_client(
    repositories, triton_environment
):
    point = OperatingPoint(batch_size=1, seq_len=8, runtime="triton")
    measured = probe(repositories(), point)
    assert set(measured) == {"load_ms", "first_inference_ms", "peak_memory_mib"}
    with open_runner(repositories(), "triton") as runner:
        runner.infer(random_inputs(runner.limits, 1, 8, seed=0))
        served = runner.peak_memory_mib()
        processes = len(group_of(server_of(runner).pid))
    assert processes == 4  # the server and its three Python models
    assert measured["peak_memory_mib"] == pytest.approx(served, rel=0.2)


@pytest.mark.triton
def test_a_running_server_is_asked_and_left_running(
    repositories, serve_repository, write_model, tmp_path
):
    server = serve_repository(repositories())
    artifact = export_onnx(write_model(), tmp_path / "onnx")
    with running_server(server.grpc_address):
        assert runs_elsewhere("triton")
        with (
            open_runner(repositories(), "triton") as runner,
            open_runner(artifact, "onnxruntime-cpu", threads=1) as reference,
        ):
            assert server_of(runner) is None
            assert runner.threads == 0  # all cores of a machine that we do not know
            assert runner.peak_memory_mib() is None
            inputs = random_inputs(runner.limits, 2, 6, seed=3)
            expected = reference.infer(inputs)["logits"]
            np.testing.assert_allclose(runner.infer(inputs)["logits"], expected, atol=1e-5)
        assert (
            probe(repositories(), OperatingPoint(batch_size=1, seq_len=4, runtime="triton")) == {}
        )
    assert not runs_elsewhere("triton")
    assert server.is_ready()


@pytest.mark.triton
def test_a_running_server_with_other_models_is_refused(
    repositories, serve_repository, write_model, tmp_path
):
    server = serve_repository(repositories())
    other = api.export(write_model(), format="triton", name="tinny", output=tmp_path / "other")
    regression = repositories("text-regression")
    with running_server(server.grpc_address):
        words = f"the server at {server.grpc_address!r} (--triton-url) has no model 'tinny'"
        with pytest.raises(RunnerError, match=rf"{re.escape(words)}.*did you mean 'tiny'"):
            open_runner(other, "triton")
        words = "gives {'logits': [3]}, this export {'logits': [1]}"
        with pytest.raises(RunnerError, match=re.escape(words)):
            open_runner(regression, "triton")
