"""Trainings that one process, or several under torchrun, carry out and write down.

`python -m torch.distributed.run ... tests/train/shared_training.py PLANS.json` carries out a list
of plans in every process, one after the other, so that starting them is paid for once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cofi_deploy import api
from cofi_deploy.errors import CofiDeployError
from cofi_deploy.masks import FAMILIES, Masks
from cofi_deploy.train import loop, stage_runner
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.loop import Stage
from cofi_deploy.train.processes import rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong in one process, in one step of a stage."""

    what: str  # "nan", "error", "signal" or "kill"
    rank: int
    stage: str
    step: int

    def strike(self, loss: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do it."""
        if self.what == "error":
            raise MemoryError("no memory left on this device")
        if self.what == "nan":
            return {**loss, "loss": loss["loss"] * float("nan")}
        os.kill(os.getpid(), signal.SIGKILL if self.what == "kill" else signal.SIGTERM)
        return loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One call of `cofi_deploy.train`."""

    arguments: dict[str, Any]
    fault: dict[str, Any] | None = None

    def carry_out(self) -> dict[str, Any]:
        """Train; how it ended, and a digest of the masks of every step."""
        masks: list[str] = []
        sample, run_stage = HardConcreteGates.sample, stage_runner.run_stage

        def recorded(gates: HardConcreteGates, generator: torch.Generator | None = None) -> Masks:
            drawn = sample(gates, generator)
            values = torch.cat([getattr(drawn, name).detach().flatten() for name in FAMILIES])
            masks.append(hashlib.sha256(values.numpy().tobytes()).hexdigest())
            return drawn

        def faulty(stage: Stage, *arguments: Any, **options: Any) -> dict[str, float]:
            return run_stage(self._with_fault(stage), *arguments, **options)

        ended: dict[str, Any] = {"error": "", "code": 0}
        with (
            mock.patch.object(loop, "LOG_EVERY", 1),
            mock.patch.object(HardConcreteGates, "sample", recorded),
            mock.patch.object(stage_runner, "run_stage", faulty),
        ):
            try:
                api.train(**{name: _read(name, each) for name, each in self.arguments.items()})
            except (CofiDeployError, MemoryError, KeyboardInterrupt) as error:
                ended = {"error": str(error), "code": getattr(error, "exit_code", None)}
                ended["type"] = type(error).__name__
        return {**ended, "masks": masks}

    def _with_fault(self, stage: Stage) -> Stage:
        fault = None if self.fault is None else Fault(**self.fault)
        if fault is None or (fault.rank, fault.stage) != (rank(), stage.name):
            return stage

        def loss(step: int) -> Mapping[str, Any]:
            values = stage.loss(step)
            return fault.strike(values) if step == fault.step else values

        return dataclasses.replace(stage, loss=loss)


def _read(name: str, value: Any) -> Any:
    return Path(value) if name in {"data_dir", "output", "resume"} else value


def main(plans: Path) -> None:
    """Carry out all plans and write what became of them, one file for each process."""
    torch.set_num_threads(1)
    outcomes = [Plan(**each).carry_out() for each in json.loads(plans.read_text())]
    plans.with_name(f"outcomes-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
