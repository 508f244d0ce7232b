"""Which Triton server to start on this machine.

In: a repository, what its models need (`triton_served.py`) and `ServerSettings`. Out: a `Launch`:
`tritonserver` on PATH, else a container (`triton_container.py`), else the server that pip installs
(`triton_environment.py`). `triton_server.py` runs it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.serve.triton_command import (
    Launch,
    Needs,
    Server,
    ServerSettings,
    config_argument,
    config_name_for,
    server_arguments,
    usable_backends,
)
from cofi_deploy.serve.triton_container import container_launch, find_engine
from cofi_deploy.serve.triton_environment import (
    TritonEnvironment,
    planned_environment,
    prepare_environment,
)
from cofi_deploy.triton_repository import server_version

PIP_VERSION = "2.51"  # of the server in the pinned nvidia-pytriton

_INSTALLED = Path("/opt/tritonserver")


def plan_launch(
    repository: Path,
    needs: Needs,
    settings: ServerSettings,
    *,
    server: Server | Literal["auto"] = "auto",
    install: Callable[[str], None] | None = None,
) -> Launch:
    """Choose a server and write its command line.

    Args:
        repository: What it serves.
        needs: What the models in it ask for.
        settings: Ports and control.
        server: One of `SERVERS`, or `auto`: the first of them that is here.
        install: Says a line before a server is installed; None: nothing is installed, the command
            names the place where it would be.

    Raises:
        EnvironmentProblem: The server that was asked for is not here and cannot be installed.
        RepositoryError: It has not the backends that the models need.
    """
    if server in {"auto", "tritonserver"}:
        binary = find_tritonserver()
        if binary is not None:
            return _on_path(binary, repository, needs, settings)
        if server == "tritonserver":
            raise EnvironmentProblem(
                "tritonserver is not on PATH; add its folder to PATH, or choose --server container "
                "or --server pip"
            )
    if server in {"auto", "container"}:
        engine = find_engine()
        if engine is not None:
            return container_launch(engine, repository, needs, settings)
        if server == "container":
            raise EnvironmentProblem(
                "no container engine answers (tried docker, podman); start one, or choose "
                "--server pip"
            )
    environment = planned_environment() if install is None else prepare_environment(install)
    return _from_pip(environment, repository, needs, settings)


def find_tritonserver() -> Path | None:
    """`tritonserver` on PATH."""
    path = shutil.which("tritonserver")
    return None if path is None else Path(path)


def _on_path(binary: Path, repository: Path, needs: Needs, settings: ServerSettings) -> Launch:
    folder = _backend_directory(binary)
    arguments = server_arguments(repository, settings)
    name = ""
    if folder is not None:
        backends = {path.name for path in folder.iterdir() if path.is_dir()}
        name = config_name_for(needs, usable_backends(backends, needs), server=str(binary))
        arguments.append(f"--backend-directory={folder}")
    return Launch(
        server="tritonserver",
        argv=(str(binary), *arguments, *config_argument(name)),
        version=_installed_version(binary),
        config_name=name,
    )


def _backend_directory(binary: Path) -> Path | None:
    beside = binary.resolve().parent.parent / "backends"
    return next((path for path in (beside, _INSTALLED / "backends") if path.is_dir()), None)


def _installed_version(binary: Path) -> str | None:
    """What Triton's build writes beside `bin`; None where it is not there."""
    for folder in (binary.resolve().parent.parent, _INSTALLED):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (folder / "TRITON_VERSION").read_text(encoding="utf-8").strip()
            # A build of the development branch says "2.73.0dev".
            version = text.removesuffix("dev")
            return version if server_version(version) else None
    return None


def _from_pip(
    environment: TritonEnvironment, repository: Path, needs: Needs, settings: ServerSettings
) -> Launch:
    name = config_name_for(needs, {"python"}, server="the server that pip installs")
    return Launch(
        server="pip",
        argv=(
            str(environment.binary),
            *server_arguments(repository, settings),
            f"--backend-directory={environment.backends}",
            *([f"--cache-directory={environment.caches}"] if settings.cache_mib else []),
            *config_argument(name),
        ),
        variables=environment.variables(),
        version=PIP_VERSION,
        config_name=name,
    )
