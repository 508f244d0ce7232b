"""`export --repository` and `rollback`: versions of a served model, and the server that runs them.

Files first (`export/triton_versions.py`), then the server, where one is named
(`export/triton_control.py`). What it refuses is taken back: a server that starts must find only
versions that can be loaded.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cofi_deploy.errors import EnvironmentProblem, RunnerError
from cofi_deploy.export.triton_control import TritonControl
from cofi_deploy.export.triton_versions import (
    AddedVersion,
    RolledBack,
    WriteModels,
    add_version,
    lock_repository,
    roll_back,
    undo,
    withdraw,
)

logger = logging.getLogger(__name__)


def add_to_repository(
    repository: Path, name: str, write: WriteModels, *, url: str | None = None
) -> AddedVersion:
    """Add a model to a repository that a server may be running from.

    Args:
        repository: Made if need be; holds any number of models.
        name: Of the model on the server; known ones get their next version.
        write: Writes the model's folders into an empty directory.
        url: HTTP address of the server; it is told, and must load the version.

    Raises:
        RunnerError: The server refused the version, which was taken back.
        CofiDeployError: As `add_version`; nothing was changed.
    """
    control = _control(url)
    with lock_repository(repository) as place:
        added = add_version(place, name, write)
        with _taking_back(control, added):
            if control is not None:
                control.serve(name, added.number)
    logger.info("added version %d of %s to %s", added.number, name, repository)
    return added


def rollback(
    repository: Path, model: str | None = None, *, url: str | None = None
) -> dict[str, Any]:
    """Set the newest version of a model aside; the one before it serves again.

    Args:
        repository: That a server runs from.
        model: Name of the model; None where there is only one.
        url: HTTP address of the server; it is told, and must serve the earlier version.

    Returns:
        JSON that the command prints: model, rolled_back, serves, directory, server.

    Raises:
        CofiDeployError: See errors.py; the newest version is in its place again.
    """
    control = _control(url)
    with lock_repository(repository) as place:
        result = roll_back(place, model)
        if control is not None:
            try:
                control.serve(result.name, result.serves)
            except (RunnerError, EnvironmentProblem) as error:
                undo(result)
                raise RunnerError(
                    f"{error}; nothing was rolled back, version {result.number} is in its place"
                ) from error
    return _told(result, url)


def _control(url: str | None) -> TritonControl | None:
    if url is None:
        return None
    control = TritonControl(url=url)
    control.check_live()
    return control


@contextlib.contextmanager
def _taking_back(control: TritonControl | None, added: AddedVersion) -> Iterator[None]:
    """A version that its server cannot load would stop the next server from starting."""
    try:
        yield
    except (RunnerError, EnvironmentProblem) as error:
        if control is not None:
            control.unload(added.folders)
        withdraw(added)
        kept = f"version {added.previous} goes on serving"
        what = kept if added.previous else "nothing of it stays in the repository"
        raise RunnerError(f"{error}; the new version was taken back, {what}") from error


def _told(result: RolledBack, url: str | None) -> dict[str, Any]:
    waits = (
        "one that polls changes over at its next poll (15 s by Triton's default, "
        "--repository-poll-secs); one with explicit control needs --url"
    )
    return {
        "model": result.name,
        "rolled_back": result.number,
        "serves": result.serves,
        "directory": str(result.aside),
        "server": waits if url is None else f"{url} serves version {result.serves}",
    }
