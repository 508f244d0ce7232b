"""`train`: from a task and a dense encoder to a finished run directory."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.api.model_card import model_card
from cofi_deploy.artifacts import (
    RUNS_ROOT,
    lock_directory,
    read_json,
    write_bytes,
    write_json,
)
from cofi_deploy.config import TrainSettings, resolve_settings
from cofi_deploy.errors import CofiDeployError, HubUnreachableError, UsageError
from cofi_deploy.loading import load_tokenizer, read_dense_arch, resolve
from cofi_deploy.results import git_commit, machine, versions
from cofi_deploy.tasks import Task, load_task
from cofi_deploy.train.pipeline import Pipeline

DEFAULT_MODEL = "bert-base-uncased"


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


def train(  # noqa: PLR0913 - the arguments are the flags of the command line
    task: str = "",
    *,
    model: str = DEFAULT_MODEL,
    teacher: Path | str | None = None,
    data_dir: Path | None = None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    recipe: str = "balanced",
    config: Path | None = None,
    parameters: int | None = None,
    output: Path | None = None,
    resume: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Fine-tune or take a teacher, prune with distillation, cut, fine-tune the small model.

    Args:
        task: One of `cofi_deploy.tasks.TASK_NAMES`.
        model: Dense checkpoint, hub id or directory, of a supported family.
        teacher: Fine-tuned dense checkpoint to take instead of training one.
        data_dir: Local files of a GLUE or SQuAD task.
        data: File, folder or hub id for `text-classification` and `text-regression`.
        columns: Column names of ``data`` where they cannot be guessed.
        recipe: `paper`, `balanced`, `fast` or `smoke`.
        config: TOML file of settings; wins over the recipe.
        parameters: Budget as a number of encoder parameters, in place of a sparsity.
        output: Run directory; by default `runs/<task>-<budget>-<time>`.
        resume: Run directory of a run that was killed; all other arguments come from it.
        overrides: Single settings by the names of `TrainSettings`; win over everything.

    Returns:
        The run directory.

    Raises:
        CofiDeployError: See errors.py; data and budget are checked before anything is trained.
    """
    if resume is not None:
        return _resume(resume)
    arguments = TaskArguments(
        name=task,
        data_dir=None if data_dir is None else str(data_dir.resolve()),
        data=data if data is None or not Path(data).exists() else str(Path(data).resolve()),
        columns=columns,
        max_length=(overrides or {}).get("max_length") or None,
        seed=(overrides or {}).get("seed", TaskArguments.seed),
    )
    loaded, source = _open_sources(arguments, model)
    settings = resolve_settings(
        recipe=recipe,
        config=config,
        overrides=_with_budget(overrides or {}, parameters, source),
        training_rows=len(loaded.splits["train"]),
        kind=loaded.kind,
    )
    run = output or _run_directory(task, settings)
    _begin(run, arguments, loaded, settings, model=model, teacher=teacher, recipe=recipe)
    return _run(run, loaded, settings, model=source, teacher=teacher)


def unfinished_run(root: Path = RUNS_ROOT) -> Path:
    """The newest run below ``root`` that is not done: what a bare `--resume` continues.

    Raises:
        UsageError: There is none.
    """
    found = [
        path.parent for path in root.glob("*/run.json") if read_json(path).get("state") != "done"
    ]
    if not found:
        raise UsageError(f"no unfinished run below {str(root)!r}; nothing to resume")
    return max(found, key=lambda run: (run / "run.json").stat().st_mtime)


def task_of_run(run: Path) -> TaskArguments:
    """The task that a run was trained on."""
    return TaskArguments(**read_json(run / "run.json")["task"])


