"""A task by its name: the one way into this package.

In: what the user typed after `--task`, `--data-dir` and `--data`. Out: a `Task`. Next:
`glue.py`, `squad.py`; for own data `text.py`, `tokens.py`, `questions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from cofi_deploy.task_names import QUESTION_NAME, TOKEN_NAME, check_task_arguments
from cofi_deploy.tasks.division import check_holdout
from cofi_deploy.tasks.encoding import check_max_length
from cofi_deploy.tasks.glue import GLUE, load_glue
from cofi_deploy.tasks.questions import load_questions
from cofi_deploy.tasks.squad import SQUAD, load_squad
from cofi_deploy.tasks.task import Task
from cofi_deploy.tasks.text import load_text
from cofi_deploy.tasks.tokens import load_tokens

TEXT_MAX_LENGTH = 128
QUESTION_MAX_LENGTH = 384


class _OwnData(TypedDict):
    """What every loader of the user's own data takes."""

    data: str
    columns: Mapping[str, str]
    max_length: int
    seed: int
    holdout: float | None


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
        name: One of `task_names.TASK_NAMES`.
        data_dir: Local files of a GLUE or SQuAD task; without it the hub is asked.
        data: For `task_names.OWN_NAMES`: a file, a folder or a hub id.
        max_length: Tokens of the longest feature; 128 by default, 384 for SQuAD.
        columns: Column names of `data`, by `text`, `text_pair`, `label` and `id`, for tokens by
            `tokens`, `tags` and `id`, for questions by `question`, `context`, `answers` and `id`;
            guessed where they are obvious.
        seed: Of the choice of the held-out examples.
        holdout: Share of train that becomes `selection`; by default 10 %, at least 200 and at
            most 2,000 examples, but never more than 20 %.

    Raises:
        ConfigError: unknown task, or arguments that do not fit it.
        DataError: data that is missing or cannot be used.
        HubUnreachableError: hub data without a network and without a cached copy.
    """
    check_task_arguments(name, data_dir=data_dir, data=data, columns=columns)
    check_holdout(holdout)
    if max_length is None:
        max_length = QUESTION_MAX_LENGTH if name in {*SQUAD, QUESTION_NAME} else TEXT_MAX_LENGTH
    check_max_length(max_length)
    if name in GLUE:
        return load_glue(name, data_dir=data_dir, max_length=max_length, seed=seed, holdout=holdout)
    if name in SQUAD:
        return load_squad(
            name, data_dir=data_dir, max_length=max_length, seed=seed, holdout=holdout
        )
    own: _OwnData = {
        "data": data or "",
        "columns": columns or {},
        "max_length": max_length,
        "seed": seed,
        "holdout": holdout,
    }
    if name == TOKEN_NAME:
        return load_tokens(**own)
    if name == QUESTION_NAME:
        return load_questions(**own)
    return load_text(name, **own)
