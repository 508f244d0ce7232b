"""`train`: from a task and a dense encoder to a finished run directory."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cofi_deploy.api.model_card import write_cards
from cofi_deploy.api.places import check_new_run, run_to_resume
from cofi_deploy.api.run_task import TaskArguments, run_entry, task_of_run
from cofi_deploy.api.speedup import Subject, speedup_budget, table_for, write_table
from cofi_deploy.api.speedup_target import speedup_point
from cofi_deploy.artifacts import RUNS_ROOT, read_json, write_json
from cofi_deploy.atomic import lock_directory
from cofi_deploy.config import TrainSettings, resolve_settings
from cofi_deploy.errors import HubUnreachableError, UsageError
from cofi_deploy.hub import DEFAULT_MODEL
from cofi_deploy.loading import load_tokenizer, read_dense_arch, resolve
from cofi_deploy.results import command_line, git_commit, machine, versions
from cofi_deploy.task_names import SQUAD_NAMES, check_task_arguments
from cofi_deploy.tasks import Task
from cofi_deploy.train.checks import checked_teacher
from cofi_deploy.train.pipeline import Pipeline
from cofi_deploy.train.processes import is_main, joined, on_main, together, world_size
from cofi_deploy.train.speedup import SpeedupBudget


@joined()
def train(  # noqa: PLR0913 - the arguments are the flags of the command line
    task: str = "",
    *,
    model: Path | str | None = None,
    teacher: Path | str | None = None,
    data_dir: Path | None = None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    sparsity: float | Sequence[float] | None = None,
    speedup: float | Sequence[float] | None = None,
    target: str | None = None,
    parameters: int | None = None,
    align: int | str | None = None,
    recipe: str = "balanced",
    config: Path | None = None,
    max_length: int | None = None,
    precision: str | None = None,
    seed: int | None = None,
    output: Path | None = None,
    resume: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Fine-tune or take a teacher, prune with distillation, cut, fine-tune the small model.

    Under `torchrun` or `accelerate launch`, all processes call it with the same arguments and
    share every batch; the first one writes the run directory, which all must be able to read.

    Args:
        task: One of `cofi_deploy.task_names.TASK_NAMES`.
        model: Dense checkpoint, hub id or directory, of a supported family; by default the
            teacher where one is given, else `DEFAULT_MODEL`.
        teacher: Fine-tuned dense checkpoint to take instead of training one.
        data_dir: Local files of a GLUE or SQuAD task.
        data: File, folder or hub id for `text-classification` and `text-regression`.
        columns: Column names of ``data`` where they cannot be guessed.
        sparsity: Share of the encoder to prune, or several for a family from one run.
        speedup: Budget as a measured speedup in place of a sparsity, or several for a family.
        target: Where it is measured, such as `onnxruntime-cpu@1x128`.
        parameters: Budget as a number of encoder parameters, in place of a sparsity.
        align: 8, 16 or 32: hidden size and FFN widths become multiples of it; or `auto`.
        recipe: `paper`, `balanced`, `fast` or `smoke`.
        config: TOML file of settings; wins over the recipe.
        max_length: Longest sequence in tokens.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        seed: Of everything random.
        output: Run directory; by default `runs/<task>-<budget>-<time>`.
        resume: Run directory of a run that was killed; all other arguments come from it.
        overrides: Any other setting by its name in `TrainSettings`; these and the arguments
            above win over recipe and file.

    Returns:
        The run directory.

    Raises:
        CofiDeployError: See errors.py; data and budget are checked before anything is trained.
    """
    if resume is not None:
        return _resume(on_main(lambda: run_to_resume(resume)))
    check_task_arguments(task, data_dir=data_dir, data=data, columns=columns)
    model = str(model or teacher or DEFAULT_MODEL)
    given = {
        **(overrides or {}),
        **_settings_given(
            {"sparsities": sparsity, "speedups": speedup},
            speedup_for=target,
            align=align,
            max_length=max_length,
            precision=precision,
            seed=seed,
        ),
    }

    def settings_for(rows: int) -> TrainSettings:
        kind = "question-answering" if task in SQUAD_NAMES else "text-classification"
        return resolve_settings(
            recipe=recipe, config=config, overrides=given, training_rows=rows, kind=kind
        )

    def arguments_for(settings: TrainSettings) -> TaskArguments:
        return TaskArguments(
            name=task,
            data_dir=None if data_dir is None else str(data_dir.resolve()),
            data=data if data is None or not Path(data).exists() else str(Path(data).resolve()),
            columns=columns,
            max_length=settings.max_length or None,
            seed=settings.seed,
        )

    # A typing error in the settings is answered before any data is read.
    typed = settings_for(0)
    if typed.speedups:
        speedup_point(typed.speedup_for)
    arguments = arguments_for(typed)
    with together():
        loaded, source = _open_sources(arguments, model)
    if parameters is not None:
        given["sparsities"] = (_sparsity_of(parameters, source),)
    settings = settings_for(len(loaded.splits["train"]))
    if arguments_for(settings) != arguments:  # a table for small tasks names them
        arguments = arguments_for(settings)
        with together():
            loaded = arguments.load()
    run = on_main(lambda: _new_run(output or _run_directory(task, settings)))
    budget = _speedup(run, loaded, settings, model=source)
    with together():
        pipeline = _pipeline(run, loaded, settings, model=source, teacher=teacher, budget=budget)
    on_main(lambda: _begin(run, arguments, pipeline, model=model, teacher=teacher, recipe=recipe))
    return _run(pipeline)


