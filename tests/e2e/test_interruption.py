"""Ctrl-C in the middle of training, and on from there."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cofi_deploy.artifacts import read_json
from tests.e2e.commands import cofi_deploy, command, environment

pytestmark = pytest.mark.e2e

CHANGES = {"teacher_epochs": 40.0, "sparsities": [0.6]}


def test_ctrl_c_leaves_a_checkpoint_and_resume_completes(
    tmp_path: Path, tiny_bert: Path, tiny_data: Path, few_steps
) -> None:
    settings = {**few_steps, **CHANGES}
    flags = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    process = subprocess.Popen(
        command(
            "train", "--task", "sst2", "--model", tiny_bert, "--data-dir", tiny_data,
            "--max-length", "48", "--output", "run", *flags,
        ),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "teacher" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted; nothing half-written is left, continue")
    assert "Traceback" not in err
    assert read_json(tmp_path / "run" / "run.json")["state"] == "failed"
    assert (tmp_path / "run" / "checkpoint" / "state.json").is_file()

    done = cofi_deploy(tmp_path, "train", "--resume", "run")
    assert done.returncode == 0, done.stderr
    document = read_json(tmp_path / "run" / "run.json")
    assert document["state"] == "done"
    assert not (tmp_path / "run" / "checkpoint").exists()
