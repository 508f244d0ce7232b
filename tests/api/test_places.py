from __future__ import annotations

import re
from pathlib import Path

import pytest

from cofi_deploy.api.places import find_model, teacher_of
from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import UsageError


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
