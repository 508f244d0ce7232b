"""The guides in docs/: commands that can be typed, links that lead somewhere, words that we say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click import Group

from cofi_deploy.cli import main
from cofi_deploy.serve.triton_log import explain

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("cofi-deploy ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_a_guide_can_be_typed(command: str, tmp_path: Path) -> None:
    _, name, *arguments = shlex.split(command.replace("/srv/models", str(tmp_path)))
    assert isinstance(main, Group)
    # Read without running it: unknown flags, choices and missing arguments are errors.
    main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_of_a_guide_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_error_that_a_guide_explains_is_one_that_we_raise(page: Path) -> None:
    said = " ".join(path.read_text("utf-8") for path in (ROOT / "cofi_deploy").rglob("*.py"))
    said = re.sub(r'"\s*f?"', "", said)  # a message is split over lines
    section = page.read_text("utf-8").partition("## What errors mean")[2].partition("\n## ")[0]
    for words in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE):
        assert words in said, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_of_a_log_that_a_guide_tells_is_explained_by_serve_too(page: Path) -> None:
    section = page.read_text("utf-8").partition("### What the log says")[2].partition("\n### ")[0]
    for words in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE):
        assert explain(words), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_the_manifests_table_names_is_written(page: Path) -> None:
    templates = ROOT / "cofi_deploy" / "export" / "templates" / "kubernetes"
    section = page.read_text("utf-8").partition("\n## Kubernetes")[2].partition("\n### ")[0]
    for name in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE):
        assert (templates / f"{name}.j2").is_file(), name
