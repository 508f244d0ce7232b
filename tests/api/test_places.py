from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cofi_deploy.api.places import check_new_run, find_model, run_to_resume, teacher_of
from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import HubUnreachableError, UsageError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "mrpc-s90"
    for part in ("model", "teacher", "models/0.6"):
        (directory / part).mkdir(parents=True)
    write_json(directory / "run.json", {"state": "done"})
    return directory


def test_nothing_typed_means_the_newest_finished_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "runs" / "newer" / "run.json", {"state": "running"})
    place = find_model(None)
    assert place.model.resolve() == run / "model"
    assert place.exports == Path("exports/mrpc-s90")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("", "mrpc-s90"),
        ("model", "mrpc-s90"),
        ("teacher", "mrpc-s90-teacher"),
        ("models/0.6", "mrpc-s90-0.6"),
    ],
    ids=["run", "model", "teacher", "member"],
)
def test_every_part_of_a_run_has_a_name_of_its_own(run: Path, part: str, name: str) -> None:
    place = find_model(run / part)
    assert place.name == name
    assert place.run is not None
    assert place.run.resolve() == run


def test_the_teacher_of_a_model_is_that_of_its_run(run: Path) -> None:
    teacher = teacher_of(find_model(run / "models" / "0.6"))
    assert teacher.model.resolve() == run / "teacher"


def test_a_model_outside_of_a_run_has_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    with pytest.raises(UsageError, match=re.escape("lies in no run directory")):
        teacher_of(find_model(tmp_path / "alone"))


def test_an_unfinished_run_says_how_to_continue(tmp_path: Path) -> None:
    write_json(tmp_path / "half" / "run.json", {"state": "running"})
    with pytest.raises(UsageError, match=re.escape(f"cofi-deploy train --resume {tmp_path}")):
        find_model(tmp_path / "half")


@pytest.mark.parametrize("typed", ["nowhere", "runs/typo", "./no/where", "/nowhere", "a/b/c"])
def test_a_model_that_does_not_exist_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    assert run.is_relative_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"{typed!r} does not exist; name a run")):
        find_model(typed)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(UsageError, match=re.escape(f"{str(tmp_path / 'model.onnx')!r} is a file")):
        find_model(tmp_path / "model.onnx")


def test_a_hub_id_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachableError, match="'nobody/nothing' is no local directory"):
        find_model("nobody/nothing")


def test_the_newest_unfinished_run_is_resumed_and_unreadable_ones_are_passed_over(
    run: Path,
) -> None:
    root = run.parent
    for at, state in enumerate(("running", "failed", "done")):
        write_json(root / state / "run.json", {"state": state})
        os.utime(root / state / "run.json", (at, at))
    (root / "torn").mkdir()
    (root / "torn" / "run.json").write_text("{")
    assert run_to_resume(None, root=root) == root / "failed"


def test_without_an_unfinished_run_there_is_nothing_to_resume(run: Path) -> None:
    with pytest.raises(UsageError, match=r"no unfinished run below .*; nothing to resume"):
        run_to_resume(None, root=run.parent)


@pytest.mark.parametrize("exists", [True, False], ids=["empty", "new"])
def test_a_new_run_may_begin_where_nothing_is(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "deep" / "run").mkdir(parents=True)
    check_new_run(tmp_path / "deep" / "run")
