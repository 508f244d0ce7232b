"""New versions under load on the real server: no request fails, no answer is of another version."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from cofi_deploy import api
from cofi_deploy.api.versions import add_to_repository, rollback
from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import RepositoryError, RunnerError
from cofi_deploy.export.triton import write_models
from cofi_deploy.export.triton_config import TritonOptions
from tests.e2e.commands import command, environment
from tests.triton.conftest import MODEL_NAME
from tests.triton.traffic import Traffic

pytestmark = pytest.mark.triton

SETTINGS = {"warmup_lengths": [8], "threads": 1}
STRUCTURES = (
    {},
    {"hidden": 31},
    {"layers": (LayerArch(heads=2, ffn=9), LayerArch(heads=0, ffn=0), LayerArch(heads=1, ffn=30))},
)


@pytest.fixture(scope="module")
def models(write_model) -> list[Path]:
    """The same task in three structures, which all answer differently."""
    return [write_model(**structure) for structure in STRUCTURES]


@pytest.fixture
def repository(models, tmp_path) -> Path:
    add(tmp_path / "models", models[0])
    return tmp_path / "models"


def add(repository: Path, model: Path, **more: object) -> Path:
    return api.export(
        model,
        format="triton",
        repository=repository,
        name=MODEL_NAME,
        settings={**SETTINGS, **more.pop("settings", {})},
        **more,
    )


def add_corrupt(repository: Path, model: Path, url: str | None) -> None:
    """As a disk or a network would spoil it: one bit, after everything was checked."""
    options = TritonOptions(warmup_lengths=(8,), threads=1)

    def write(directory: Path) -> None:
        write_models(directory, model, name=MODEL_NAME, options=options)
        path = directory / MODEL_NAME / "1" / "model.onnx"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    add_to_repository(repository, MODEL_NAME, write, url=url)


def versions(repository: Path) -> list[str]:
    return sorted(path.parent.name for path in repository.glob(f"{MODEL_NAME}/*/model.onnx"))


@pytest.mark.parametrize("model_control", ["poll", "explicit"])
def test_versions_change_under_load_without_a_failed_request(
    model_control, repository, models, serve_repository
):
    server = serve_repository(repository, model_control=model_control)
    url = server.http_url
    traffic = Traffic(server, MODEL_NAME)
    traffic.expect(1, repository / MODEL_NAME / "1")
    # A version answers as soon as it is loaded, so what it answers is known before.
    for number, model in enumerate(models[1:], start=2):
        rehearsal = repository.with_name("rehearsal") / str(number)
        traffic.expect(number, add(rehearsal, model))
    with traffic:
        for number, model in enumerate(models[1:], start=2):
            assert add(repository, model, url=url).name == str(number)
            traffic.wait_for_answers(number)
        assert rollback(repository, url=url)["serves"] == 2
        traffic.wait_for_answers(2)
        words = r"refused .*sha256.*; the new version was taken back, version 2 goes on serving"
        with pytest.raises(RunnerError, match=words):
            add_corrupt(repository, models[0], url)
        traffic.wait_for_answers(2)
    assert traffic.errors == []
    assert {version for _, version in traffic.answers} == {1, 2, 3}
    assert versions(repository) == [".rolled-back-3", ".rolled-back-4", "1", "2"]
    # What was refused is out of the way of a server that starts.
    server.stop()
    assert serve_repository(repository, model_control=model_control).is_ready()


def test_a_corrupt_version_that_no_server_was_told_of_does_no_harm_while_one_polls(
    repository, models, serve_repository
):
    server = serve_repository(repository, model_control="poll")
    traffic = Traffic(server, MODEL_NAME)
    traffic.expect(1, repository / MODEL_NAME / "1")
    with traffic:
        add_corrupt(repository, models[1], None)
        wait_for_words(server.log_file, "failed to load 'tiny' version 2")
        traffic.wait_for_answers(1)
        assert rollback(repository)["serves"] == 1
        traffic.wait_for_answers(1)
    assert traffic.errors == []
    assert {version for _, version in traffic.answers} == {1}


def test_a_model_that_is_new_to_a_running_server_is_loaded_with_its_ensemble(
    models, serve_repository, tmp_path
):
    (tmp_path / "models").mkdir()
    server = serve_repository(tmp_path / "models", model_control="explicit")
    add(tmp_path / "models", models[0], url=server.http_url)
    assert is_ready(server.http_url, f"{MODEL_NAME}_text")
    with pytest.raises(RepositoryError, match="instance_group differs"):
        add(tmp_path / "models", models[0], url=server.http_url, settings={"instances": 2})


def test_the_commands_do_what_the_guide_shows(repository, models, serve_repository):
    server = serve_repository(repository, model_control="explicit")
    flags = ["--repository", repository, "--name", MODEL_NAME, "--url", server.http_url]
    exported = run("export", models[1], "--format", "triton", *flags)
    assert exported["triton"]["directory"] == str(repository / MODEL_NAME / "2")
    assert exported["triton"]["parity"]["agreement"] == 1.0
    told = run("rollback", repository, "--url", server.http_url)
    assert told["server"] == f"{server.http_url} serves version 1"
    assert is_ready(server.http_url, f"{MODEL_NAME}/versions/1")


def run(*arguments: object) -> dict:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_ready(url: str, model: str) -> bool:
    with urlopen(f"{url}/v2/models/{model}/ready", timeout=10) as answer:
        return answer.status == 200


def wait_for_words(log: Path, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in log.read_text("utf-8", "replace"):
        assert time.monotonic() < deadline, f"{words!r} is not in {log}"
        time.sleep(0.1)
