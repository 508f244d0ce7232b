"""`train --speedup N --for RUNTIME@BATCHxLENGTH`: where training and timing meet.

Comes in: a target as typed, a dense model, a task. Goes out: a `SpeedupBudget`: the latency table
of that place, and a stopwatch for the structures that training comes to. Both export what is
timed through the exporters that serve it. `train` sees neither runtimes nor exports.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from cofi_deploy.api.latency_tables import TimeInTurn, held_against_models, measure_table
from cofi_deploy.api.speedup_target import SPEEDUP_RUNTIMES, speedup_point
from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.config import TrainSettings
from cofi_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from cofi_deploy.export.structure import export_structure, source_of_structure
from cofi_deploy.kinds import TaskKind
from cofi_deploy.results import machine, versions
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.intervals import ratio_of_medians, too_wide
from cofi_deploy.serve.latency import OperatingPoint, Samples, Schedule, time_interleaved
from cofi_deploy.serve.runner import open_runner, physical_cores
from cofi_deploy.train.latency_table import LatencyTable
from cofi_deploy.train.speedup import MeasuredSpeedup, SpeedupBudget, Stopwatch

logger = logging.getLogger(__name__)

TABLE_FILE = "latency_table.json"

Calls = Mapping[str, Callable[[], None]]
Timer = Callable[[Calls], Samples]

_SCHEDULE = Schedule(min_repeats=20, max_seconds=15.0)
_SEED = 0
_PACKAGES = {"onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime")}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What gets faster."""

    arch: Arch
    kind: TaskKind
    labels: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase


def table_for(
    subject: Subject,
    settings: TrainSettings,
    run: Path,
    *,
    time_in_turn: TimeInTurn | None = None,
) -> LatencyTable:
    """The latency table of a run: the one in its directory, else a new one.

    Args:
        subject: The dense model.
        settings: With speedups and where they are meant.
        run: Run directory; may not exist yet, and nothing is written.
        time_in_turn: Times structures; by default in the runtime that is meant.

    Raises:
        UsageError: The place is none, or longer than the model reads.
        EnvironmentProblem: The runtime is not here, or the machine is too busy to measure.
    """
    point = speedup_point(settings.speedup_for)
    _check_length(point, subject.arch)
    key = _key(point, subject)
    known = _known_table(run / TABLE_FILE, key)
    if known is not None:
        return known
    logger.warning("measuring the latency table of %s, some minutes", point)
    busy: list[str] = []

    def checked(archs: Mapping[str, Arch]) -> Samples:
        samples = (time_in_turn or StructureTimer(point, subject))(archs)
        if samples.load is not None:
            sentence = samples.load.too_busy(physical_cores())
            if samples.load.is_too_busy_to_compare():
                raise EnvironmentProblem(f"{sentence}; nothing was trained")
            busy.extend([] if sentence is None else [sentence])
        return samples

    table = measure_table(
        subject.arch,
        subject.kind,
        checked,
        point=str(point),
        threads=physical_cores(),
        key=key,
    )
    table = held_against_models(table, subject.arch, settings.targets, checked)
    if busy:
        logger.warning("the latency table was measured all the same, but %s", busy[0])
    return replace(table, notes={**table.notes, "machine": machine(), "busy": busy[:1]})


def write_table(table: LatencyTable, run: Path) -> None:
    """Keep a table where a resumed run finds it."""
    write_json(run / TABLE_FILE, table.to_json())


def speedup_budget(
    table: LatencyTable, subject: Subject, *, time_in_turn: TimeInTurn | None = None
) -> SpeedupBudget:
    """What training is given: the table, and a stopwatch for the same place."""
    timer = time_in_turn or StructureTimer(speedup_point(table.point), subject)
    return SpeedupBudget(table=table, stopwatch=stopwatch_of(subject.arch, timer))


