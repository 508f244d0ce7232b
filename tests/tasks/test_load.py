from __future__ import annotations

import re

import pytest

from cofi_deploy import tasks
from cofi_deploy.errors import ConfigError
from cofi_deploy.task_names import OWN_NAMES
from cofi_deploy.tasks import TASK_NAMES, load_task
from cofi_deploy.tasks.glue import GLUE
from cofi_deploy.tasks.squad import SQUAD
from cofi_deploy.tasks.text import TEXT_KINDS


def test_all_names_are_the_promised_ones():
    assert (
        *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"),
        *("squad", "squad_v2", "text-classification", "text-regression"),
        *("token-classification", "question-answering"),
    ) == TASK_NAMES
    assert (*GLUE, *SQUAD, *OWN_NAMES) == TASK_NAMES  # each of them has a loader
    assert OWN_NAMES[:2] == TEXT_KINDS


def test_public_names_exist_and_are_sorted():
    assert sorted(tasks.__all__, key=lambda name: (not name.isupper(), name)) == tasks.__all__
    assert all(hasattr(tasks, name) for name in tasks.__all__)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sst", {}, "unknown task 'sst', allowed: cola, sst2, mrpc"),
        ("sst", {}, "did you mean 'sst2'?"),
        ("token-classification", {}, "task 'token-classification' needs --data"),
        ("question-answering", {}, "task 'question-answering' needs --data"),
        ("text-classification", {}, "task 'text-classification' needs --data"),
        ("sst2", {"data": "a.csv"}, "task 'sst2' takes neither --data (got 'a.csv')"),
        ("sst2", {"columns": {"text": "t"}}, "nor columns (got {'text': 't'})"),
        ("sst2", {"holdout": 0.9}, "holdout is 0.9, allowed: above 0 and up to 0.5"),
        ("sst2", {"max_length": 1}, "max_length is 1, allowed: 8 and up"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_task(name, **arguments)


def test_own_data_takes_no_data_dir(tmp_path):
    message = f"task 'text-regression' takes no --data-dir (got {str(tmp_path)!r}); use --data"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_task("text-regression", data="a.csv", data_dir=tmp_path)
