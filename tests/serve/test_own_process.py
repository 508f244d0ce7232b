"""What a process that measures may do to the one that asked it: answer, or die alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve import own_process

DYING = "tests.serve.dying"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


def test_the_answer_comes_back():
    request = {"name": "a b\n'\"\u00e9", "numbers": [1, 2.5, None]}
    assert own_process.ask(DYING, request, "it") == request


def test_a_crash_in_native_code_is_told_by_the_name_of_its_signal():
    words = "^the profile was ended by SIGSEGV in a process of its own"
    with pytest.raises(RunnerError, match=words):
        own_process.ask(DYING, {"signal": "SIGSEGV"}, "the profile")


def test_a_module_that_is_not_there_is_told_with_its_last_line():
    with pytest.raises(RunnerError, match=r"it ended with status 1 .*No module named"):
        own_process.ask("tests.serve.nothing", {}, "it")


def test_files_of_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    for name in ("json.py", "signal.py", "cofi_deploy.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    assert own_process.ask(DYING, {"a": 1}, "it") == {"a": 1}
