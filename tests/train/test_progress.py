"""Plain lines off a terminal, an honest estimate, and a metrics.jsonl that survives a kill."""

from __future__ import annotations

import json
import re

import pytest

from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.train import progress as progress_module
from cofi_deploy.train.progress import RunProgress, forget_after


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])

    def pass_seconds(seconds):
        now[0] += seconds

    return pass_seconds


def line(stage, step, **more):
    return json.dumps({"stage": stage, "step": step, **more})


def test_off_a_terminal_stages_are_plain_lines(tmp_path, capsys):
    with RunProgress(tmp_path / "metrics.jsonl", {"teacher": (4, 1.0), "prune": (2, 1.0)}) as it:
        it.start("teacher")
        for step in range(1, 5):
            it.advance(step, {"loss": 0.5})
        it.start("prune", done=1)
    err = capsys.readouterr().err
    assert "[1/2] teacher: 4 steps\n" in err
    assert "  teacher 4/4 loss=0.5, " in err
    assert "[2/2] prune: 1 steps\n" in err
    assert "\x1b" not in err


@pytest.mark.usefixtures("clock")
def test_plain_lines_do_not_flood_a_log(tmp_path, capsys):
    with RunProgress(tmp_path / "metrics.jsonl", {"teacher": (500, 1.0)}) as it:
        it.start("teacher")
        for step in range(1, 500):
            it.advance(step, {"loss": 0.5})
    assert len(capsys.readouterr().err.splitlines()) == 1


def left(text):
    minutes, seconds = re.findall(r"(\d+):(\d\d) left", text)[-1]
    return 60 * int(minutes) + int(seconds)


def test_the_time_left_weighs_the_steps_of_later_stages_by_their_cost(tmp_path, capsys, clock):
    with RunProgress(tmp_path / "metrics.jsonl", {"teacher": (10, 1.0), "prune": (100, 0.5)}) as it:
        it.start("teacher")
        for step in range(1, 11):
            clock(20.0)
            it.advance(step, {})
    # 200 s for 10 units; 50 units are left.
    assert left(capsys.readouterr().err) == 1000


def test_what_an_earlier_process_did_does_not_make_this_one_look_fast(tmp_path, capsys, clock):
    planned = {"teacher": (100, 1.0), "prune": (100, 1.0), "finetune": (10, 1.0)}
    with RunProgress(tmp_path / "metrics.jsonl", planned) as it:
        it.skip("teacher")
        it.start("prune", done=50)
        for step in range(51, 61):
            clock(20.0)
            it.advance(step, {})
    # 20 s a unit; 40 of prune and 10 of finetune are left.
    assert left(capsys.readouterr().err) == 1000


def test_entries_are_appended_with_their_stage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RunProgress(path, {"teacher": (4, 1.0)}) as it:
        it.start("teacher")
        it.log(step=1, loss=0.5)
        it.log(step=2, split="selection", metric=0.9)
    assert [json.loads(text) for text in path.read_text().splitlines()] == [
        {"stage": "teacher", "step": 1, "loss": 0.5},
        {"stage": "teacher", "step": 2, "split": "selection", "metric": 0.9},
    ]


def test_a_place_that_cannot_be_written_is_an_environment_problem(tmp_path):
    with RunProgress(tmp_path / "absent" / "metrics.jsonl", {"teacher": (4, 1.0)}) as it:
        it.start("teacher")
        with pytest.raises(EnvironmentProblem, match=r"cannot write '.*metrics.jsonl'"):
            it.log(step=1)


def test_only_what_is_written_again_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        line("teacher", 10),
        line("teacher", 20),
        line("prune", 10),
        line("prune", 10, split="selection"),
        line("prune", 20),
        line("finetune", 10),
    ]
    path.write_text("\n".join(lines) + "\n")
    forget_after(path, {"teacher"}, "prune", 10)
    assert path.read_text().splitlines() == lines[:4]


def test_lines_of_a_finished_stage_stay_even_past_its_last_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [line("teacher", 10), line("teacher", 20), line("prune", 10)]
    path.write_text("\n".join(lines) + "\n")
    forget_after(path, {"teacher"}, "teacher", 10)
    assert path.read_text().splitlines() == lines[:2]


def test_without_a_checkpoint_an_unfinished_stage_is_forgotten_as_a_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("teacher", 10) + "\n")
    forget_after(path, set(), "", 0)
    assert path.read_text() == ""


@pytest.mark.parametrize("rest", [b'{"stage": "teach', b"\xff\xfe\x00", b"[1]", b'{"a": 1}'])
def test_the_half_line_of_a_killed_process_is_dropped(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line("teacher", 10).encode() + b"\n" + rest)
    forget_after(path, {"teacher"}, "", 0)
    assert path.read_text() == line("teacher", 10) + "\n"


def test_an_absent_file_has_nothing_to_forget(tmp_path):
    forget_after(tmp_path / "metrics.jsonl", set(), "", 0)
    assert not (tmp_path / "metrics.jsonl").exists()