class StructureTimer:
    """Exports structures with random weights, opens all of them, times them in turn."""

    def __init__(
        self, point: OperatingPoint, subject: Subject, *, timer: Timer | None = None
    ) -> None:
        """Measure at ``point`` what does the task of ``subject``."""
        self._point = point
        self._subject = subject
        self._timer = timer or _time

    def __call__(self, archs: Mapping[str, Arch]) -> Samples:
        """Milliseconds of every structure, by its name.

        Raises:
            ExportError: A structure cannot be exported.
            RunnerError: The runtime refuses one.
        """
        length = self._point.seq_len
        shape = (self._point.batch_size, length if isinstance(length, int) else 0)
        with (
            tempfile.TemporaryDirectory(prefix="cofi-deploy-latency-") as folder,
            contextlib.ExitStack() as stack,
        ):
            calls = {}
            for number, (name, arch) in enumerate(archs.items()):
                directory = self._export(arch, Path(folder) / str(number))
                runner = stack.enter_context(open_runner(directory, self._point.runtime))
                calls[name] = runner.bind(random_inputs(runner.limits, *shape, seed=_SEED))
            return self._timer(calls)

    def _export(self, arch: Arch, directory: Path) -> Path:
        subject = self._subject
        source = source_of_structure(arch, subject.kind, subject.labels, subject.tokenizer)
        return export_structure(
            source, directory, export_format=SPEEDUP_RUNTIMES[self._point.runtime]
        )


def _time(calls: Calls) -> Samples:
    return time_interleaved(calls, _SCHEDULE)


def stopwatch_of(dense: Arch, time_in_turn: TimeInTurn) -> Stopwatch:
    """Times a structure beside the dense model; says so where the machine is too busy."""

    def measure(arch: Arch) -> MeasuredSpeedup:
        samples = time_in_turn({"dense": dense, "pruned": arch})
        ratio = ratio_of_medians(samples, "dense", "pruned", seed=_SEED)
        busy = None if samples.load is None else samples.load.too_busy(physical_cores())
        is_hopeless = samples.load is not None and samples.load.is_too_busy_to_compare()
        wide = too_wide(ratio)
        return MeasuredSpeedup(
            speedup=None if is_hopeless or wide is not None else ratio.value,
            low=ratio.low,
            high=ratio.high,
            p50_ms=float(np.median(samples.ms["pruned"])),
            dense_p50_ms=float(np.median(samples.ms["dense"])),
            busy=busy or wide,
        )

    return measure


def _check_length(point: OperatingPoint, arch: Arch) -> None:
    if isinstance(point.seq_len, int) and point.seq_len > arch.max_positions:
        raise UsageError(
            f"--for {point} has {point.seq_len} tokens, but the model reads at most "
            f"{arch.max_positions}; name a shorter length"
        )


def _key(point: OperatingPoint, subject: Subject) -> dict[str, Any]:
    """Everything that milliseconds depend on."""
    known = versions()
    packages = _PACKAGES.get(point.runtime, (point.runtime.removesuffix("-cpu"),))
    computer = machine()
    key = {
        "runtime": point.runtime,
        "version": next((known[name] for name in packages if name in known), None),
        "batch_size": point.batch_size,
        "seq_len": point.seq_len,
        "threads": physical_cores(),
        "cpu": computer["cpu"],
        "gpu": computer["gpu"],
        "kind": subject.kind,
        "labels": len(subject.labels),
        "arch": subject.arch.to_json(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(key))  # as it is read back
    return plain


def _known_table(path: Path, key: Mapping[str, Any]) -> LatencyTable | None:
    if not path.is_file():
        return None
    try:
        table = LatencyTable.from_json(read_json(path))
    except ArtifactError as error:
        logger.warning("%s", error)
        return None
    changed = [name for name in key if table.key.get(name) != key[name]]
    if changed:
        logger.warning("%s is of another %s, so it is measured again", path, ", ".join(changed))
        return None
    return table
