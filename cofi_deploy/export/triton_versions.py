"""A new version beside the ones that a server runs, and the way back; in one rename each.

Comes in: a repository that may hold any number of models, and what writes the folders of one
model. Goes out: `<name>/<N+1>/`, or for a new name all its folders, the ensemble last. What is
served is compared first (`triton_interface.py`); a running server is told by `triton_control.py`.

Triton's ways behind this, seen on server 2.51: with polling every change below a model folder makes
it load that model anew, so a version is built elsewhere and renamed in. A folder whose name is no
number is no version. A hidden folder at the top of a repository is taken for a model without a
configuration, which is an error at every poll and the end of a server that starts.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import size_bytes
from cofi_deploy.atomic import atomic_directory, lock_directory, sweep_leftovers
from cofi_deploy.errors import EnvironmentProblem, RepositoryError, UsageError, did_you_mean
from cofi_deploy.export.triton_interface import check_same_interface
from cofi_deploy.exports import MANIFEST, check_export, read_manifest
from cofi_deploy.triton_repository import version_folders

logger = logging.getLogger(__name__)

ASIDE = ".rolled-back-"  # before the number of a version that is set aside
FIRST = "1"  # what the folder of the new version is called until its number is known

# Writes the folders of one model, its version called `FIRST`, into an empty directory.
WriteModels = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class AddedVersion:
    """A version that a server may load now."""

    repository: Path
    name: str
    number: int
    previous: int | None  # the version served until now
    folders: tuple[str, ...]  # that came with it, in this order; none for a known name

    @property
    def directory(self) -> Path:
        """The version folder."""
        return self.repository / self.name / str(self.number)


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """A version that was set aside, and the one before it that is the newest again."""

    repository: Path
    name: str
    number: int
    serves: int

    @property
    def aside(self) -> Path:
        """Where the version lies now."""
        return self.repository / self.name / f"{ASIDE}{self.number}"


@contextlib.contextmanager
def lock_repository(repository: Path) -> Iterator[Path]:
    """Hold a repository, made if need be, against a second export or rollback.

    Yields:
        Its real place: a link to a repository is followed.

    Raises:
        UsageError: Another process holds it.
        EnvironmentProblem: It cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            repository.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_directory(repository))
        except UsageError as error:
            raise UsageError(
                f"another export or rollback is working in {str(repository)!r}; "
                "wait for it, then run this again"
            ) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot write into the repository {str(repository)!r}: {error}; "
                "name a directory that this user may write"
            ) from error
        yield repository.resolve()


def add_version(repository: Path, name: str, write: WriteModels) -> AddedVersion:
    """Add a model to a repository, as its next version where the name is known.

    Args:
        repository: Held by `lock_repository`.
        name: Of the encoder; its folder and those called `<name>_...` are written.
        write: Called with an empty directory that no server sees.

    Raises:
        RepositoryError: What is served under this name has another interface, or is not ours.
        EnvironmentProblem: The disk is full or the place is not writable.
    """
    with _staging(repository) as stage:
        models = stage / "models"
        with atomic_directory(models) as directory:
            write(directory)
        with _disk_errors(repository):
            _sweep(repository, name)
            check_same_interface(repository, models, name)
            added = _place(repository, models, name)
    _report_old(repository / name, added.previous)
    return added


def served_options(repository: Path, name: str) -> Mapping[str, Any]:
    """What the newest version of a model was exported with; nothing for a new name."""
    folder = repository / name
    versions = version_folders(folder) if folder.is_dir() else []
    if not versions or not (versions[-1] / MANIFEST).is_file():
        return {}
    return read_manifest(versions[-1]).options


def withdraw(added: AddedVersion) -> None:
    """Take a version back that a server could not load, so that a restart does not trip over it.

    A first version goes away with the folders that came with it; a later one is set aside.
    """
    if added.name not in added.folders:
        _rename(added.directory, added.directory.with_name(f"{ASIDE}{added.number}"))
    for folder in reversed(added.folders):
        gone = added.repository / f".{folder}.withdrawn.tmp"
        _rename(added.repository / folder, gone)
        shutil.rmtree(gone)


