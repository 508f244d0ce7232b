"""`export --repository` and `rollback`: files and server together, also when the server says no."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cofi_deploy.api import versions
from cofi_deploy.api.versions import add_to_repository, rollback
from cofi_deploy.cli import main
from cofi_deploy.errors import EnvironmentProblem, RunnerError, UsageError
from tests.export.served_folders import model_folders

URL = "http://127.0.0.1:8000"


class Server:
    """In the place of `TritonControl`: does what it is told, or refuses with ``error``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.served: list[tuple[str, int]] = []
        self.unloaded: list[str] = []

    def serve(self, name: str, version: int) -> None:
        if self.error is not None:
            raise self.error
        self.served.append((name, version))

    def unload(self, names: tuple[str, ...]) -> None:
        self.unloaded += names


@pytest.fixture
def use(monkeypatch):
    def put(server: Server) -> Server:
        monkeypatch.setattr(versions, "_control", lambda url: None if url is None else server)
        return server

    return put


@pytest.fixture
def repository(tmp_path):
    add_to_repository(tmp_path / "models", "tiny", model_folders())
    return tmp_path / "models"


def numbered(repository: Path) -> list[str]:
    return sorted(path.parent.name for path in repository.glob("tiny/*/model.onnx"))


def test_a_server_that_is_named_serves_the_version_when_the_command_ends(repository, use):
    server = use(Server())
    add_to_repository(repository, "tiny", model_folders(weights="second"), url=URL)
    assert server.served == [("tiny", 2)]
    assert rollback(repository, url=URL)["serves"] == 1
    assert server.served == [("tiny", 2), ("tiny", 1)]


@pytest.mark.parametrize("error", [RunnerError("it is bad"), EnvironmentProblem("it is gone")])
def test_what_a_server_refuses_is_set_aside_so_that_a_restart_is_safe(repository, use, error):
    server = use(Server(error))
    words = f"{error}; the new version was taken back, version 1 goes on serving"
    with pytest.raises(RunnerError, match=re.escape(words)):
        add_to_repository(repository, "tiny", model_folders(weights="second"), url=URL)
    assert numbered(repository) == [".rolled-back-2", "1"]
    assert server.unloaded == []


def test_a_first_version_that_a_server_refuses_goes_away_whole(tmp_path, use):
    server = use(Server(RunnerError("it is bad")))
    words = "it is bad; the new version was taken back, nothing of it stays in the repository"
    with pytest.raises(RunnerError, match=re.escape(words)):
        add_to_repository(tmp_path / "models", "tiny", model_folders(), url=URL)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]
    assert server.unloaded == ["tiny", "tiny_tokenizer", "tiny_text"]


def test_a_rollback_that_a_server_refuses_is_undone(repository, use):
    add_to_repository(repository, "tiny", model_folders(weights="second"))
    use(Server(RunnerError("it is bad")))
    words = "it is bad; nothing was rolled back, version 2 is in its place"
    with pytest.raises(RunnerError, match=re.escape(words)):
        rollback(repository, url=URL)
    assert numbered(repository) == ["1", "2"]


def test_a_server_that_is_not_there_is_found_out_before_the_work(repository):
    def write(_: Path) -> None:
        raise AssertionError

    with pytest.raises(EnvironmentProblem, match="no Triton server answers at"):
        add_to_repository(repository, "tiny", write, url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="--url is 'here', expected an address"):
        rollback(repository, url="here")


def test_the_command_says_what_happened_and_what_a_server_will_do(repository):
    add_to_repository(repository, "tiny", model_folders(weights="second"))
    result = CliRunner().invoke(main, ["rollback", str(repository), "--model", "tiny"])
    told = json.loads(result.stdout)
    assert (told["model"], told["rolled_back"], told["serves"]) == ("tiny", 2, 1)
    assert told["directory"] == str(repository / "tiny" / ".rolled-back-2")
    assert told["server"].startswith("one that polls changes over at its next poll")
    again = CliRunner().invoke(main, ["rollback", str(repository)])
    assert again.exit_code == 1
    assert "holds one version, 1, and none before it" in again.stderr