def _resume(run: Path) -> Path:
    document = read_json(run / "run.json")
    if document["state"] == "done":
        raise UsageError(f"{str(run)!r} is done already; start a new run without --resume")
    # JSON has no tuples.
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in document["settings"].items()
    }
    settings = TrainSettings(**values)
    loaded = TaskArguments(**document["task"]).load()
    if loaded.fingerprint() != document["data_fingerprint"]:
        raise UsageError(
            f"the data of {str(run)!r} has changed since the run began (fingerprint "
            f"{document['data_fingerprint'][:12]}); restore it, or start a new run"
        )
    model = str(resolve(document["model"]))
    _update(run, state="running", error=None)
    return _run(run, loaded, settings, model=model, teacher=document["teacher"])


def _open_sources(arguments: TaskArguments, model: str) -> tuple[Task, str]:
    """Task and model directory; without a network both are missing, and both are said at once."""
    missing: list[str] = []
    source, loaded = "", None
    try:
        source = str(resolve(model))
    except HubUnreachableError as error:
        missing.append(str(error))
    try:
        loaded = arguments.load()
        loaded.splits["train"]  # reads it
    except HubUnreachableError as error:
        missing.append(str(error))
    if loaded is None or missing:
        raise HubUnreachableError("; ".join(missing))
    return loaded, source


def _begin(  # noqa: PLR0913
    run: Path,
    arguments: TaskArguments,
    task: Task,
    settings: TrainSettings,
    *,
    model: str,
    teacher: Path | str | None,
    recipe: str,
) -> None:
    if (run / "run.json").exists():
        raise UsageError(
            f"{str(run)!r} holds a run already; continue it with --resume {run}, or choose "
            "another --output"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_json(
        run / "run.json",
        {
            "state": "running",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "task": vars(arguments),
            "model": _absolute(model),
            "teacher": None if teacher is None else _absolute(teacher),
            "recipe": recipe,
            "settings": settings.to_json(),
            "data_fingerprint": task.fingerprint(),
            "git_commit": git_commit(),
            "machine": machine(),
            "versions": versions(),
            "stages": {},
        },
    )


def _absolute(model: Path | str) -> str:
    """A directory by its whole path, so that a resumed run finds it; a hub id as it is."""
    local = Path(model)
    return str(local.resolve()) if local.is_dir() else str(model)


def _run(
    run: Path, task: Task, settings: TrainSettings, *, model: str, teacher: Path | str | None
) -> Path:
    with lock_directory(run):
        return _run_locked(run, task, settings, model=model, teacher=teacher)


def _run_locked(
    run: Path, task: Task, settings: TrainSettings, *, model: str, teacher: Path | str | None
) -> Path:
    began = time.monotonic()
    try:
        pipeline = Pipeline(
            run,
            task=task,
            model=model,
            teacher=None if teacher is None else resolve(teacher),
            tokenizer=load_tokenizer(model),
            settings=settings,
        )
        result = pipeline.train()
    except CofiDeployError as error:
        _update(run, state="failed", error=str(error))
        raise
    earlier = read_json(run / "run.json").get("wall_s") or 0.0
    wall_s = round(earlier + time.monotonic() - began, 1)
    _update(run, result=result, wall_s=wall_s, precision=pipeline.numerics.name)
    document = read_json(run / "run.json")
    base = read_dense_arch(run / "teacher")
    for entry in result["models"]:
        card = model_card(document, entry, base)
        write_bytes(run / entry["directory"] / "README.md", card.encode())
    _update(run, state="done")
    return run


def _update(run: Path, **values: Any) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), **values})


def _with_budget(
    overrides: Mapping[str, Any], parameters: int | None, model: str
) -> dict[str, Any]:
    """A number of encoder parameters becomes the sparsity that leaves as many."""
    if parameters is None:
        return dict(overrides)
    total = read_dense_arch(model).prunable_parameters
    if not 0 < parameters < total:
        raise UsageError(
            f"--params is {parameters}, but the encoder of {model!r} has {total} prunable "
            "parameters (embeddings not counted); ask for fewer"
        )
    return {**overrides, "sparsities": (1.0 - parameters / total,)}


def _run_directory(task: str, settings: TrainSettings) -> Path:
    budget = "-".join(f"s{100 * value:g}" for value in settings.sparsities)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return RUNS_ROOT / f"{task}-{budget}-{now}"
