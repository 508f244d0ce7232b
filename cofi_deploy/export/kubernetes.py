"""Manifests that run a model repository on Kubernetes, in `<repository>-kubernetes` beside it.

Beside and not inside: a server takes every folder of a repository for a model. Comes in: a
repository, the name of a model in it and the `TritonOptions` it is served with. Goes out: what
`templates/kubernetes/` holds, filled in; each template says why it is as it is.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from cofi_deploy.artifacts import check_checksums, checksums, read_json, size_bytes, write_json
from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import ArtifactError, RepositoryError
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import MANIFEST
from cofi_deploy.triton_image import TRITON_IMAGE
from cofi_deploy.triton_repository import version_folders

logger = logging.getLogger(__name__)

# What the Python models import and the image has not; the releases that our tests serve with.
PACKAGES = ("onnxruntime==1.32.0", "tokenizers==0.23.3")
REGISTRY = "registry.example.com"  # reserved, RFC 2606: to be replaced in kustomization.yaml

_TEMPLATES = (
    "Dockerfile",
    "README.md",
    "deployment.yaml",
    "hpa.yaml",
    "kserve-inference-service.yaml",
    "kustomization.yaml",
    "pdb.yaml",
    "prometheus-adapter-values.yaml",
    "service.yaml",
)
_DRAIN_S = 15  # seconds until every proxy has learnt that a pod is going
_EXIT_S = 30  # seconds for requests that are running then; Triton's own default
_TEXT_PROCESSES = 2  # tokenizer and answer
_NAME_LENGTH = 40  # of 63 that a Kubernetes label may have, with what is put around it


@dataclass(frozen=True, kw_only=True)
class PodSize:
    """What one pod asks for, and why."""

    instances: int
    threads: int
    cores: int
    cores_why: str
    memory_mib: int
    shm_mib: int
    gpu: bool


def write_kubernetes(repository: Path, name: str, options: TritonOptions) -> Path:
    """Write manifests for a model that lies in a repository.

    Args:
        repository: Exists; holds ``name``.
        name: Of the encoder.
        options: Those it was exported with.

    Returns:
        The folder that was written; one of an earlier export is replaced.

    Raises:
        RepositoryError: The folder is there, and a file of it was edited since.
        UsageError: The folder is there, and is not ours.
        EnvironmentProblem: The disk is full or the place is not writable.
    """
    repository = repository.resolve()
    check_manifests(repository)
    folder = _folder(repository)
    newest = version_folders(repository / name)[-1]
    pod = pod_size(options, model_bytes=_model_bytes(newest))
    values = {**asdict(pod), **_names(repository, name, int(newest.name))}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cofi_deploy.export", "templates/kubernetes"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    with atomic_directory(folder) as directory:
        for file in _TEMPLATES:
            text = environment.get_template(f"{file}.j2").render(values)
            (directory / file).write_text(text, encoding="utf-8")
        write_json(
            directory / MANIFEST,
            {"format": "kubernetes", "model": name, "files": checksums(directory)},
        )
    logger.info("wrote %s", folder)
    return folder


def check_manifests(repository: Path) -> None:
    """Refuse to replace manifests that somebody edited: their node selectors are not ours to lose.

    Raises:
        RepositoryError: As `write_kubernetes`; called by itself before any work is done.
    """
    folder = _folder(repository.resolve())
    if not (folder / MANIFEST).is_file():
        return
    try:
        files = read_json(folder / MANIFEST).get("files", {})
        check_checksums(folder, files, remedy="")
    except ArtifactError as error:
        raise RepositoryError(
            f"{str(folder)!r} would be replaced, but was edited since it was written "
            f"({str(error).rstrip('; ')}); move it away, or export without --kserve"
        ) from error


def pod_size(options: TritonOptions, *, model_bytes: int) -> PodSize:
    """Resources of a pod.

    Args:
        options: How the model is served.
        model_bytes: Of the file that an instance loads.

    Returns:
        Cores: instances x threads, and one for HTTP, gRPC, tokenizer and answers. Memory: a
        server, its Python processes and, for each instance, the weights three times (file, arena,
        activations) and 256 MiB; an estimate, rounded up to 256 MiB.
    """
    gpu = options.runs_on == "gpu"
    threads = 1 if gpu else max(1, options.intra_op_threads)
    cores = 1 + options.instances * threads
    why = f"Cores: {options.instances} (instances) x {threads} (threads) + 1 for everything else."
    processes = _TEXT_PROCESSES + (options.instances if options.backend == "python" else 0)
    shm_mib = 256 + 64 * processes
    instance_mib = 3 * model_bytes / 2**20 + 256
    memory_mib = 1024 + 128 * processes + shm_mib + options.instances * instance_mib
    return PodSize(
        instances=options.instances,
        threads=threads,
        cores=cores,
        cores_why=why,
        memory_mib=256 * math.ceil(memory_mib / 256),
        shm_mib=shm_mib,
        gpu=gpu,
    )


def resource_name(model: str) -> str:
    """A model's name in the letters that Kubernetes allows for a Service.

    >>> resource_name("SST2_s95.v1")
    'triton-sst2-s95-v1'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower())[:_NAME_LENGTH].strip("-")
    return f"triton-{slug}"


def _folder(repository: Path) -> Path:
    return repository.with_name(f"{repository.name}-kubernetes")


def _names(repository: Path, model: str, version: int) -> dict[str, object]:
    app = resource_name(model)
    image = f"{REGISTRY}/{app}"
    return {
        "app": app,
        "name": model,
        "repository": json.dumps([f"{repository.name}/", "/models/"]),
        "metric": f"{app.replace('-', '_')}_waiting_requests",
        "image": f"{image}:{version}",
        "image_name": image,
        "image_tag": str(version),
        "server_image": f"{image}-server:{version}",
        "storage_uri": f"pvc://{app}/models",
        "triton_image": TRITON_IMAGE,
        "packages": PACKAGES,
        "drain_s": _DRAIN_S,
        "exit_s": _EXIT_S,
    }


def _model_bytes(version: Path) -> int:
    """Of the largest file: the fallback beside an engine is not loaded."""
    return max(size_bytes(path) for path in version.iterdir())
