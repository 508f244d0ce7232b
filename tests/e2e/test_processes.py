"""Two processes, started as a user starts them, to a stop, a crash and an end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cofi_deploy.artifacts import read_json
from tests.e2e.commands import environment

pytestmark = pytest.mark.e2e

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node", "2", "-m", "cofi_deploy"),
)
# --multi_gpu is what starts several processes without MPI, with or without GPUs.
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
    *("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
    *("--dynamo_backend", "no", "-m", "cofi_deploy"),
)
CHANGES = {"teacher_epochs": 40.0, "sparsities": [0.6]}
TIMEOUT_S = 120


@contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Two processes that have begun to train."""
    process = subprocess.Popen(
        [*TORCHRUN, *map(str, arguments)],
        cwd=folder,
        env={**environment(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "teacher" in line:
                break
        yield process
    finally:
        if process.poll() is None:
            for each in (*psutil.Process(process.pid).children(), process):
                each.kill()
            process.communicate()


@pytest.fixture
def new_run(tiny_bert: Path, tiny_data: Path, few_steps: dict[str, Any]) -> list[str | Path]:
    """Arguments of a run of some seconds."""
    settings = {**few_steps, **CHANGES}
    flags = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    data = ["--model", tiny_bert, "--data-dir", tiny_data, "--max-length", "48"]
    return ["train", "--task", "sst2", *data, "--output", "run", *flags]


def test_torchrun_is_stopped_and_accelerate_goes_on(new_run, tmp_path: Path) -> None:
    with started(tmp_path, *new_run) as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert err.count("interrupted; nothing half-written is left, continue with") == 1
    assert read_json(tmp_path / "run" / "run.json")["state"] == "failed"
    assert (tmp_path / "run" / "checkpoint" / "state.json").is_file()

    done = subprocess.run(
        [*ACCELERATE, "train", "--resume", "run"],
        cwd=tmp_path,
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("next: cofi-deploy export") == 1
    document = read_json(tmp_path / "run" / "run.json")
    assert (document["state"], document["processes"]) == ("done", 2)


def test_a_process_that_is_killed_takes_the_other_with_it(new_run, tmp_path: Path) -> None:
    with started(tmp_path, *new_run) as process:
        workers = psutil.Process(process.pid).children()
        second = next(each for each in workers if each.environ().get("RANK") == "1")
        os.kill(second.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert all(not each.is_running() for each in workers)
    assert "Root Cause" in err
