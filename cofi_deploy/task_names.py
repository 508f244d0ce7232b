"""Names of the tasks and what each of them takes, known without importing what reads the data.

A mistyped task is answered at once; importing the tasks themselves takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cofi_deploy.errors import ConfigError, did_you_mean

GLUE_NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
SQUAD_NAMES = ("squad", "squad_v2")
TEXT_NAMES = ("text-classification", "text-regression")
TOKEN_NAME = "token-classification"
QUESTION_NAME = "question-answering"
# Tasks on the user's own data.
OWN_NAMES = (*TEXT_NAMES, TOKEN_NAME, QUESTION_NAME)
TASK_NAMES = (*GLUE_NAMES, *SQUAD_NAMES, *OWN_NAMES)


def check_task_arguments(
    name: str, *, data_dir: Path | None, data: str | None, columns: Mapping[str, str] | None
) -> None:
    """Refuse what is no task, and arguments that do not fit the task.

    Raises:
        ConfigError: Names what is allowed, and the nearest of it.
    """
    if name not in TASK_NAMES:
        raise ConfigError(f"unknown task {name!r}, {did_you_mean(name, TASK_NAMES)}")
    if name in OWN_NAMES:
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
