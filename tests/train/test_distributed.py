"""Two processes under torchrun train as one does, and end together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cofi_deploy.artifacts import read_json
from cofi_deploy.atomic import lock_directory
from cofi_deploy.errors import ConfigError, UsageError
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.loading import load
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.checkpoint import read_state
from tests.builders import random_split
from tests.train.shared_training import Plan

TIMEOUT_S = 240
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
REPOSITORY = Path(__file__).parents[2]
TASKS = ("sst2", "stsb", "squad", "token-classification")
# 53 steps, most of them with masks. No dropout, since processes draw their own.
LONG: dict[str, Any] = {
    "batch_size": 5,
    "teacher_epochs": 0.5,
    "distill_epochs": 0.2,
    "warmup_epochs": 1.0,
    "prune_epochs": 0.3,
    "finetune_epochs": 0.3,
    "label_weight": 0.2,
    "dropout": 0.0,
    "teacher_dropout": 0.0,
}
SHORT = {
    **LONG,
    "sparsities": [0.6],
    "teacher_epochs": 0.3,
    "distill_epochs": 0.0,
    "warmup_epochs": 0.4,
    "prune_epochs": 0.2,
    "finetune_epochs": 0.3,
}
DROPOUT = {**SHORT, "dropout": 0.3, "teacher_dropout": 0.3}
STOP = {"what": "signal", "rank": 1, "stage": "prune-0.6", "step": 3}


@dataclass(frozen=True)
class Session:
    """What became of the plans in each of two processes."""

    folder: Path
    names: list[str]
    outcomes: list[list[dict[str, Any]]]

    def ended(self, name: str) -> list[dict[str, Any]]:
        """How a plan ended in the first and in the second process."""
        return [each[self.names.index(name)] for each in self.outcomes]


@pytest.fixture(scope="module")
def plan(tiny_bert, tiny_data, few_steps) -> Callable[..., Plan]:
    """A training of the tiny model in a directory, which may be one that has begun."""

    def make(
        directory: Path,
        settings: dict[str, Any],
        task: str = "sst2",
        *,
        fault: dict[str, Any] | None = None,
    ) -> Plan:
        if (directory / "run.json").exists():
            return Plan(arguments={"resume": str(directory)}, fault=fault)
        data = {"data_dir": str(tiny_data)}
        if task == "token-classification":
            data = {"data": str(tiny_data / "tags")}
        overrides = {**few_steps, **settings}
        arguments = {"task": task, "model": str(tiny_bert), "output": str(directory)}
        return Plan(
            arguments={**arguments, **data, "max_length": 48, "overrides": overrides}, fault=fault
        )

    return make


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory) -> Callable[..., Path]:
    """Train in this process; each plan once."""
    folder = tmp_path_factory.mktemp("alone")

    def train(name: str, settings: dict[str, Any], task: str = "sst2", **options: Any) -> Path:
        if not (folder / name).exists():
            (folder / f"{name}.json").write_text(
                json.dumps(plan(folder / name, settings, task, **options).carry_out())
            )
        return folder / name

    return train


@pytest.fixture(scope="module")
def session(plan, alone, tmp_path_factory) -> Session:
    """Everything that two processes are asked to do, in one start of them."""
    folder = tmp_path_factory.mktemp("together")
    begun = alone("begun", SHORT, fault={**STOP, "rank": 0})
    shutil.copytree(begun, folder / "resumed")
    shutil.copytree(begun, folder / "locked")
    plans = {
        **{task: plan(folder / task, LONG if task == "sst2" else SHORT, task) for task in TASKS},
        "nan": plan(
            folder / "nan", {**SHORT, "checkpoint_seconds": 0.0}, fault={**STOP, "what": "nan"}
        ),
        "error": plan(folder / "error", SHORT, fault={**STOP, "what": "error"}),
        "stopped": plan(folder / "stopped", SHORT, fault=STOP),
        "resumed": plan(folder / "resumed", SHORT),
        "locked": plan(folder / "locked", SHORT),
        "few rows": plan(folder / "few", {**SHORT, "batch_size": 1}),
        "dropout": plan(folder / "dropout", DROPOUT),
        "dropout, stopped": plan(folder / "dropout-resumed", DROPOUT, fault=STOP),
        "dropout, resumed": Plan(arguments={"resume": str(folder / "dropout-resumed")}),
    }
    path = folder / "plans.json"
    path.write_text(json.dumps([dataclasses.asdict(each) for each in plans.values()]))
    with lock_directory(folder / "locked"):
        launched = launch(str(REPOSITORY / "tests/train/shared_training.py"), str(path))
    assert launched.returncode == 0, launched.stderr
    outcomes = [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in (0, 1)]
    return Session(folder, list(plans), outcomes)


def launch(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, to their end."""
    return subprocess.run(
        [*LAUNCH, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def environment() -> dict[str, str]:
    """Of a child that imports this checkout and never looks for a hub."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def steps(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step, evaluations left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "split" not in line]


def assert_same_losses(one: Path, other: Path) -> None:
    for mine, yours in zip(steps(one), steps(other), strict=True):
        assert mine.keys() == yours.keys()
        for name, value in mine.items():
            close = pytest.approx(yours[name], abs=1e-4) if "loss" in name else yours[name]
            if "sparsity" in name or "lambda" in name:
                close = pytest.approx(yours[name], abs=1e-3)
            assert value == close, f"{name} in step {mine['step']} of {mine['stage']}"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_losses_of_two_processes_equal_those_of_one_with_the_same_batch(session, alone, task):
    assert [each["error"] for each in session.ended(task)] == ["", ""]
    reference = alone(task, LONG if task == "sst2" else SHORT, task)
    assert_same_losses(session.folder / task, reference)
    if task == "sst2":
        assert len(steps(reference)) >= 50
        stages = [line["stage"] for line in steps(reference)[:50]]
        assert {"teacher", "distill", "prune-0.5", "prune-0.8"} <= set(stages)


@pytest.mark.slow
def test_masks_are_the_same_in_every_process_and_as_in_one(session, alone):
    first, second = (each["masks"] for each in session.ended("sst2"))
    assert len(first) == len(
        [line for line in steps(session.folder / "sst2") if "prune" in line["stage"]]
    )
    assert first == second
    assert len(set(first)) == len(first)
    # Later draws depend on gates that were trained, equal up to rounding.
    reference = alone("sst2", LONG)
    assert first[0] == json.loads(reference.with_name("sst2.json").read_text())["masks"][0]


@pytest.mark.slow
def test_a_run_of_two_processes_is_written_once_and_whole(session):
    run = session.folder / "sst2"
    document = read_json(run / "run.json")
    assert (document["state"], document["processes"]) == ("done", 2)
    places = [(line["stage"], line["step"]) for line in steps(run)]
    assert len(set(places)) == len(places)
    assert not list(run.glob(".*.tmp"))
    assert sum(parameter.numel() for parameter in load(run / "model").parameters()) > 0


@pytest.mark.slow
def test_a_loss_that_is_nan_in_one_process_ends_both_with_the_same_words(session):
    ended = session.ended("nan")
    words = "loss is nan at step 4 of stage 'prune-0.6'; the last good checkpoint is kept"
    assert all(each["error"].startswith(words) for each in ended)
    assert [(each["type"], each["code"]) for each in ended] == [("DivergedError", 1)] * 2
    document = read_json(session.folder / "nan" / "run.json")
    assert (document["state"], document["error"]) == ("failed", ended[0]["error"])
    state = read_state(session.folder / "nan" / "checkpoint")
    assert (state["stage"], state["step"]) == ("prune-0.6", STOP["step"])


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_with_its_words(session):
    first, second = session.ended("error")
    assert (first["type"], second["type"]) == ("PeerError", "MemoryError")
    assert first["error"] == second["error"] == "no memory left on this device"
    document = read_json(session.folder / "error" / "run.json")
    assert (document["state"], document["error"]) == ("failed", first["error"])


@pytest.mark.slow
def test_an_error_of_the_first_process_has_its_exit_code_in_all(session):
    first, second = session.ended("locked")
    assert (first["type"], second["type"]) == ("UsageError", "PeerError")
    assert first["code"] == second["code"] == UsageError.exit_code
    assert "another process is working in" in second["error"]


@pytest.mark.slow
def test_more_processes_than_rows_in_a_batch_are_refused(session):
    for each in session.ended("few rows"):
        assert each["error"].startswith("batch_size is 1, but 2 processes share each batch")
        assert each["code"] == ConfigError.exit_code
    assert not (session.folder / "few").exists()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_behind_the_same_step_and_one_goes_on(
    session, plan, alone, tmp_path
):
    assert [each["type"] for each in session.ended("stopped")] == ["KeyboardInterrupt"] * 2
    run = tmp_path / "run"
    shutil.copytree(session.folder / "stopped", run)
    state = read_state(run / "checkpoint")
    assert (state["stage"], state["step"]) == ("prune-0.6", STOP["step"] + 1)
    assert read_json(run / "run.json")["state"] == "failed"
    assert plan(run, SHORT).carry_out()["error"] == ""
    assert read_json(run / "run.json")["processes"] == 1
    assert_same_losses(run, alone("whole", SHORT))


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(session, alone):
    assert [each["error"] for each in session.ended("resumed")] == ["", ""]
    assert_same_losses(session.folder / "resumed", alone("whole", SHORT))


@pytest.mark.slow
def test_two_processes_with_dropout_go_on_bit_for_bit(session):
    assert [each["error"] for each in session.ended("dropout, resumed")] == ["", ""]
    ours = load_file(session.folder / "dropout-resumed" / "model" / "model.safetensors")
    theirs = load_file(session.folder / "dropout" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert steps(session.folder / "dropout-resumed") == steps(session.folder / "dropout")


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_shares_of_a_batch_are_all_of_it(kind, processes):
    split = random_split([3, 9, 4, 1, 7, 5, 2], kind)
    parts = [
        Batches(split, batch_size=4, seed=0, device=torch.device("cpu"), part=(each, processes))
        for each in range(processes)
    ]
    for step in range(2):
        shares = [part.at(step) for part in parts]
        for name in ("rows", "tokens", "labels"):
            assert sum(getattr(each.share, name) for each in shares) == pytest.approx(1.0)
        rows = [row for each in shares if each.share.rows > 0 for row in each.rows]
        whole = Batches(split, batch_size=4, seed=0, device=torch.device("cpu")).at(step)
        assert sorted(rows) == sorted(whole.rows)
        assert all(len(each.rows) > 0 for each in shares)
