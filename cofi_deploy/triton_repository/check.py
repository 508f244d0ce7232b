"""Would a Triton server load this model repository, and serve it as meant?

Triton's protobuf schema catches unknown fields and wrong types; it takes a wrong backend, a
negative batch size or shapes of another model. Those are checked here, against the files. Used
when a repository is written (`export/triton.py`) and before a server is started (`serve`).

Each file beside this one checks one thing: `safety.py` what could run or leave, `fields.py` a
configuration by itself, `servers.py` its age, `warmup.py` its samples, `tensors.py` the model
files, `ensembles.py` the edges between models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import ArtifactError, ConfigError, RepositoryError
from cofi_deploy.exports import ExportManifest, check_export
from cofi_deploy.triton_repository import fields, safety
from cofi_deploy.triton_repository.code import CODE_FILE, role_of
from cofi_deploy.triton_repository.ensembles import ensemble_problems
from cofi_deploy.triton_repository.schema import (
    CONFIG_FILE,
    ModelConfig,
    config_files,
    leaves_folder,
    read_config,
    version_folders,
)
from cofi_deploy.triton_repository.servers import ServerVersion, server_version, too_new
from cofi_deploy.triton_repository.tensors import Version, version_problems
from cofi_deploy.triton_repository.warmup import warmup_problems

# What stands beside the code of the models around the encoder.
_FILES = {"tokenizer": ("settings.json", "tokenizer.json"), "answer": ("settings.json",)}

_Configs = dict[Path, ModelConfig]


def check_repository(repository: Path, *, server: str | None = None) -> tuple[str, ...]:
    """Check every model of a repository, with every configuration that a server may pick.

    Args:
        repository: Directory of model folders.
        server: Version or container release of the server that will load it, ``2.51`` or
            ``25.10``; None: fields of any version are allowed.

    Returns:
        Names of the models.

    Raises:
        RepositoryError: The first problem: file, what it says, what it should say.
        ConfigError: ``server`` is neither a version nor a release.
        MissingDependencyError: tritonclient is not installed.
    """
    target = _target(server)
    if not repository.is_dir():
        raise RepositoryError(f"{str(repository)!r} is not a directory; expected a repository")
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    if not folders:
        raise RepositoryError(
            f"{str(repository)!r} holds no model folder; run: cofi-deploy export --format triton"
        )
    models: dict[str, _Configs] = {}
    for folder in folders:
        _raise_first(safety.file_problems(repository, folder))
        models[folder.name] = {path: read_config(path) for path in config_files(folder)}
        _check_model(folder, models[folder.name], target)
    known = {name: list(configs.values()) for name, configs in models.items()}
    for configs in models.values():
        for path, config in configs.items():
            _raise_first(ensemble_problems(config, known), path)
    return tuple(models)


def _target(server: str | None) -> ServerVersion | None:
    if server is None:
        return None
    version = server_version(server)
    if version is None:
        raise ConfigError(
            f"server is {server!r}, expected a version such as '2.51' or a release such as '25.10'"
        )
    return version


def _check_model(folder: Path, configs: _Configs, server: ServerVersion | None) -> None:
    for path, config in configs.items():
        _raise_first(_config_problems(config, folder, server), path)
    fields.warn_about_threads(configs[folder / CONFIG_FILE])
    versions = version_folders(folder)
    if not versions:
        raise RepositoryError(
            f"{str(folder)!r} holds no version folder; expected one called 1, 2, ..."
        )
    if fields.is_ensemble(configs[folder / CONFIG_FILE]):
        return
    for directory in versions:
        if _is_encoder(directory, configs.values()):
            version = Version(directory, _manifest(directory))
            for path, config in configs.items():
                _raise_first(version_problems(config, version), path)
        else:
            _check_text_step(directory)


def _config_problems(
    config: ModelConfig, folder: Path, server: ServerVersion | None
) -> Iterator[str]:
    yield from safety.field_problems(config)
    yield from fields.field_problems(config, folder)
    yield from too_new(config, server) if server else ()
    yield from warmup_problems(config, folder)
    yield from _label_problems(config, folder)


def _label_problems(config: ModelConfig, folder: Path) -> Iterator[str]:
    """A label file has one line for each class."""
    for item in config.output:
        if not item.label_filename:
            continue
        file = folder / item.label_filename
        if leaves_folder(item.label_filename):
            yield f"output {item.name!r} names {item.label_filename!r}, expected a plain file name"
            continue
        if not file.is_file():
            yield f"output {item.name!r} names {str(file)!r}, which is missing"
            continue
        lines, classes = len(file.read_text(encoding="utf-8").splitlines()), item.dims[-1]
        if lines != classes:
            yield f"{str(file)!r} has {lines} labels, output {item.name!r} has {classes} classes"


def _is_encoder(version: Path, configs: Iterable[ModelConfig]) -> bool:
    """True for the model itself, False for the Python steps around it."""
    code = version / CODE_FILE
    role = role_of(code) if code.is_file() else None
    return role == "encoder" or any(config.backend != "python" for config in configs)


def _manifest(version: Path) -> ExportManifest:
    """What the version says about itself, its files compared with their checksums."""
    try:
        return check_export(version)
    except ArtifactError as error:
        raise RepositoryError(str(error)) from error


def _check_text_step(version: Path) -> None:
    role = role_of(version / CODE_FILE) if (version / CODE_FILE).is_file() else None
    if role is None:
        raise RepositoryError(f"{str(version / CODE_FILE)!r} is missing; export the model again")
    for name in _FILES[role]:
        if not (version / name).is_file():
            raise RepositoryError(f"{str(version / name)!r} is missing; export the model again")
    try:
        read_json(version / "settings.json")
    except ArtifactError as error:
        raise RepositoryError(str(error)) from error


def _raise_first(problems: Iterator[str], path: Path | None = None) -> None:
    """Raise the first problem; ``path`` is the configuration that it is about."""
    for problem in problems:
        raise RepositoryError(problem if path is None else f"{str(path)!r}: {problem}")
