"""A run that is killed goes on to the same result, bit for bit, on one CPU thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cofi_deploy.errors import CheckpointError
from cofi_deploy.train.checkpoint import read_state
from cofi_deploy.train.progress import RunProgress

MODELS = ("teacher", "models/0.5", "model")
WAIT_S = 120.0
NEVER_S = 1e9

# The process that is killed. It stops behind every optimizer step until it is told to go on, so
# that a signal can be sent in a chosen place rather than after a chosen time.
PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from cofi_deploy.config import TrainSettings
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.tasks import load_task
from cofi_deploy.train.pipeline import Pipeline
from cofi_deploy.train.progress import RunProgress

directory, model, data, stop_stage, stop_step, interval = sys.argv[1:7]
settings = eval(sys.argv[7])
advance = RunProgress.advance

def stopping(self, step, values, **options):
    advance(self, step, values, **options)
    if (self._stage, step) == (stop_stage, int(stop_step)):
        print("here", flush=True)
        sys.stdin.readline()

RunProgress.advance = stopping
try:
    Pipeline(
        Path(directory),
        task=load_task("sst2", data_dir=Path(data), max_length=48),
        model=model,
        teacher=None,
        tokenizer=load_tokenizer(model),
        settings=TrainSettings(**settings, checkpoint_seconds=float(interval)),
    ).train()
except KeyboardInterrupt:
    sys.exit(130)
"""


@dataclass(frozen=True)
class Started:
    """A run in a process of its own that has reached the place to stop at."""

    process: subprocess.Popen[str]

    def send(self, number: int) -> int:
        """Send a signal, let the process go on, and return how it ended."""
        self.process.send_signal(number)
        if number != signal.SIGKILL:
            time.sleep(0.2)  # the handler runs before the line is read
        self.process.communicate("\n", timeout=WAIT_S)
        return self.process.returncode


@pytest.fixture
def start(make_pipeline, tiny_bert, tiny_data, few_steps) -> Iterator[Callable[..., Started]]:
    """Start a run that stops at a step of a stage, and writes checkpoints every so often."""
    processes: list[subprocess.Popen[str]] = []

    def start_run(directory: Path, stage: str, step: int, *, interval_s: float) -> Started:
        make_pipeline(directory)  # writes run.json
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, str(directory), str(tiny_bert), str(tiny_data)),
                *(stage, str(step), str(interval_s), repr(few_steps)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        return Started(process)

    yield start_run
    for process in processes:
        process.kill()
        process.communicate()


def assert_same_models(one: Path, other: Path) -> None:
    for name in MODELS:
        ours = load_file(one / name / "model.safetensors")
        theirs = load_file(other / name / "model.safetensors")
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), f"{name}: {key}"


def deterministic(lines: list[dict]) -> list[dict]:
    return sorted(lines, key=lambda line: (line["stage"], line["step"], line.get("split", "")))


@dataclass(frozen=True)
class Kill:
    """Where a run is killed; it writes a checkpoint behind every step, or never."""

    stage: str
    step: int
    checkpoints: bool

    @property
    def interval_s(self) -> float:
        return 0.0 if self.checkpoints else NEVER_S


KILLS = [
    Kill("teacher", 7, checkpoints=True),
    Kill("teacher", 7, checkpoints=False),
    Kill("teacher-cache", 64, checkpoints=True),
    Kill("distill", 2, checkpoints=True),
    Kill("prune-0.5", 5, checkpoints=False),
    Kill("prune-0.8", 1, checkpoints=False),
    Kill("prune-0.8", 6, checkpoints=True),
    Kill("finetune-0.8", 5, checkpoints=True),
]


@pytest.mark.parametrize("kill", [KILLS[0], KILLS[5], KILLS[6]], ids=str)
def test_a_run_that_stops_anywhere_ends_bit_for_bit_as_if_it_had_not(
    finished_run, train_run, tmp_path, monkeypatch, kill
):
    advance = RunProgress.advance

    def dying(self, step, values, **options):
        advance(self, step, values, **options)
        if values and self._stage == kill.stage and step == kill.step + 1:
            raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(RunProgress, "advance", dying)
        with pytest.raises(SystemExit):
            train_run(tmp_path, checkpoint_seconds=kill.interval_s)
    assert_same_models(train_run(tmp_path).directory, finished_run.directory)


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_a_run_killed_and_resumed_ends_bit_for_bit_as_if_never_killed(
    finished_run, start, train_run, tmp_path, kill
):
    process = start(tmp_path, kill.stage, kill.step, interval_s=kill.interval_s)
    assert process.send(signal.SIGKILL) == -signal.SIGKILL
    resumed = train_run(tmp_path)
    assert_same_models(resumed.directory, finished_run.directory)
    assert resumed.report == finished_run.report
    assert deterministic(resumed.metrics) == deterministic(finished_run.metrics)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_the_same(finished_run, start, train_run, tmp_path):
    for stage, step in [("teacher", 3), ("teacher", 9), ("prune-0.5", 4), ("prune-0.8", 2)]:
        start(tmp_path, stage, step, interval_s=0.0).send(signal.SIGKILL)
    assert_same_models(train_run(tmp_path).directory, finished_run.directory)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_polite_signal_writes_a_checkpoint_and_stops(
    finished_run, start, train_run, tmp_path, number
):
    assert start(tmp_path, "prune-0.5", 5, interval_s=NEVER_S).send(number) == 130
    state = read_state(tmp_path / "checkpoint")
    assert state is not None
    assert (state["stage"], state["step"]) == ("prune-0.5", 5)
    assert_same_models(train_run(tmp_path).directory, finished_run.directory)


@pytest.mark.slow
def test_a_signal_while_the_cache_is_built_stops_the_run(start, train_run, finished_run, tmp_path):
    assert start(tmp_path, "teacher-cache", 64, interval_s=NEVER_S).send(signal.SIGTERM) == 130
    assert not (tmp_path / "cache").exists()
    assert_same_models(train_run(tmp_path).directory, finished_run.directory)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_not_continued(start, make_pipeline, tmp_path):
    start(tmp_path, "prune-0.5", 5, interval_s=0.0).send(signal.SIGKILL)
    path = tmp_path / "checkpoint" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tensors.safetensors' is damaged: it has sha256"):
        make_pipeline(tmp_path).train()
