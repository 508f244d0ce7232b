"""What `serve` is given, and what it refuses before anything is started."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from cofi_deploy import api
from cofi_deploy.api import serving
from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import EnvironmentProblem, RepositoryError, RunnerError, UsageError
from cofi_deploy.serve.triton_command import ServerSettings
from cofi_deploy.serve.triton_served import SampleRequest
from tests.export.conftest import WriteModel, write_model
from tests.triton.conftest import free_ports

__all__ = ["write_model"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run below the working directory, without exports."""
    monkeypatch.chdir(tmp_path)
    directory = Path("runs") / "mrpc-s95"
    (directory / "model").mkdir(parents=True)
    write_json(directory / "run.json", {"state": "done"})
    return directory


@pytest.fixture
def repository(write_model: WriteModel, tmp_path: Path) -> Path:
    """The Triton export of a tiny classifier; the caller may change it."""
    return api.export(
        write_model(), format="triton", backend="python", name="tiny", output=tmp_path / "models"
    )


def test_nothing_is_the_triton_export_of_the_newest_run(run: Path) -> None:
    folder = Path("exports") / "mrpc-s95" / "triton"
    folder.mkdir(parents=True)
    assert serving.find_repository(None) == folder.resolve()
    assert serving.find_repository(run) == folder.resolve()


def test_a_run_without_a_triton_export_names_the_command_that_makes_it(run: Path) -> None:
    message = (
        "'exports/mrpc-s95/triton' does not exist; write it with: "
        "cofi-deploy export --format triton"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        serving.find_repository(None)
    message = f"write it with: cofi-deploy export {run} --format triton"
    with pytest.raises(UsageError, match=re.escape(message)):
        serving.find_repository(run)


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = f"{str(tmp_path / 'models')!r} is no directory; name a model repository, which"
    with pytest.raises(UsageError, match=re.escape(message)):
        serving.find_repository(tmp_path / "models")


def test_foreign_code_is_refused_before_a_server_is_looked_for(repository: Path) -> None:
    (repository / "tiny_answer" / "1" / "model.py").write_text("import os\n", encoding="utf-8")
    with pytest.raises(RepositoryError, match="is not the code that this cofi-deploy ships"):
        serving.serve_command(repository)


def test_a_field_that_the_installed_server_lacks_is_named_before_it_is_started(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "triton" / "bin" / "tritonserver"
    (tmp_path / "triton" / "backends" / "python").mkdir(parents=True)
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    config = repository / "tiny_text" / "config.pbtxt"
    text = config.read_text("utf-8")
    field = "ensemble_scheduling { max_inflight_requests: 4"
    config.write_text(text.replace("ensemble_scheduling {", field), encoding="utf-8")
    assert str(program) in serving.serve_command(repository)[0]  # its version is not known
    (tmp_path / "triton" / "TRITON_VERSION").write_text("2.62.0\n", encoding="utf-8")
    message = (
        "ensemble_scheduling.max_inflight_requests needs server 2.64 or newer, the target is 2.62"
    )
    with pytest.raises(RepositoryError, match=re.escape(message)):
        serving.serve_command(repository)


def test_compiled_code_that_a_server_left_behind_goes_away(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = repository / "tiny" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-312.pyc").write_bytes(b"whatever it was compiled from")
    with caplog.at_level(logging.INFO, logger="cofi_deploy"):
        serving.serve_command(repository, server="pip")
    assert not cache.exists()
    assert f"removed {cache}" in caplog.text


def test_a_log_in_the_repository_is_refused(repository: Path) -> None:
    log = repository / "tiny" / "triton.log"
    message = f"--log {str(log)!r} lies in the repository, where a server that polls would take"
    with (
        pytest.raises(UsageError, match=re.escape(message)),
        serving.serve(repository, server="pip", log=log),
    ):
        pass


def test_a_taken_port_is_told_before_anything_is_installed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))
    settings = ServerSettings(**{**free_ports(), "host": "192.0.2.1"})
    with (
        pytest.raises(EnvironmentProblem, match=r"on '192\.0\.2\.1' cannot be had"),
        serving.serve(repository, server="pip", settings=settings),
    ):
        pass
    assert not (tmp_path / "cache").exists()


def test_explicit_control_for_everybody_is_warned_of(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServerSettings(host="0.0.0.0", model_control="explicit")
    serving.serve_command(repository, server="pip", settings=settings)
    assert "whoever reaches 0.0.0.0:8000 can load models of their own" in caplog.text


def test_a_server_that_is_ready_and_answers_wrongly_is_an_error(tmp_path: Path) -> None:
    class Answering:
        log_file = tmp_path / "log"

        def request(self, *_: object) -> tuple[int, bytes]:
            return 500, b"output tensor shape does not match size of output for 'logits'"

    request = SampleRequest(model="tiny_text", body={})
    message = (
        "'tiny_text' is ready, but answers with status 500: output tensor shape does not match"
    )
    with pytest.raises(RunnerError, match=re.escape(message)) as caught:
        serving._check_answer(Answering(), request)
    assert "'numpy<2'" in str(caught.value)
