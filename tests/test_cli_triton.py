"""The commands around Triton, as far as they answer without a server."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from cofi_deploy import api
from cofi_deploy.cli import main
from cofi_deploy.exports import check_export
from tests.export.conftest import WriteModel, write_model

__all__ = ["write_model"]


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def repository(write_model: WriteModel, tmp_path: Path) -> Path:
    return api.export(write_model(), format="triton", name="tiny", output=tmp_path / "models")


def test_the_command_that_would_be_started_can_be_pasted(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))
    code, out, err = run(
        "serve", repository, "--server", "pip", "--print-command", "--host", "0.0.0.0",
        "--http-port", "8100", "--poll-seconds", "2", "--cache-mib", "1",
    )  # fmt: skip
    assert (code, err) == (0, "")
    words = shlex.split(out)
    assert words[0] == "env"
    for argument in (
        f"--model-repository={repository}",
        "--http-address=0.0.0.0",
        "--http-port=8100",
        "--repository-poll-secs=2",
        "--cache-config=local,size=1048576",
        "--model-config-name=python",
    ):
        assert argument in words
    assert not (tmp_path / "cache").exists()


def test_a_repository_that_is_not_there_exits_2(tmp_path: Path) -> None:
    code, _, err = run("serve", tmp_path / "models")
    assert code == 2
    assert "is no directory; name a model repository" in err


def test_two_equal_ports_exit_2(repository: Path) -> None:
    code, _, err = run("serve", repository, "--server", "pip", "--grpc-port", "8000")
    assert code == 2
    assert "--http-port and --grpc-port are both 8000; give each its own port" in err


def test_a_server_that_is_not_here_exits_3(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("serve", repository, "--server", "container")
    assert code == 3
    assert "no container engine answers (tried docker, podman)" in err


@pytest.mark.parametrize("flag", [("--http-port", "0"), ("--poll-seconds", "0"), ("--server", "x")])
def test_a_value_that_is_not_allowed_exits_2(flag: tuple[str, str], repository: Path) -> None:
    code, _, err = run("serve", repository, *flag)
    assert code == 2
    assert f"Invalid value for '{flag[0]}'" in err


def test_the_next_version_has_the_backend_of_the_one_before(
    write_model: WriteModel, tmp_path: Path
) -> None:
    place = ("export", write_model(), "--format", "triton", "--name", "tiny")
    assert run(*place, "--backend", "python", "--output", tmp_path / "models")[0] == 0
    assert run(*place, "--repository", tmp_path / "models")[0] == 0
    second = check_export(tmp_path / "models" / "tiny" / "2")
    assert second.options["backend"] == "python"
