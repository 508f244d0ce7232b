"""The numbered examples: their commands are typed as they stand, their files are whole."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from click import Group
from click.testing import CliRunner

from cofi_deploy.cli import main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())
GATE = ROOT / "examples" / "01-ci-gate"
BROWSER = ROOT / "examples" / "02-in-the-browser"
# A real result file in the place of one that `verify` would take minutes to write.
MEASURED = ROOT / "benchmarks" / "results" / "pruning-mrpc.json"


def typed(readme: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", readme.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def read_only(command: str) -> None:
    """Unknown flags, choices and missing arguments are errors; nothing is run."""
    program, name, *arguments = shlex.split(command)
    assert program == "cofi-deploy"
    assert isinstance(main, Group)
    main.commands[name].make_context(name, arguments)


def execute(command: str) -> int:
    """`cp` and `compare` as they stand; what needs models is read and leaves a result file."""
    words = shlex.split(command)
    if words[0] == "cp":
        shutil.copy(words[1], words[2])
        return 0
    read_only(command)
    if words[1] != "compare":
        output = Path(words[words.index("--output") + 1])
        output.mkdir(exist_ok=True)
        shutil.copy(MEASURED, output / "verify.json")
        return 0
    return CliRunner().invoke(main, words[1:]).exit_code


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("ci").mkdir()
    return tmp_path


def test_examples_are_numbered_and_have_a_readme() -> None:
    assert [path.name[:3] for path in EXAMPLES] == [
        f"{number:02}-" for number in range(1, len(EXAMPLES) + 1)
    ]
    assert all((path / "README.md").is_file() for path in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_local_link_of_an_example_leads_somewhere(example: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (example / "README.md").read_text("utf-8")):
        if not target.startswith("http"):
            assert (example / target).exists(), target


def test_the_gate_is_green_when_nothing_changed(project: Path) -> None:
    for command in typed(GATE / "README.md"):
        assert execute(command) == 0, command
    assert ET.parse(project / "build" / "compare.xml").getroot().get("failures") == "0"
    assert json.loads(Path("build/compare.json").read_text("utf-8"))["verdict"]["ok"] is True


def test_the_gate_is_red_when_the_model_got_worse(project: Path) -> None:
    accept, remember, measure, gate = typed(GATE / "README.md")[:4]
    for command in (accept, remember, measure):
        execute(command)
    measured = Path("build/verify.json")
    document = json.loads(measured.read_text("utf-8"))
    row = next(row for row in document["rows"] if "metric" in row)
    row["metric"] -= 0.2
    measured.write_text(json.dumps(document), "utf-8")
    assert execute(gate) == 1
    (case,) = [case for case in ET.parse("build/compare.xml").iter("testcase") if len(case)]
    assert (case.get("classname"), case.get("name")) == ("mrpc-dense.torch.accuracy", "metric")


def workflow() -> dict[str, Any]:
    found = yaml.safe_load((GATE / "github-actions.yml").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_workflow_runs_what_the_readme_types() -> None:
    steps = workflow()["jobs"]["compare"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert runs[0] == "pip install cofi-deploy"
    commands = typed(GATE / "README.md")
    for run in runs[1:]:
        read_only(run)
        assert run in commands


def test_the_workflow_keeps_its_files_when_the_gate_is_red() -> None:
    *_, last = workflow()["jobs"]["compare"]["steps"]
    assert last["if"] == "always()"
    assert last["uses"].startswith("actions/upload-artifact@")
    assert last["with"]["path"] == "build"


def test_the_browser_commands_can_be_typed() -> None:
    exports = [line for line in typed(BROWSER / "README.md") if line.startswith("cofi-deploy ")]
    assert len(exports) == 2
    for command in exports:
        read_only(command)
        assert command.endswith(f"--output {BROWSER.relative_to(ROOT)}/model")


def test_the_page_maps_the_imports_of_its_module_to_the_packages_that_npm_installs() -> None:
    page = (BROWSER / "index.html").read_text("utf-8")
    found = re.search(r'<script type="importmap">(.+?)</script>', page, re.DOTALL)
    assert found is not None
    mapped = json.loads(found[1])["imports"]
    module = (BROWSER / "classifier.js").read_text("utf-8")
    assert set(mapped) == set(re.findall(r'^import .+ from "([^"]+)";', module, re.MULTILINE))
    packages = json.loads((BROWSER / "package.json").read_text("utf-8"))["dependencies"]
    for target in mapped.values():
        assert any(target.startswith(f"./node_modules/{package}/") for package in packages), target
