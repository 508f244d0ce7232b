"""README and benchmarks say the same, and what the README types exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click import Group
from click.testing import CliRunner

from cofi_deploy.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = sorted(
    {line.split("#")[0].strip() for line in README.splitlines() if line.startswith("cofi-deploy ")}
)


def test_the_results_table_is_what_the_result_files_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"], check=False
    )
    assert done.returncode == 0, "run: python benchmarks/tables.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_the_readme_types_exists(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    assert isinstance(main, Group)
    known = {flag for parameter in main.commands[name].params for flag in parameter.opts}
    assert {part for part in arguments if part.startswith("--")} <= known


def test_every_command_is_in_the_help() -> None:
    out = CliRunner().invoke(main, ["--help"]).stdout
    for name in {shlex.split(command)[1] for command in COMMANDS}:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_local_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_every_path_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    for name in re.findall(r"`([a-z_/]+\.py)`", text):
        assert (
            (ROOT / "cofi_deploy" / name).exists()
            or (ROOT / name).exists()
            or list((ROOT / "cofi_deploy").rglob(name))
        ), name
