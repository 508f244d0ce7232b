"""Which stages of a run are done, and where the interrupted one stopped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import CheckpointError
from cofi_deploy.train.checkpoint import read_state
from cofi_deploy.train.loop import Stage, run_stage
from cofi_deploy.train.processes import on_main
from cofi_deploy.train.progress import RunProgress, forget_after


class StageRunner:
    """Runs stages one after the other, those that are done already left out."""

    def __init__(
        self, run: Path, progress: RunProgress, order: Sequence[str], *, interval_s: float
    ) -> None:
        """Read what the run directory says of the stages in ``order``.

        Args:
            run: The run directory.
            progress: Told about every stage.
            order: Names of all stages.
            interval_s: Seconds between two checkpoints.

        Raises:
            CheckpointError: The checkpoint is of a stage that is not in ``order``.
        """
        self.progress = progress
        self._run = run
        self._interval_s = interval_s
        self._results: dict[str, float] = {}
        self._state: dict[str, Any] | None
        self._finished: set[str]
        self._state, self._finished = on_main(lambda: _standing(run, list(order)))

    def forget_unfinished(self) -> None:
        """Drop lines of metrics.jsonl that will be written again."""
        stage, step = "", 0
        if self._state is not None:
            stage, step = self._state["stage"], self._state["step"]
        forget_after(self._run / "metrics.jsonl", self._finished, stage, step)

    def are_done(self, names: Collection[str]) -> bool:
        """Whether all of these stages are done."""
        return self._finished.issuperset(names)

    def is_done(self, name: str) -> bool:
        """Whether a stage is done; the estimate of the time left then goes without it."""
        if name in self._finished:
            self.progress.skip(name)
        return name in self._finished

    def run(self, stage: Stage) -> None:
        """Train a stage to its end, from its checkpoint if there is one."""
        self._results = run_stage(
            stage,
            self._run / "checkpoint",
            self.progress,
            resume=self._state is not None and self._state["stage"] == stage.name,
            interval_s=self._interval_s,
        )

    def mark_done(self, name: str) -> None:
        """Into run.json, after everything that the stage leaves behind has been written."""
        document = read_json(self._run / "run.json")
        document.setdefault("stages", {})[name] = self._results
        write_json(self._run / "run.json", document)
        self._results = {}


def _standing(run: Path, order: list[str]) -> tuple[dict[str, Any] | None, set[str]]:
    """State of the checkpoint, and the stages that are done."""
    state = read_state(run / "checkpoint")
    finished = set(read_json(run / "run.json").get("stages", {}))
    if state is not None:
        stage = state["stage"]
        if stage not in order:
            raise CheckpointError(
                f"the checkpoint is of stage {stage!r}, but these settings have "
                f"{', '.join(order)}; resume with the settings that the run began with"
            )
        finished |= set(order[: order.index(stage)])
    return state, finished
