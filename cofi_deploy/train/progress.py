"""Where a run is: bars on a terminal, plain lines elsewhere, and an estimate of the time left."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from cofi_deploy.atomic import write_bytes
from cofi_deploy.errors import EnvironmentProblem

_PLAIN_INTERVAL_S = 15.0


class RunProgress:
    """Shared by all stages of a run; also the writer of metrics.jsonl.

    The estimate weighs every stage's steps by their relative cost, and scales by what the steps
    done so far have taken.
    """

    def __init__(self, metrics: Path | None, planned: Mapping[str, tuple[int, float]]) -> None:
        """``planned`` gives each stage's steps and relative cost of a step, in order.

        Without ``metrics`` nothing is written or shown: another process does that.
        """
        self._metrics = metrics
        self._planned = dict(planned)
        self._names = list(planned)
        self._stage = ""
        self._done_units = 0.0
        self._skipped_units = 0.0
        self._started = time.monotonic()
        self._printed = 0.0
        self._console = Console(stderr=True, markup=False, quiet=metrics is None)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> RunProgress:
        """Show the bar when standard error is a terminal."""
        if sys.stderr.isatty() and not self._console.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def start(self, stage: str, *, done: int = 0) -> None:
        """Begin a stage, or continue it at step ``done``."""
        self._stage = stage
        steps, cost = self._planned[stage]
        self._skipped_units += done * cost
        place = f"[{self._names.index(stage) + 1}/{len(self._names)}]"
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(
                f"{place} {stage}", total=steps, completed=done, note=""
            )
        else:
            self.say(f"{place} {stage}: {steps - done} steps")

    def skip(self, stage: str) -> None:
        """Count a stage as done earlier."""
        steps, cost = self._planned[stage]
        self._skipped_units += steps * cost

    def advance(self, step: int, values: Mapping[str, float], *, count: int = 1) -> None:
        """Steps of the current stage are done; ``values`` are shown behind the bar."""
        steps, cost = self._planned[self._stage]
        self._done_units += count * cost
        note = " ".join(f"{key}={value:.4g}" for key, value in values.items())
        left = self._left()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, note=f"{note}  {left} left for training")
        elif time.monotonic() - self._printed > _PLAIN_INTERVAL_S or step == steps:
            self.say(f"  {self._stage} {step}/{steps} {note}, {left} left for training")

    def log(self, **entry: Any) -> None:
        """Append one object to metrics.jsonl.

        Raises:
            EnvironmentProblem: The disk is full or the place is not writable.
        """
        if self._metrics is None:
            return
        try:
            with self._metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"stage": self._stage, **entry}) + "\n")
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot write {str(self._metrics)!r}: {error}; free space, then --resume"
            ) from error

    def say(self, text: str) -> None:
        """One line for people."""
        self._printed = time.monotonic()
        self._console.print(text, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        total = sum(steps * cost for steps, cost in self._planned.values())
        remaining = max(0.0, total - self._skipped_units - self._done_units)
        if self._done_units <= 0:
            return "?"
        seconds = int((time.monotonic() - self._started) * remaining / self._done_units)
        return f"{seconds // 60}:{seconds % 60:02d}"


def forget_after(metrics: Path, finished: Collection[str], stage: str, step: int) -> None:
    """Drop lines of metrics.jsonl that a resumed run will write again.

    Args:
        metrics: The file; may be absent.
        finished: Stages that are done; their lines stay.
        stage: The stage that the checkpoint was written in; empty without a checkpoint.
        step: The step of the checkpoint; lines of its stage up to there stay.
    """
    if not metrics.is_file():
        return
    kept = []
    # A killed process may leave half a line, and not even whole UTF-8.
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            name, done = entry["stage"], entry["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if name in finished or (name == stage and done <= step):
            kept.append(line)
    write_bytes(metrics, "".join(line + "\n" for line in kept).encode())
