"""The script between us and a server: it becomes the server, and ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cofi_deploy.serve import triton_child

SCRIPT = str(Path(triton_child.__file__))


def test_it_becomes_the_command() -> None:
    command = [sys.executable, SCRIPT, str(os.getpid()), sys.executable, "-c", "print(6 * 7)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "42\n"


def test_without_its_parent_nothing_is_started(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "1", "touch", str(tmp_path / "file")]
    subprocess.run(command, check=True)
    assert not (tmp_path / "file").exists()


def test_the_command_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {SCRIPT!r}, str(os.getpid()), 'sleep', '60'])\n"
        "time.sleep(0.3)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.name() == "sleep"
        parent.kill()
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
