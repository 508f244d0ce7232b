"""Which model a command works on, and where its exports go.

A MODEL on the command line is a run directory, a model directory, or left out: the newest
finished run. Its name, from which `exports/<name>/` is made, says which member of a run it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cofi_deploy.artifacts import EXPORTS_ROOT, newest_run
from cofi_deploy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Place:
    """A model directory, its name, and the run that it belongs to, if any."""

    model: Path
    name: str
    run: Path | None = None
    exports_root: Path = EXPORTS_ROOT

    @property
    def exports(self) -> Path:
        """Directory of its exports: one folder for each format below it."""
        return self.exports_root / self.name


def find_model(path: Path | str | None, *, exports_root: Path = EXPORTS_ROOT) -> Place:
    """Resolve what the user typed as MODEL.

    Args:
        path: A run directory, a model directory, or None for the newest finished run.
        exports_root: Where its exports belong.

    Raises:
        UsageError: Nothing was typed and there is no finished run, or the run is not finished.
    """
    if path is None:
        path = newest_run()
    directory = Path(path)
    if (directory / "run.json").is_file():
        if not (directory / "model").is_dir():
            raise UsageError(
                f"run {str(directory)!r} is not finished; continue it with: "
                f"cofi-deploy train --resume {directory}"
            )
        return Place(
            model=directory / "model",
            name=_own_name(directory),
            run=directory,
            exports_root=exports_root,
        )
    run = _run_of(directory)
    if run is None:
        return Place(model=directory, name=_own_name(directory), exports_root=exports_root)
    member = directory.resolve().relative_to(run.resolve()).parts[-1]
    suffix = "" if member == "model" else f"-{member}"
    name = _own_name(run) + suffix
    return Place(model=directory, name=name, run=run, exports_root=exports_root)


def teacher_of(place: Place) -> Place:
    """The dense teacher of the same run: the baseline of every comparison.

    Raises:
        UsageError: The model belongs to no run.
    """
    if place.run is None:
        raise UsageError(
            f"{str(place.model)!r} lies in no run directory, so its dense teacher is unknown; "
            "name both: DENSE PRUNED"
        )
    return find_model(place.run / "teacher", exports_root=place.exports_root)


def _run_of(directory: Path) -> Path | None:
    for parent in directory.resolve().parents:
        if (parent / "run.json").is_file():
            return parent
    return None


def _own_name(directory: Path) -> str:
    return directory.resolve().name
