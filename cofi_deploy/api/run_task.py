"""The task of a run, as its run.json names it: what `verify` and `export` find its data by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import CheckpointError
from cofi_deploy.tasks import Task, load_task


@dataclass(frozen=True, kw_only=True)
class TaskArguments:
    """What names a task and its data; kept in run.json, so that `verify` finds them again."""

    name: str
    data_dir: str | None = None
    data: str | None = None
    columns: Mapping[str, str] | None = None
    max_length: int | None = None
    seed: int = 42

    def load(self) -> Task:
        """The task, its data read when first used."""
        return load_task(
            self.name,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            data=self.data,
            columns=self.columns,
            max_length=self.max_length,
            seed=self.seed,
        )


def task_of_run(run: Path) -> TaskArguments:
    """The task that a run was trained on.

    Raises:
        CheckpointError: Its run.json does not say it.
    """
    return TaskArguments(**run_entry(run, "task"))


def run_entry(run: Path, key: str) -> Any:
    """One entry of a run's run.json.

    Raises:
        CheckpointError: It is not there.
    """
    document = read_json(run / "run.json")
    if key not in document:
        raise CheckpointError(
            f"{str(run / 'run.json')!r} has no {key!r}; it is of no training run, start a new one"
        )
    return document[key]
