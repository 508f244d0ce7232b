"""Which model a command works on, and where its exports go.

A MODEL on the command line is a run directory, a model directory, or left out: the newest
finished run. Its name, from which `exports/<name>/` is made, says which member of a run it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cofi_deploy.artifacts import EXPORTS_ROOT, RUNS_ROOT, newest_run, read_json
from cofi_deploy.errors import ArtifactError, EnvironmentProblem, UsageError


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
        path: A run directory, a model directory, a hub id (`owner/name`), or None for the newest
            finished run.
        exports_root: Where its exports belong.

    Raises:
        UsageError: Nothing was typed and there is no finished run, the run is not finished, or
            there is no such directory.
        HubUnreachableError: A hub id that is not cached, without a network.
    """
    if path is None:
        path = newest_run()
    directory = Path(path)
    if not directory.is_dir():
        return _hub_place(str(path), exports_root)
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


def newest_pair(exports_root: Path) -> list[Place]:
    """The newest run's teacher and its pruned model: what commands without a model compare."""
    pruned = find_model(None, exports_root=exports_root)
    return [teacher_of(pruned), pruned]


def run_to_resume(path: Path | str | None, *, root: Path = RUNS_ROOT) -> Path:
    """The run directory that `--resume` continues.

    Args:
        path: A run directory, or None for the newest one below ``root`` that is not done.
        root: Where runs lie.

    Raises:
        UsageError: ``path`` is no run, or is done already; or there is no unfinished run.
    """
    if path is None:
        found = [item.parent for item in root.glob("*/run.json") if _is_unfinished(item)]
        if not found:
            raise UsageError(f"no unfinished run below {str(root)!r}; nothing to resume")
        return max(found, key=lambda run: (run / "run.json").stat().st_mtime)
    run = Path(path)
    if not (run / "run.json").is_file():
        raise UsageError(
            f"{str(run)!r} is no run directory, it holds no run.json; "
            "name one, or none for the newest unfinished run"
        )
    if read_json(run / "run.json").get("state") == "done":
        raise UsageError(f"{str(run)!r} is done already; start a new run without --resume")
    return run


def check_new_run(run: Path) -> None:
    """Refuse a directory for a new run that is in use, or that cannot be written.

    Raises:
        UsageError: A run, or something else, lies in it.
        EnvironmentProblem: It cannot be written.
    """
    if (run / "run.json").exists():
        raise UsageError(
            f"{str(run)!r} holds a run already; continue it with --resume {run}, or choose "
            "another --output"
        )
    if run.is_dir():
        stranger = min((item.name for item in run.iterdir()), default=None)
        if stranger is not None:
            raise UsageError(
                f"{str(run)!r} holds {stranger!r}, expected an empty or a new directory; "
                "choose another --output"
            )
    nearest = next(parent for parent in (run, *run.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise EnvironmentProblem(
            f"cannot write into {str(nearest)!r}, where {str(run)!r} would be made; "
            "choose another --output"
        )


def _is_unfinished(run_json: Path) -> bool:
    try:
        return read_json(run_json).get("state") != "done"
    except ArtifactError:  # of no use, and no reason to refuse the others
        return False


def _run_of(directory: Path) -> Path | None:
    for parent in directory.resolve().parents:
        if (parent / "run.json").is_file():
            return parent
    return None


def _hub_place(name: str, exports_root: Path) -> Place:
    owner, slash, model = name.partition("/")
    is_id = slash and model and "/" not in model and owner not in {"", ".", "..", "~"}
    if not is_id or Path(owner).exists():  # a typing error in `runs/<name>` is no hub id
        what = "is a file" if Path(name).is_file() else "does not exist"
        raise UsageError(
            f"{name!r} {what}; name a run directory, a model directory or a hub id (owner/name)"
        )
    from cofi_deploy.loading import resolve  # noqa: PLC0415 - the frameworks take seconds

    return Place(model=resolve(name), name=model, exports_root=exports_root)


def _own_name(directory: Path) -> str:
    return directory.resolve().name