def _resume(run: Path) -> Path:
    with together():
        settings, loaded = _begun(run)
        model, teacher = str(resolve(run_entry(run, "model"))), run_entry(run, "teacher")
    budget = _speedup(run, loaded, settings, model=model)
    with together():
        pipeline = _pipeline(run, loaded, settings, model=model, teacher=teacher, budget=budget)
    return _run(pipeline)


def _begun(run: Path) -> tuple[TrainSettings, Task]:
    """What the run began with, opened again."""
    settings = TrainSettings.from_json(run_entry(run, "settings"))
    loaded = task_of_run(run).load()
    fingerprint = run_entry(run, "data_fingerprint")
    if loaded.fingerprint() != fingerprint:
        raise UsageError(
            f"the data of {str(run)!r} has changed since the run began (fingerprint "
            f"{fingerprint[:12]}); restore it, or start a new run"
        )
    return settings, loaded


def _speedup(run: Path, task: Task, settings: TrainSettings, *, model: str) -> SpeedupBudget | None:
    """What a speedup is measured with; None where the budget is a sparsity."""
    if not settings.speedups:
        return None
    subject = Subject(
        arch=read_dense_arch(model),
        kind=task.kind,
        labels=task.labels,
        tokenizer=load_tokenizer(model),
    )
    return speedup_budget(on_main(lambda: table_for(subject, settings, run)), subject)


def _new_run(run: Path) -> Path:
    check_new_run(run)
    return run


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


def _pipeline(
    run: Path,
    task: Task,
    settings: TrainSettings,
    *,
    model: str,
    teacher: Path | str | None,
    budget: SpeedupBudget | None,
) -> Pipeline:
    """Everything that can be refused is refused here, before anything is written."""
    directory = None if teacher is None else resolve(teacher)
    if directory is not None:
        checked_teacher(directory, task, read_dense_arch(model))
    return Pipeline(
        run,
        task=task,
        model=model,
        teacher=directory,
        tokenizer=load_tokenizer(model),
        settings=settings,
        speedup=budget,
    )


def _begin(
    run: Path,
    arguments: TaskArguments,
    pipeline: Pipeline,
    *,
    model: str,
    teacher: Path | str | None,
    recipe: str,
) -> None:
    write_json(
        run / "run.json",
        {
            "state": "running",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(command_line()),
            "task": vars(arguments),
            "model": _absolute(model),
            "teacher": None if teacher is None else _absolute(teacher),
            "recipe": recipe,
            "settings": pipeline.settings.to_json(),
            "precision": pipeline.numerics.name,
            "data_fingerprint": pipeline.task.fingerprint(),
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


def _run(pipeline: Pipeline) -> Path:
    run, budget = pipeline.run, pipeline.speedup
    with contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(lock_directory(run)))
        on_main(lambda: _update(run, state="running", error=None, processes=world_size()))
        if budget is not None:
            on_main(lambda: write_table(budget.table, run))
        began = time.monotonic() - (read_json(run / "run.json").get("wall_s") or 0.0)
        try:
            result = pipeline.train()
            on_main(lambda: _finish(run, result, began))
        except KeyboardInterrupt:
            _fail(run, "interrupted; continue with --resume", began)
            raise
        except Exception as error:
            _fail(run, str(error), began)
            raise
    return run


def _finish(run: Path, result: Mapping[str, Any], began: float) -> None:
    _update(run, result=result, wall_s=round(time.monotonic() - began, 1))
    write_cards(run)
    _update(run, state="done")


def _fail(run: Path, error: str, began: float) -> None:
    if is_main():
        _update(run, state="failed", error=error, wall_s=round(time.monotonic() - began, 1))


def _update(run: Path, **values: Any) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), **values})


def _settings_given(
    budgets: Mapping[str, float | Sequence[float] | None], **others: Any
) -> dict[str, Any]:
    """Arguments that are settings, by the settings' names; None was not given."""
    given = {name: value for name, value in others.items() if value is not None}
    for name, budget in budgets.items():
        if budget is not None:
            given[name] = list(budget) if isinstance(budget, Sequence) else [budget]
    return given


def _sparsity_of(parameters: int, model: str) -> float:
    """The sparsity that leaves so many encoder parameters."""
    total = read_dense_arch(model).prunable_parameters
    if not 0 < parameters < total:
        raise UsageError(
            f"--params is {parameters}, but the encoder of {model!r} has {total} prunable "
            "parameters (embeddings not counted); ask for fewer"
        )
    return 1.0 - parameters / total


def _run_directory(task: str, settings: TrainSettings) -> Path:
    budget = "-".join(target.label for target in settings.targets)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return RUNS_ROOT / f"{task}-{budget}-{now}"
