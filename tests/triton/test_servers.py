"""The other two ways to a server: `tritonserver` on PATH and a container, played by scripts.

Neither is here, so a script of that name writes down how it is called and runs the server that pip
installs in its place; what `serve` does with it is real.
"""

from __future__ import annotations

import json
import shlex
import stat
import sys
from pathlib import Path

import pytest

from cofi_deploy import api
from cofi_deploy.errors import RepositoryError
from cofi_deploy.serve.triton_command import ServerSettings
from cofi_deploy.serve.triton_environment import TritonEnvironment
from tests.export.conftest import WriteModel
from tests.triton.conftest import Repositories, free_ports

pytestmark = pytest.mark.triton

ENGINE = """#!{python}
import json, os, pathlib, sys

folder = pathlib.Path({folder!r})
arguments = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
built = folder / "Dockerfile"
if arguments[0] == "info":
    print("28.2.2")
elif arguments[:2] == ["image", "inspect"]:
    print("sha256:0123" if built.exists() else "")
elif arguments[0] == "build":
    built.write_text(sys.stdin.read())
elif arguments[0] == "run":
    start = arguments.index("tritonserver")
    mount = next(option for option in arguments if option.startswith("--mount="))
    source = dict(part.split("=", 1) for part in mount[8:].split(",") if "=" in part)["source"]
    server = [option.replace("/models", source) for option in arguments[start + 1 :]]
    os.environ.update({variables!r})
    os.execv({binary!r}, [{binary!r}, *server, "--backend-directory=" + {backends!r}])
"""


def write_script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory first on PATH; behind it no server and no container engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    # The server starts its models through bash.
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def engine(on_path: Path, triton_environment: TritonEnvironment) -> Path:
    """A `docker` that runs the pip-shipped server; returns the folder with what it noted."""
    text = ENGINE.format(
        python=sys.executable,
        folder=str(on_path),
        binary=str(triton_environment.binary),
        backends=str(triton_environment.backends),
        variables=triton_environment.variables(),
    )
    write_script(on_path / "docker", text)
    return on_path


@pytest.fixture
def repository_for_python(write_model: WriteModel, tmp_path: Path) -> Path:
    """Its `config.pbtxt` names the one backend that the played container really has."""
    return api.export(write_model(), format="triton", backend="python", output=tmp_path / "models")


def calls(engine: Path) -> list[list[str]]:
    lines = (engine / "calls.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_container_is_built_once_run_and_removed(
    engine: Path, repository_for_python: Path, tmp_path: Path
) -> None:
    settings = ServerSettings(**free_ports())
    said: list[str] = []
    for _ in range(2):
        with api.serve(
            repository_for_python, settings=settings, log=tmp_path / "log", say=said.append
        ) as served:
            assert served.to_json()["server"] == "container"
            assert served.server.is_ready()
    made = [call[0] for call in calls(engine)]
    assert made.count("build") == 1
    assert made.count("run") == 2
    assert made[-1] == "rm"
    dockerfile = (engine / "Dockerfile").read_text("utf-8").splitlines()
    assert dockerfile[0] == "FROM nvcr.io/nvidia/tritonserver:25.10-py3"
    assert "tokenizers==" in dockerfile[1]
    run = next(call for call in calls(engine) if call[0] == "run")
    assert f"--name=cofi-deploy-triton-{settings.http_port}" in run
    assert f"--publish=127.0.0.1:{settings.http_port}:{settings.http_port}" in run
    assert f"--mount=type=bind,source={repository_for_python},target=/models,readonly" in run
    assert "--http-address=0.0.0.0" in run
    assert "--gpus=all" not in run
    assert any(line.startswith("building the image, once: printf 'FROM ") for line in said)
    assert said.count(shlex.join([str(engine / "docker"), *run])) == 2


def test_an_image_that_cannot_be_built_says_why_and_names_the_way_on(
    on_path: Path, repository_for_python: Path, tmp_path: Path
) -> None:
    script = "#!/bin/sh\nif [ $1 = info ]; then echo 28; else echo pull: no route >&2; exit 1; fi\n"
    write_script(on_path / "docker", script)
    message = (
        r"the image cannot be built: pull: no route; try it by hand: printf 'FROM .*--server pip"
    )
    with (
        pytest.raises(Exception, match=message) as caught,
        api.serve(
            repository_for_python, settings=ServerSettings(**free_ports()), log=tmp_path / "log"
        ),
    ):
        pass
    assert caught.value.exit_code == 3  # type: ignore[attr-defined]


def test_tritonserver_on_path_is_taken_first_with_a_configuration_that_it_has_a_backend_for(
    engine: Path, repositories: Repositories, triton_environment: TritonEnvironment, tmp_path: Path
) -> None:
    installed = tmp_path / "tritonserver" / "bin"
    installed.mkdir(parents=True)
    (installed.parent / "backends").symlink_to(triton_environment.backends)
    variables = " ".join(
        f"{name}={shlex.quote(value)}" for name, value in triton_environment.variables().items()
    )
    binary = shlex.quote(str(triton_environment.binary))
    write_script(installed / "tritonserver", f'#!/bin/sh\n{variables} exec {binary} "$@"\n')
    (engine / "tritonserver").symlink_to(installed / "tritonserver")
    with api.serve(
        repositories(), settings=ServerSettings(**free_ports()), log=tmp_path / "log"
    ) as served:
        assert served.server.launch.server == "tritonserver"
        assert served.server.launch.config_name == "python"
        assert (
            "with configs/python.pbtxt: this server, or its GPU, cannot run what config.pbtxt names"
        ) in served.describe()
        assert served.server.is_ready()


def test_a_server_without_any_backend_for_a_model_is_refused(
    on_path: Path, repositories: Repositories, tmp_path: Path
) -> None:
    installed = tmp_path / "tritonserver" / "bin"
    (installed.parent / "backends" / "fil").mkdir(parents=True)
    installed.mkdir()
    write_script(installed / "tritonserver", "#!/bin/sh\n")
    (on_path / "tritonserver").symlink_to(installed / "tritonserver")
    message = r"model 'tiny' needs backend 'onnxruntime', but .*/tritonserver has: fil; export it"
    with (
        pytest.raises(RepositoryError, match=message),
        api.serve(repositories(), settings=ServerSettings(**free_ports())),
    ):
        pass
