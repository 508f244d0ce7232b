"""The container that serves a repository: NVIDIA's image plus the packages that our models import.

In: a container engine that answers, a repository, settings. Out: a `Launch` whose lines can also be
typed by hand. Chosen by `triton_launchers.py`.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cofi_deploy.serve.triton_command import (
    ALL_HOSTS,
    LOCAL_HOST,
    Launch,
    Needs,
    Preparation,
    ServerSettings,
    answer_of,
    config_argument,
    config_name_for,
    has_gpu,
    server_arguments,
    usable_backends,
)
from cofi_deploy.serve.triton_environment import requirements
from cofi_deploy.triton_image import TRITON_IMAGE, TRITON_RELEASE

_IMAGE_BACKENDS = frozenset({"onnxruntime", "tensorrt", "openvino", "python", "pytorch"})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine that answers."""

    name: Literal["docker", "podman"]
    path: str
    version: str


def find_engine() -> Engine | None:
    """Docker or podman, whichever answers first; a client without its daemon does not."""
    docker = _engine("docker", "{{.ServerVersion}}")
    return docker or _engine("podman", "{{.Version.Version}}")


def container_launch(
    engine: Engine, repository: Path, needs: Needs, settings: ServerSettings
) -> Launch:
    """The command line of a container that ``engine`` runs.

    Raises:
        RepositoryError: The image has not the backends that the models need.
    """
    image, preparation = _image(engine)
    name = config_name_for(needs, usable_backends(_IMAGE_BACKENDS, needs), server=TRITON_IMAGE)
    inside = replace(settings, host=ALL_HOSTS)
    container = f"cofi-deploy-triton-{settings.http_port}"
    gpu = _gpu_options(engine) if needs.gpu and has_gpu() else ()
    address = _address(settings.host)
    published = (f"--publish={address}:{port}:{port}" for port in settings.ports.values())
    return Launch(
        server="container",
        argv=(
            *(engine.path, "run", "--rm", "--init", f"--name={container}", "--shm-size=1g", *gpu),
            *published,
            f"--mount=type=bind,source={repository.resolve()},target=/models,readonly",
            image,
            *("tritonserver", *server_arguments("/models", inside), *config_argument(name)),
        ),
        version=TRITON_RELEASE,
        config_name=name,
        preparation=preparation,
        stop=(engine.path, "rm", "--force", container),
    )


def _image(engine: Engine) -> tuple[str, Preparation | None]:
    """NVIDIA's image plus what the models import; built once, not at every start."""
    packages = [line for line in requirements() if line.startswith(("onnxruntime", "tokenizers"))]
    # The image's own Python is the one that its stub runs.
    install = "pip install --no-cache-dir --no-deps --break-system-packages"
    text = f"FROM {TRITON_IMAGE}\nRUN {install} {' '.join(packages)}\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    image = f"cofi-deploy-triton:{digest}"
    if answer_of([engine.path, "image", "inspect", "--format={{.Id}}", image]):
        return image, None
    return image, Preparation(argv=(engine.path, "build", f"--tag={image}", "-"), text=text)


def _address(host: str) -> str:
    """As `--publish` takes it: no names, and IPv6 in brackets."""
    numeric = LOCAL_HOST if host == "localhost" else host
    return f"[{numeric}]" if ":" in numeric else numeric


def _gpu_options(engine: Engine) -> tuple[str, ...]:
    return ("--gpus=all",) if engine.name == "docker" else ("--device=nvidia.com/gpu=all",)


def _engine(name: Literal["docker", "podman"], version: str) -> Engine | None:
    path = shutil.which(name)
    if path is None:
        return None
    answer = answer_of([path, "info", f"--format={version}"])
    return Engine(name=name, path=path, version=answer.splitlines()[-1]) if answer else None
