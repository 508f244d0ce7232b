"""The command line in a process of its own, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 900


def command(*arguments: str | Path) -> list[str]:
    """What the shell would start."""
    return [sys.executable, "-m", "cofi_deploy", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The shell's variables, the hub switched off."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def cofi_deploy(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Type a command in a folder and wait for its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
