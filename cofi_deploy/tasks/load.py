"""A task by its name: the one way into this package.

In: what the user typed after `--task`, `--data-dir` and `--data`. Out: a `Task`. Next:
`glue.py`, `squad.py`, `text.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cofi_deploy.errors import ConfigError, did_you_mean
from cofi_deploy.tasks.division import check_holdout
from cofi_deploy.tasks.encoding import check_max_length
from cofi_deploy.tasks.glue import GLUE, load_glue
from cofi_deploy.tasks.squad import SQUAD, load_squad
from cofi_deploy.tasks.task import Task
from cofi_deploy.tasks.text import TEXT_KINDS, load_text

TASK_NAMES = (*GLUE, *SQUAD, *TEXT_KINDS)
NOT_YET = {
    "token-classification": "tagging tokens is not supported yet",
    "question-answering": "for questions of your own use 'squad' or 'squad_v2' with --data-dir "
    "on files in SQuAD's JSON layout",
}
TEXT_MAX_LENGTH = 128
QUESTION_MAX_LENGTH = 384


def load_task(  # noqa: PLR0913 - the arguments are the flags of the command line
    name: str,
    *,
    data_dir: Path | None = None,
    data: str | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 42,
    holdout: float | None = None,
) -> Task:
    """Find a task and its data; splits are read when they are first asked for.

    Args:
        name: One of `TASK_NAMES`.
        data_dir: Local files of a GLUE or SQuAD task; without it the hub is asked.
        data: For `text-classification` and `text-regression`: a file, a folder or a hub id.
        max_length: Tokens of the longest feature; 128 by default, 384 for SQuAD.
        columns: Column names of `data`, by `text`, `text_pair`, `label` and `id`; guessed where
            they are obvious.
        seed: Of the choice of the held-out examples.
        holdout: Share of train that becomes `selection`; by default 10 %, at least 200 and at
            most 2,000 examples, but never more than 20 %.

    Raises:
        ConfigError: unknown task, or arguments that do not fit it.
        DataError: data that is missing or cannot be used.
        HubUnreachableError: hub data without a network and without a cached copy.
    """
    _check_arguments(name, data_dir=data_dir, data=data, columns=columns)
    check_holdout(holdout)
    if max_length is None:
        max_length = QUESTION_MAX_LENGTH if name in SQUAD else TEXT_MAX_LENGTH
    check_max_length(max_length)
    if name in GLUE:
        return load_glue(name, data_dir=data_dir, max_length=max_length, seed=seed, holdout=holdout)
    if name in SQUAD:
        return load_squad(
            name, data_dir=data_dir, max_length=max_length, seed=seed, holdout=holdout
        )
    return load_text(
        name,
        data=data or "",
        columns=columns or {},
        max_length=max_length,
        seed=seed,
        holdout=holdout,
    )


def _check_arguments(
    name: str, *, data_dir: Path | None, data: str | None, columns: Mapping[str, str] | None
) -> None:
    if name in NOT_YET:
        raise ConfigError(f"task {name!r}: {NOT_YET[name]}; supported: {', '.join(TASK_NAMES)}")
    if name not in TASK_NAMES:
        raise ConfigError(f"unknown task {name!r}, {did_you_mean(name, TASK_NAMES)}")
    if name in TEXT_KINDS:
        if not data:
            raise ConfigError(f"task {name!r} needs --data: a file, a folder or a hub data set id")
        if data_dir is not None:
            raise ConfigError(
                f"task {name!r} takes no --data-dir (got {str(data_dir)!r}); use --data"
            )
    elif data is not None or columns:
        raise ConfigError(
            f"task {name!r} takes neither --data (got {data!r}) nor columns "
            f"(got {dict(columns or {})}); use --data-dir for local files"
        )
