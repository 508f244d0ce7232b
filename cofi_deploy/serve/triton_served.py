"""What lies in a repository: which backends its models need, and how to ask them.

In: a repository whose configurations Triton's schema can read. Out: `Needs` for
`triton_launchers.py`, and for each text model a request that can be pasted.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.exports import read_manifest
from cofi_deploy.serve.triton_command import Needs
from cofi_deploy.triton_repository import (
    CONFIG_FILE,
    CONFIGS_FOLDER,
    ModelConfig,
    read_config,
    version_folders,
)

logger = logging.getLogger(__name__)

_TEXT_SUFFIX = "_text"
_SENTENCES = ("I would come here again.", "The room was cold, and breakfast was late.")
# Inputs that take something else than sentences.
_SAMPLES = {
    "question": ("Where did the meeting take place?",),
    "context": ("The committee met in Vienna on Tuesday and agreed on a budget.",),
}


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A request that a text model answers; ``body`` is the JSON of Triton's HTTP protocol."""

    model: str
    body: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Where it is sent, below the server's address."""
        return f"/v2/models/{self.model}/infer"

    def curl(self, url: str) -> str:
        """The line that sends it to the server at ``url``."""
        data = shlex.quote(json.dumps(self.body, ensure_ascii=False))
        return f"curl -s {url}{self.path} -d {data}"


def needs_of(repository: Path) -> Needs:
    """Backends of all models that are no ensembles, in every configuration that they have.

    Raises:
        RepositoryError: A configuration is missing or broken.
    """
    backends: dict[str, dict[str, str]] = {}
    gpu = False
    capabilities: dict[str, frozenset[str]] = {}
    for folder, config in _models(repository):
        if _is_ensemble(config):
            continue
        others = {path.stem: read_config(path) for path in _other_configs(folder)}
        configs = {"": config, **others}
        backends[folder.name] = {name: found.backend for name, found in configs.items()}
        gpu = gpu or _wants_gpu(config)
        if config.backend == "tensorrt" and (built_for := _built_for(folder)):
            capabilities[folder.name] = built_for
    return Needs(backends=backends, gpu=gpu, capabilities=capabilities)


def sample_requests(repository: Path) -> list[SampleRequest]:
    """A request for each `<name>_text` of a repository.

    Raises:
        RepositoryError: A configuration is missing or broken.
    """
    return [
        SampleRequest(model=folder.name, body={"inputs": _inputs(config)})
        for folder, config in _models(repository)
        if _is_ensemble(config) and folder.name.endswith(_TEXT_SUFFIX)
    ]


def remove_compiled_code(repository: Path) -> None:
    """What a server's Python left beside our code; it would run in its place, whatever it holds."""
    for path in sorted(repository.glob("*/*/__pycache__")):
        shutil.rmtree(path, ignore_errors=True)
        logger.info("removed %s", path)


def _models(repository: Path) -> Iterator[tuple[Path, ModelConfig]]:
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        yield folder, read_config(folder / CONFIG_FILE)


def _other_configs(folder: Path) -> list[Path]:
    return sorted((folder / CONFIGS_FOLDER).glob("*.pbtxt"))


def _is_ensemble(config: ModelConfig) -> bool:
    return config.platform == "ensemble" or bool(config.ensemble_scheduling.step)


def _wants_gpu(config: ModelConfig) -> bool:
    kinds = [group.Kind.Name(group.kind) for group in config.instance_group]
    return config.backend == "tensorrt" or "KIND_GPU" in kinds


def _built_for(folder: Path) -> frozenset[str]:
    """Compute capabilities that the newest version, which is served, has an engine for."""
    return frozenset(
        plan["compute_capability"]
        for version in version_folders(folder)[-1:]
        for plan in read_manifest(version).options.get("plans", ())
    )


def _inputs(config: ModelConfig) -> list[dict[str, Any]]:
    """One string for each row; as many rows as there are samples and the model takes."""
    names = [item.name for item in config.input]
    rows = min(len(_SAMPLES.get(name, _SENTENCES)) for name in names)
    if config.max_batch_size > 0:
        rows = min(rows, config.max_batch_size)
    return [
        {
            "name": name,
            "shape": [rows, 1] if config.max_batch_size > 0 else [rows],
            "datatype": "BYTES",
            "data": list(_SAMPLES.get(name, _SENTENCES)[:rows]),
        }
        for name in names
    ]
