"""`export --tune`: build what may be fastest, time it in turn, keep what is right and fast.

In: a model, an operating point, text to judge by. Out: the directory of the winner and a table of
all that was tried. `export/candidates.py` says what is tried, `serve` opens and times it; here they
meet. Two rounds: graphs, each opened as usual; then the fastest graph, opened in other ways.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cofi_deploy.api.runtime_names import check_measured_at
from cofi_deploy.api.tuning_choice import choose, fastest_first, is_slower, timed_row
from cofi_deploy.arch import Arch
from cofi_deploy.errors import EnvironmentProblem, ExportError, RunnerError, UsageError
from cofi_deploy.export.calibration import CalibrationText
from cofi_deploy.export.candidates import (
    TUNED_RUNTIMES,
    Candidate,
    Machine,
    build,
    combined,
    graphs_for,
    sessions_for,
)
from cofi_deploy.export.fusion_audit import check_fused_attention
from cofi_deploy.export.manifest import write_tuning
from cofi_deploy.export.onnx import Opened, open_for_export
from cofi_deploy.export.text_parity import check_answers
from cofi_deploy.exports import ExportParity, read_manifest
from cofi_deploy.results import machine
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.latency import OperatingPoint, Samples, Schedule, time_interleaved
from cofi_deploy.serve.profile_onnxruntime import optimised_model
from cofi_deploy.serve.runner import Runner, open_runner, physical_cores

logger = logging.getLogger(__name__)

Calls = Mapping[str, Callable[[], None]]
Timer = Callable[[Calls], Samples]

TUNED_FORMATS = tuple(TUNED_RUNTIMES.values())
_SCHEDULE = Schedule(min_repeats=15, max_seconds=15.0)
_DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """What is searched for, and by what it is judged.

    Attributes:
        model: Model directory.
        point: Runtime, batch and length.
        text: Of the run, or as given; without it nothing that loses precision is tried.
        shrink_embeddings: Of every candidate.
        max_drop: Points of the metric that the winner may lose on held-out text; None: as much as
            any lossy export.
        may_fix_shape: Whether an artifact that computes the point's shape, or ONNX of its batch,
            alone may win.
    """

    model: Path
    point: OperatingPoint
    text: CalibrationText | None = None
    shrink_embeddings: bool = False
    max_drop: float | None = None
    may_fix_shape: bool = False


def check_target(point: OperatingPoint) -> str:
    """The export format of a target.

    Raises:
        UsageError: No runtime that is tuned for, or no one length.
        EnvironmentProblem: The runtime is not here.
    """
    check_measured_at(point, TUNED_RUNTIMES, flag="--tune", typed=str(point))
    return TUNED_RUNTIMES[point.runtime]


def tune(request: TuningRequest, folder: Path, *, timer: Timer | None = None) -> Path:
    """Search; the winner's directory lies in ``folder`` and says what was tried.

    Args:
        request: See above.
        folder: For the candidates; empty.
        timer: Times calls in turn.

    Raises:
        UsageError: ``max_drop`` without labelled text.
        EnvironmentProblem: The machine is too busy to choose by time.
        ExportError: Not even the default export is right.
    """
    search = _Search(request, folder, timer or _time)
    graphs = graphs_for(request.point.runtime, search.machine, search.shape)
    graph = search.try_all(graphs)
    sessions = sessions_for(request.point.runtime, graph, search.machine, search.shape)
    winner = search.try_all(sessions, again=[graph])
    gains = search.gains_over(graph, sessions)
    if len(gains) > 1:
        winner = search.try_all([combined(graph, gains)], again=[graph, *gains])
    return search.kept(winner)


def _time(calls: Calls) -> Samples:
    return time_interleaved(calls, _SCHEDULE)


@dataclass(kw_only=True)
class _Tried:
    """One candidate: where it lies, how it answers, why it may not win."""

    candidate: Candidate
    directory: Path | None = None
    parity: ExportParity | None = None
    refused: str | None = None
    row: dict[str, Any] = field(default_factory=dict)


class _Search:
    """Everything that was tried so far, by name, simplest first."""

    def __init__(self, request: TuningRequest, folder: Path, timer: Timer) -> None:
        self.request = request
        self.folder = folder
        self.timer = timer
        self.machine = _machine(request.point.runtime)
        length = request.point.seq_len
        self.shape = (request.point.batch_size, length if isinstance(length, int) else 0)
        self.tried: dict[str, _Tried] = {}
        self.samples = Samples(ms={})
        # Opened once, so that PyTorch answers the held-out text once for all candidates.
        self.opened: Opened = open_for_export(
            request.model, request.text, shrink_embeddings=request.shrink_embeddings
        )
        _check_max_drop(request)

    def try_all(self, new: Sequence[Candidate], again: Sequence[Candidate] = ()) -> Candidate:
        """Build and judge candidates, then time them, the default and some ``again``.

        Returns:
            The one to keep of all that were timed now.
        """
        for candidate in new:
            logger.info("trying %s", candidate.name)
            self.tried[candidate.name] = self._tried(candidate)
        if (broken := self.tried[_DEFAULT]).directory is None:
            raise ExportError(broken.refused or "the default export failed")
        timed = {_DEFAULT, *(each.name for each in (*again, *new))}
        # In the order in which they were first tried, which is the simplest first.
        names = [name for name in self.tried if name in timed and self.tried[name].directory]
        self.samples = self._time(names)
        allowed = [name for name in names if self.tried[name].refused is None]
        return self.tried[choose(self.samples, allowed)].candidate

    def gains_over(self, graph: Candidate, changes: Sequence[Candidate]) -> list[Candidate]:
        """Single changes of ``graph`` that are surely faster than it, as timed last."""
        return [
            change
            for change in changes
            if self.tried[change.name].refused is None
            and is_slower(self.samples, graph.name, change.name)
        ]

    def kept(self, winner: Candidate) -> Path:
        """The directory of the winner, with the table of all in its `export.json`."""
        directory, parity = self.tried[winner.name].directory, self.tried[winner.name].parity
        if directory is None:
            raise ExportError(f"candidate {winner.name!r} was not built")
        tuning = {
            "for": str(self.request.point),
            "kept": winner.name,
            "max_drop": self.request.max_drop,
            "rows": fastest_first([self._row(each) for each in self.tried.values()]),
            "machine": machine(),
        }
        write_tuning(directory, winner.session(self.request.point.runtime), tuning, parity)
        return directory

    def _tried(self, candidate: Candidate) -> _Tried:
        tried = _Tried(candidate=candidate)
        if candidate.precision != "fp32" and self.request.text is None:
            tried.refused = "no text to judge it by; name a run or --calibration"
            return tried
        try:
            tried.directory = self._built(candidate)
            tried.parity = self._judged(tried.directory, candidate)
        except (ExportError, RunnerError) as error:
            tried.directory, tried.refused = None, str(error)
            return tried
        tried.refused = self._drop_of(tried.parity)
        if not self.request.may_fix_shape:
            tried.refused = tried.refused or candidate.restriction
        return tried

    def _built(self, candidate: Candidate) -> Path:
        """Its export directory; another way of opening a graph shares the files of the graph."""
        directory = self.folder / str(len(self.tried))
        same = self._same_graph(candidate)
        if same is None:
            build(self.opened, directory, candidate, self.request.point.runtime)
        else:
            shutil.copytree(same, directory, copy_function=_link)
        session = candidate.session(self.request.point.runtime)
        write_tuning(directory, session, {"for": str(self.request.point)})
        return directory

    def _same_graph(self, candidate: Candidate) -> Path | None:
        for each in self.tried.values():
            if each.directory is not None and _graph(each.candidate) == _graph(candidate):
                return each.directory
        return None

    def _judged(self, directory: Path, candidate: Candidate) -> ExportParity | None:
        """Its answers as its session gives them, fused nodes audited first."""
        manifest = read_manifest(directory)
        if self.request.point.runtime == "onnxruntime-cpu":
            self._audit(directory, candidate, manifest.arch)
        if not candidate.settings or candidate.shape is not None:
            return manifest.parity  # the export compared this very session
        with self._open(directory) as runner:
            return check_answers(
                runner.infer,
                self.opened.source,
                self.opened.model,
                runtime=runner.runtime,
                precision=candidate.precision,
                yardstick=self.opened.yardstick,
            )

    def _audit(self, directory: Path, candidate: Candidate, arch: Arch) -> None:
        choice = candidate.session(self.request.point.runtime)
        threads = candidate.threads or self.machine.cores
        file = next(directory.glob("*.onnx"))
        scratch = self.folder / "optimised"
        scratch.mkdir(exist_ok=True)
        check_fused_attention(optimised_model(file, threads, choice, scratch), arch)

    def _drop_of(self, parity: ExportParity | None) -> str | None:
        """Why the metric falls too far; None where it does not."""
        text, limit = None if parity is None else parity.text, self.request.max_drop
        if limit is None or text is None or text.metric is None or text.metric_pytorch is None:
            return None
        drop = 100 * (text.metric_pytorch - text.metric)
        if drop <= limit:
            return None
        return f"loses {drop:.2f} points of {text.metric_name}, --max-drop is {limit:g}"

    def _open(self, directory: Path) -> Runner:
        return open_runner(directory, self.request.point.runtime)

    def _time(self, names: Sequence[str]) -> Samples:
        with contextlib.ExitStack() as stack:
            calls = {}
            for name in names:
                directory = self.tried[name].directory
                if directory is not None:
                    runner = stack.enter_context(self._open(directory))
                    inputs = random_inputs(runner.limits, *self.shape, seed=0)
                    calls[name] = runner.bind(inputs)
            samples = self.timer(calls)
        busy = None if samples.load is None else samples.load.too_busy(self.machine.cores)
        if busy is not None:
            raise EnvironmentProblem(f"{busy}; nothing was chosen, nothing was written")
        for name in names:
            self.tried[name].row = timed_row(samples, name, _DEFAULT)
        return samples

    def _row(self, tried: _Tried) -> dict[str, Any]:
        text = None if tried.parity is None else tried.parity.text
        judged = asdict(text) if text is not None else {}
        keys = ("metric_name", "metric", "metric_pytorch", "agreement", "max_abs_logit_diff")
        row = {key: judged[key] for key in keys if judged.get(key) is not None}
        if tried.parity is not None:
            row.setdefault("agreement", tried.parity.agreement)
            row.setdefault("max_abs_logit_diff", tried.parity.max_abs_logit_diff)
        session = tried.candidate.session(self.request.point.runtime)
        return {
            "candidate": tried.candidate.name,
            "precision": tried.candidate.precision,
            **tried.row,
            **row,
            "session": asdict(session),
            "refused": tried.refused,
        }


def _machine(runtime: str) -> Machine:
    import psutil  # noqa: PLC0415 - heavy for a module that `export` always imports

    has_bf16 = False
    if runtime == "openvino":
        from cofi_deploy.openvino_core import openvino_core  # noqa: PLC0415 - optional

        has_bf16 = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    cores = physical_cores()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    logical = min(psutil.cpu_count(logical=True) or cores, allowed)
    return Machine(cores=cores, logical_cores=logical, has_bf16=has_bf16)


def _graph(candidate: Candidate) -> Candidate:
    return replace(candidate, name="", threads=None, settings={})


def _check_max_drop(request: TuningRequest) -> None:
    if request.max_drop is None:
        return
    if request.max_drop < 0:
        raise UsageError(f"--max-drop is {request.max_drop:g}, allowed: 0 and up, in points")
    if request.text is None or request.text.task is None:
        raise UsageError(
            "--max-drop judges by held-out examples with labels, and there are none; name a model "
            "of a run"
        )


def _link(source: str, target: str) -> None:
    """Weights are shared; `export.json` is written anew as a file of its own."""
    os.link(source, target)