def roll_back(repository: Path, name: str | None = None) -> RolledBack:
    """Set the newest version of a model aside, so that the one before it serves again.

    Args:
        repository: Held by `lock_repository`.
        name: Of the encoder; None where the repository holds only one.

    Raises:
        UsageError: No such model, or several and none is named.
        RepositoryError: There is no earlier version, or the place to put it aside is taken.
        ArtifactError: The earlier version is corrupt; nothing was changed.
    """
    name = _model_to_roll_back(repository, name)
    folder = repository / name
    versions = version_folders(folder)
    if len(versions) < 2:
        raise RepositoryError(
            f"{str(folder)!r} holds one version, {versions[0].name}, and none before it that could "
            "serve instead; add a better one: cofi-deploy export --format triton "
            f"--repository {repository} --name {name}"
        )
    before, newest = versions[-2:]
    check_export(before)
    result = RolledBack(
        repository=repository, name=name, number=int(newest.name), serves=int(before.name)
    )
    if result.aside.exists():
        raise RepositoryError(
            f"{str(result.aside)!r} exists already, where version {newest.name} would be set "
            "aside; move it away first"
        )
    with _disk_errors(repository):
        _rename(newest, result.aside)
    return result


def undo(rolled_back: RolledBack) -> None:
    """Put a version back that was set aside: the earlier one could not be loaded."""
    _rename(rolled_back.aside, rolled_back.aside.with_name(str(rolled_back.number)))


def _place(repository: Path, models: Path, name: str) -> AddedVersion:
    """Move in what the repository lacks; the ensemble last, so that it never lacks its steps."""
    encoder = repository / name
    versions = version_folders(encoder) if encoder.is_dir() else []
    number = _next_number(encoder)
    if versions:
        _move_in(models / name / FIRST, encoder / str(number))
    new = sorted(path.name for path in models.iterdir() if not (repository / path.name).exists())
    new.sort(key=lambda folder: folder == f"{name}_text")
    for folder in new:
        _move_in(models / folder, repository / folder)
    return AddedVersion(
        repository=repository,
        name=name,
        number=number,
        previous=int(versions[-1].name) if versions else None,
        folders=tuple(new),
    )


def _model_to_roll_back(repository: Path, name: str | None) -> str:
    known = sorted({path.parent.parent.name for path in repository.glob(f"*/[1-9]*/{MANIFEST}")})
    if not known:
        raise UsageError(
            f"{str(repository)!r} holds no model that cofi-deploy wrote; name the --repository of "
            "cofi-deploy export --format triton"
        )
    if name is None and len(known) > 1:
        raise UsageError(
            f"{str(repository)!r} holds several models; say which with --model, "
            f"allowed: {', '.join(known)}"
        )
    name = name or known[0]
    if name not in known:
        raise UsageError(f"no model {name!r} in {str(repository)!r}; {did_you_mean(name, known)}")
    return name


def _next_number(folder: Path) -> int:
    """One above every number ever used: a client that saw version 3 never meets another 3."""
    names = [path.name.removeprefix(ASIDE) for path in folder.glob("*")] + ["0"]
    return max(int(name) for name in names if name.isdecimal()) + 1


@contextlib.contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A directory that no server looks into: beside the repository, so that a rename suffices."""
    # Its name needs nothing random, since the lock is held; what a killed export left goes first.
    stage = repository.with_name(f".{repository.name}.adding")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir()
    except OSError:  # only the repository itself is writable
        stage = Path(tempfile.mkdtemp())
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _sweep(repository: Path, name: str) -> None:
    """What `_move_in` left when it was killed."""
    sweep_leftovers(repository)
    sweep_leftovers(repository / name)


def _move_in(source: Path, target: Path) -> None:
    """Give a complete directory its place, visible as a whole or not at all."""
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The repository is a mount of its own: copy first, under a name that is no version.
        with atomic_directory(target) as beside:
            shutil.copytree(source, beside, dirs_exist_ok=True)


def _rename(source: Path, target: Path) -> None:
    source.rename(target)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name survives a power cut
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_errors(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write {str(repository)!r}: {error}; free space or change its permissions, "
            "what is served was not touched"
        ) from error


def _report_old(folder: Path, serving: int | None) -> None:
    """Say what lies there unused; deleting it is the operator's decision."""
    old = [
        path
        for path in folder.iterdir()
        if path.name.startswith(ASIDE)
        or (path.name.isdecimal() and int(path.name) < (serving or 0))
    ]
    if old:
        mib = sum(size_bytes(path) for path in old) / 2**20
        names = ", ".join(sorted(path.name for path in old))
        logger.info("%s keeps versions that no rollback needs (%.0f MiB): %s", folder, mib, names)
