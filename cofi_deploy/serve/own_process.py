"""Measure in a process of its own: nothing that ran before is in it, and it may die alone.

A module that measures so is run as ``python -P -m <module>`` with one JSON argument, and answers
with one line of JSON.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from cofi_deploy.errors import RunnerError

TIMEOUT_S = 600.0


def ask(module: str, request: Mapping[str, Any], what: str) -> Any:
    """The answer of ``module`` to a request.

    Args:
        module: Its `main` calls `request` and `answer`.
        request: JSON object.
        what: What is measured, for messages.

    Raises:
        RunnerError: The process failed, was killed or took too long; carries the last line that it
            wrote.
    """
    try:
        done = subprocess.run(
            # -P: a json.py in the working directory is none of ours.
            [sys.executable, "-P", "-m", module, json.dumps(request)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunnerError(
            f"{what} took more than {TIMEOUT_S:g} s in a process of its own"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunnerError(f"{what} {_ended(done.returncode)} in a process of its own: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def request() -> Any:
    """In the process: what is asked for."""
    return json.loads(sys.argv[1])


def answer(measured: Any) -> None:
    """In the process: what was measured."""
    sys.stdout.write(json.dumps(measured) + "\n")


def _ended(status: int) -> str:
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with status {status}"
