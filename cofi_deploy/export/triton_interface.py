"""May this model be the next version of the one that is served?

A version folder brings weights only: configuration, labels, tokenizer and text settings are those
of the model folder, and every client was written against them. Comes in: a repository and the
freshly written folders of one model. Goes out: nothing, or all differences in one error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cofi_deploy.errors import RepositoryError
from cofi_deploy.exports import MANIFEST, read_manifest
from cofi_deploy.triton_repository import ModelConfig, read_config, version_folders

logger = logging.getLogger(__name__)

# Run before a model is ready, and of no effect on its answers.
_WARMUP = "warmup"


def check_same_interface(repository: Path, new: Path, name: str) -> None:
    """Compare the folders in ``new`` with those of the same names in a repository.

    Args:
        repository: Folders that it lacks are not compared.
        new: The folders of one model.
        name: Of its encoder.

    Raises:
        RepositoryError: They differ in what a client can see, all differences at once; or a folder
            of ``repository`` was not written by cofi-deploy.
    """
    served = repository / name
    if served.is_dir():
        _check_kind(served, new / name)
    problems = [
        problem
        for folder in sorted(new.iterdir())
        if (repository / folder.name).exists()
        for problem in _differences(
            repository / folder.name, folder, is_encoder=folder == new / name
        )
    ]
    if problems:
        raise RepositoryError(
            f"{name!r} in {str(repository)!r} cannot take this model as its next version: "
            f"{'; '.join(problems)}; export it with what is served, or under another --name"
        )


def _check_kind(served: Path, new: Path) -> None:
    """The headline; everything else would only follow from it."""
    versions = version_folders(served)
    if not versions or not (versions[-1] / MANIFEST).is_file():
        raise RepositoryError(
            f"{str(served)!r} was not written by cofi-deploy; choose another --name"
        )
    before, after = read_manifest(versions[-1]), read_manifest(version_folders(new)[-1])
    if before.kind != after.kind or before.labels != after.labels:
        raise RepositoryError(
            f"{str(served)!r} serves {_described(before.kind, before.labels)}, but this model is "
            f"{_described(after.kind, after.labels)}; export it under another --name"
        )


def _described(kind: str, labels: tuple[str, ...]) -> str:
    return f"{kind} with labels {list(labels)}" if labels else kind


def _differences(served: Path, new: Path, *, is_encoder: bool) -> Iterator[str]:
    before, after = _files(served, is_encoder), _files(new, is_encoder)
    for name in sorted(before.keys() | after.keys()):
        file = f"{served.name}/{name}"
        if name not in after:
            yield f"{file} is served, this model has none"
        elif name not in before:
            yield f"{file} is not served, this model has one"
        elif before[name].read_bytes() != after[name].read_bytes():
            yield from _told(file, before[name], after[name])


def _files(folder: Path, is_encoder: bool) -> dict[str, Path]:
    """What makes the interface, by its place in the folder: no versions, no code.

    Code of the text models is not compared: a newer cofi-deploy may add versions to what an older
    one wrote, and the older code goes on serving them.
    """
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        is_version = is_encoder and (parts[0].isdecimal() or parts[0].startswith("."))
        is_code = path.suffix in {".py", ".pyc"}
        if path.is_file() and not is_version and not is_code and parts[0] != _WARMUP:
            found["/".join(parts)] = path
    return found


def _told(file: str, served: Path, new: Path) -> Iterator[str]:
    """How two files of the same name differ, in the words of their format."""
    if served.suffix == ".pbtxt":
        yield from _config_told(file, read_config(served), read_config(new))
    elif served.name == "settings.json":
        before, after = _settings(served), _settings(new)
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield f"{file}: {key} is {after.get(key)!r}, served is {before.get(key)!r}"
    else:
        yield f"{file} is another one than is served"


def _config_told(file: str, served: ModelConfig, new: ModelConfig) -> Iterator[str]:
    for field in served.DESCRIPTOR.fields:
        before, after = getattr(served, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.name == "parameters":
            for key in sorted(before.keys() | after.keys()):
                told, was = after[key].string_value, before[key].string_value
                if told != was:
                    yield f"{file}: parameter {key} is {told!r}, served is {was!r}"
        elif isinstance(after, str | int | float):
            yield f"{file}: {field.name} is {after!r}, served is {before!r}"
        else:
            yield f"{file}: {field.name} differs"


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RepositoryError(f"{str(path)!r} is not JSON: {error}") from error
    return data if isinstance(data, dict) else {"": data}
