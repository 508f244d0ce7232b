"""A run that is killed thirty times, wherever it is, ends bit for bit as if it had never been.

`COFI_DEPLOY_KILL_SEED=7 pytest -m slow tests/train/test_kill_resume.py` kills at other moments.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from cofi_deploy.artifacts import read_json, write_json


class Kill(NamedTuple):
    """A place of the run, and how many calls and returns the process makes there before it dies."""

    place: str
    number: int


KILLS = 30
SERVER = Path(__file__).with_name("killed_training.py")
REPOSITORY = Path(__file__).parents[2]
NEVER = Kill("", 0)
MODELS = ("teacher", "models/0.5", "model")


STEPPED = ("teacher", "distill", "prune-0.5", "prune-0.8", "finetune-0.5", "finetune-0.8")
WRITTEN = (
    *(f"{stage}/checkpoint" for stage in STEPPED),
    *("teacher/teacher", "teacher-cache/cache", "prune-0.5/model", "prune-0.8/model"),
    *("finetune-0.5/0.5", "finetune-0.8/model"),
)
PLACES = {"start", *STEPPED, "teacher-cache", *WRITTEN, "report"}


@pytest.fixture(scope="module")
def train_until(tiny_bert, tiny_data, few_steps) -> Iterator[Callable[..., dict[str, Any]]]:
    """Train in a directory, in a process of its own, to the end or to a moment."""
    settings = json.dumps({**few_steps, "checkpoint_seconds": 0.0})
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    server = subprocess.Popen(
        [sys.executable, str(SERVER), str(tiny_bert), str(tiny_data), settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
    )

    def train(directory: Path, kill: Kill = NEVER) -> dict[str, Any]:
        assert server.stdin is not None
        assert server.stdout is not None
        if not (directory / "run.json").exists():
            write_json(directory / "run.json", {"state": "running", "stages": {}})
        server.stdin.write(json.dumps({"directory": str(directory), **kill._asdict()}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield train
    server.communicate()


def chosen_kills(counts: dict[str, int], rng: random.Random) -> list[Kill]:
    """Moments in the order of the run: at least one at every place of a stage, some between.

    A stage and its checkpoints share one line of time, since a run that is resumed has only the
    rest of a stage before it; all else happens at once and is begun anew.
    """
    stages = list(dict.fromkeys(place.split("/")[0] for place in counts))
    lasting = [stage for stage in stages if f"{stage}/checkpoint" in counts]
    between = [place for place in counts if place.startswith("behind")]
    places = [place for place in counts if place not in between] + rng.sample(between, 3)
    trained = [place for place in places if place.split("/")[0] in lasting]
    places += rng.choices(trained, k=KILLS - len(places))
    kills = []
    for stage in stages:
        here = [place for place in places if place.split("/")[0] == stage]
        steps = [place for place in here if place in {stage, f"{stage}/checkpoint"}]
        written = [
            Kill(place, rng.randint(1, counts[place])) for place in here if place not in steps
        ]
        rng.shuffle(steps)
        moments = sorted(0.8 * rng.random() for _ in steps)
        parts = [end - begin for begin, end in itertools.pairwise([0.0, *moments])]
        stepped = [
            Kill(place, max(1, int(part * counts[place])))
            for place, part in zip(steps, parts, strict=True)
        ]
        # A model is written behind the last step; the teacher's cache before all else.
        kills += [*stepped, *written] if stage in lasting else [*written, *stepped]
    return kills


def assert_nothing_half_written(run: Path, finished: Path) -> None:
    """Whatever is there under its final name is what it will be at the end."""
    for name in MODELS:
        if (run / name).exists():
            ours = load_file(run / name / "model.safetensors")
            theirs = load_file(finished / name / "model.safetensors")
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
    assert read_json(run / "run.json")["state"] == "running"


@pytest.mark.slow
def test_a_run_killed_thirty_times_ends_bit_for_bit_as_if_never_killed(
    train_until, finished_run, tmp_path
):
    seed = int(os.environ.get("COFI_DEPLOY_KILL_SEED", "0"))
    counts = train_until(tmp_path / "whole")["counts"]
    kills = chosen_kills(counts, random.Random(seed))
    print(f"COFI_DEPLOY_KILL_SEED={seed}: {kills}")  # noqa: T201 - what a failure is repeated with
    assert len(kills) == KILLS
    assert {kill.place for kill in kills} >= PLACES
    run = tmp_path / "killed"
    for kill in kills:
        assert train_until(run, kill)["status"] == -signal.SIGKILL, kill
        assert_nothing_half_written(run, finished_run.directory)
    last = train_until(run)
    assert (last["status"], last["result"]) == (0, finished_run.report)
    assert all((run / name).exists() for name in MODELS)
    assert_nothing_half_written(run, finished_run.directory)
    assert not list(run.glob(".*"))
