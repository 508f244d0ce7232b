"""Which server is chosen, and the command line that starts it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cofi_deploy.errors import EnvironmentProblem, RepositoryError
from cofi_deploy.serve.triton_command import (
    Needs,
    ServerSettings,
    config_name_for,
    reachable_host,
    server_arguments,
)
from cofi_deploy.serve.triton_launchers import plan_launch

SETTINGS = ServerSettings(http_port=8100, grpc_port=8101, metrics_port=8102)
ENCODER = {"": "tensorrt", "onnxruntime": "onnxruntime", "python": "python"}
STEP = {"": "python"}
NEEDS = Needs(backends={"tiny": ENCODER, "tiny_tokenizer": STEP})

Command = Callable[..., Path]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Scripts on PATH, where nothing else is; the cache directory is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))

    def add(name: str, text: str = "exit 1", *, at: Path = folder) -> Path:
        at.mkdir(parents=True, exist_ok=True)
        path = at / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return add


@pytest.fixture
def tritonserver(commands: Command, tmp_path: Path) -> Callable[..., Path]:
    """An installed server: a link on PATH, backends beside its program."""

    def install(*backends: str) -> Path:
        root = tmp_path / "tritonserver"
        program = commands("tritonserver", at=root / "bin")
        for name in backends:
            (root / "backends" / name).mkdir(parents=True)
        link = tmp_path / "bin" / "tritonserver"
        link.symlink_to(program)
        return link

    return install


def gpu(commands: Command, *capabilities: str) -> None:
    """A driver; without ``capabilities`` one that is too old to tell them."""
    told = r"\n".join(capabilities) or r"Field \"compute_cap\" is not a valid field to query."
    commands(
        "nvidia-smi",
        f'[ "$1" = -L ] && echo "GPU 0: NVIDIA H100 (UUID: GPU-1)" || printf "{told}"',
    )


def docker(commands: Command) -> Path:
    return commands("docker", '[ "$1" = info ] && echo 28.2.2')


def test_every_server_listens_where_it_is_told_and_completes_no_configuration() -> None:
    arguments = server_arguments("/srv/models", SETTINGS)
    for argument in (
        "--model-repository=/srv/models",
        "--disable-auto-complete-config",
        "--model-control-mode=poll",
        "--repository-poll-secs=5",
        "--http-address=127.0.0.1",
        "--http-port=8100",
        "--grpc-address=127.0.0.1",
        "--grpc-port=8101",
        "--metrics-address=127.0.0.1",
        "--metrics-port=8102",
        "--backend-config=python,shm-region-prefix-name=cofi-deploy-8100-",
    ):
        assert argument in arguments
    assert not [argument for argument in arguments if argument.startswith("--cache-config")]


def test_explicit_control_loads_all_models_at_the_start() -> None:
    arguments = server_arguments("/srv/models", ServerSettings(model_control="explicit"))
    assert "--load-model=*" in arguments
    assert not [argument for argument in arguments if "poll" in argument]


def test_the_response_cache_is_given_in_bytes() -> None:
    arguments = server_arguments("/srv/models", ServerSettings(cache_mib=3))
    assert "--cache-config=local,size=3145728" in arguments


@pytest.mark.parametrize(
    ("host", "client"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.7", "10.0.0.7")],
)
def test_a_server_on_all_addresses_is_reached_on_this_machine(host: str, client: str) -> None:
    assert reachable_host(host) == client


@pytest.mark.parametrize(
    ("backends", "name"),
    [
        ({"tensorrt", "onnxruntime", "python"}, ""),
        ({"onnxruntime", "python"}, "onnxruntime"),
        ({"python"}, "python"),
    ],
    ids=["config.pbtxt", "onnxruntime", "python"],
)
def test_the_fastest_configuration_with_a_backend_is_taken(backends: set[str], name: str) -> None:
    assert config_name_for(NEEDS, backends, server="it") == name


def test_a_model_without_any_backend_is_named() -> None:
    needs = Needs(backends={"steps": STEP, "big": {"": "tensorrt", "onnxruntime": "onnxruntime"}})
    message = (
        "model 'big' needs backend 'tensorrt', but the server that pip installs has: python; "
        "export it again with --backend python, or choose another server with --server"
    )
    with pytest.raises(RepositoryError, match=re.escape(message)):
        config_name_for(needs, {"python"}, server="the server that pip installs")


def test_tritonserver_on_path_comes_first(
    tritonserver: Callable[..., Path], commands: Command, tmp_path: Path
) -> None:
    docker(commands)
    gpu(commands)
    program = tritonserver("tensorrt", "onnxruntime", "python")
    launch = plan_launch(tmp_path, NEEDS, SETTINGS)
    assert launch.server == "tritonserver"
    assert launch.argv[0] == str(program)
    assert f"--backend-directory={tmp_path}/tritonserver/backends" in launch.argv
    assert launch.config_name == ""
    assert not launch.variables


def test_without_a_gpu_tensorrt_is_of_no_use_however_well_installed(
    tritonserver: Callable[..., Path], tmp_path: Path
) -> None:
    tritonserver("tensorrt", "onnxruntime", "python")
    launch = plan_launch(tmp_path, NEEDS, SETTINGS)
    assert launch.config_name == "onnxruntime"
    assert launch.argv[-1] == "--model-config-name=onnxruntime"


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        (("9.0",), ""),
        (("8.9", "9.0"), ""),
        (("7.5",), "onnxruntime"),
        (("9.0", "7.5"), "onnxruntime"),
        ((), ""),
    ],
    ids=["it has an engine", "all have", "it has none", "one has none", "the driver does not tell"],
)
def test_where_a_gpu_has_no_engine_the_onnx_file_is_served(
    devices: tuple[str, ...],
    name: str,
    tritonserver: Callable[..., Path],
    commands: Command,
    tmp_path: Path,
) -> None:
    gpu(commands, *devices)
    tritonserver("tensorrt", "onnxruntime", "python")
    engines = {"tiny": frozenset({"8.9", "9.0"})}
    needs = Needs(backends=NEEDS.backends, gpu=True, capabilities=engines)
    assert plan_launch(tmp_path, needs, SETTINGS).config_name == name


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.62.0\n", "2.62.0"), ("2.73.0dev\n", "2.73.0"), ("nightly", None), (None, None)],
    ids=["a release", "a development build", "something else", "no file"],
)
def test_the_version_of_an_installed_server_is_what_its_build_wrote(
    text: str | None, version: str | None, tritonserver: Callable[..., Path], tmp_path: Path
) -> None:
    tritonserver("onnxruntime", "python")
    if text is not None:
        (tmp_path / "tritonserver" / "TRITON_VERSION").write_text(text, encoding="utf-8")
    assert plan_launch(tmp_path, NEEDS, SETTINGS).version == version


def test_a_container_comes_second_and_its_lines_can_be_typed(
    commands: Command, tmp_path: Path
) -> None:
    program = docker(commands)
    launch = plan_launch(tmp_path, NEEDS, SETTINGS)
    build, run = launch.shell_lines()
    assert build.startswith("printf 'FROM nvcr.io/nvidia/tritonserver:25.10-py3\\nRUN pip install ")
    assert re.search(r" \| \S+/docker build --tag=cofi-deploy-triton:[0-9a-f]{12} -$", build)
    words = shlex.split(run)
    assert words[:5] == [str(program), "run", "--rm", "--init", "--name=cofi-deploy-triton-8100"]
    assert "--publish=127.0.0.1:8100:8100" in words
    assert f"--mount=type=bind,source={tmp_path},target=/models,readonly" in words
    assert "--model-repository=/models" in words
    assert "--http-address=0.0.0.0" in words
    assert "--model-config-name=onnxruntime" in words
    assert not [word for word in words if word.startswith("--gpus")]
    assert launch.stop == (str(program), "rm", "--force", "cofi-deploy-triton-8100")


def test_a_built_image_is_not_built_again(commands: Command, tmp_path: Path) -> None:
    commands("docker", "echo 28.2.2")
    assert plan_launch(tmp_path, NEEDS, SETTINGS).preparation is None


@pytest.mark.parametrize(
    ("engine", "option"), [("docker", "--gpus=all"), ("podman", "--device=nvidia.com/gpu=all")]
)
def test_a_container_gets_the_gpu_that_the_models_want(
    engine: str, option: str, commands: Command, tmp_path: Path
) -> None:
    commands(engine, '[ "$1" = info ] && echo 5.0')
    gpu(commands)
    wanting = Needs(backends=NEEDS.backends, gpu=True)
    assert option in plan_launch(tmp_path, wanting, SETTINGS).argv
    assert option not in plan_launch(tmp_path, NEEDS, SETTINGS).argv


@pytest.mark.parametrize(
    ("host", "published"),
    [("localhost", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")],
)
def test_an_engine_takes_no_names_and_ipv6_in_brackets(
    host: str, published: str, commands: Command, tmp_path: Path
) -> None:
    docker(commands)
    launch = plan_launch(tmp_path, NEEDS, ServerSettings(host=host))
    assert f"--publish={published}:8000:8000" in launch.argv


def test_a_client_without_its_engine_is_passed_over(commands: Command, tmp_path: Path) -> None:
    commands("docker", "exit 1")
    launch = plan_launch(tmp_path, NEEDS, SETTINGS)
    assert launch.server == "pip"
    assert launch.config_name == "python"


def test_planning_installs_nothing(commands: Command, tmp_path: Path) -> None:
    launch = plan_launch(tmp_path, NEEDS, SETTINGS, server="pip")
    assert str(tmp_path / "cache") in launch.argv[0]
    (line,) = launch.shell_lines()
    assert line.startswith("env PATH=")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("tritonserver", "tritonserver is not on PATH; add its folder to PATH, or choose --server"),
        ("container", "no container engine answers (tried docker, podman); start one, or choose"),
    ],
)
def test_a_server_that_was_asked_for_and_is_not_here_is_an_error(
    server: str, message: str, commands: Command, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentProblem, match=re.escape(message)):
        plan_launch(tmp_path, NEEDS, SETTINGS, server=server)
