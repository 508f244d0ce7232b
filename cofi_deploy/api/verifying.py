"""`verify` and `bench`: dense against pruned, in the runtimes that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cofi_deploy.api.exporting import export_if_stale
from cofi_deploy.api.places import Place, find_model, teacher_of
from cofi_deploy.api.run_task import TaskArguments, task_of_run
from cofi_deploy.artifacts import EXPORTS_ROOT, read_json
from cofi_deploy.errors import EnvironmentProblem, UsageError
from cofi_deploy.serve.bench import BenchResult, BenchSettings
from cofi_deploy.serve.bench import bench as run_bench
from cofi_deploy.serve.latency import OperatingPoint, Schedule
from cofi_deploy.serve.runner import availability
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verdict import Targets
from cofi_deploy.serve.verify import VerifyResult, VerifySettings
from cofi_deploy.serve.verify import verify as run_verify

DEFAULT_RUNTIMES = ("torch", "onnxruntime-cpu", "openvino")
DEFAULT_POINTS = ("1x128", "32x128", "1xtask")

# Which export each runtime opens; torch opens the model directory itself.
_FORMATS = {
    "onnxruntime-cpu": "onnx",
    "onnxruntime-cuda": "onnx",
    "openvino": "openvino",
    "tensorrt": "trt",
    "tensorrt-rtx": "trt",
}


def verify(  # noqa: PLR0913 - the arguments are the flags of the command line
    models: Sequence[Path | str] = (),
    *,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    points: Sequence[str] = DEFAULT_POINTS,
    task: TaskArguments | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    require: Sequence[str] = (),
    threads: int | None = None,
    limit: int | None = None,
    min_repeats: int = 30,
    max_seconds: float = 10.0,
    output: Path | None = None,
    exports_root: Path = EXPORTS_ROOT,
    command: tuple[str, ...] | None = None,
) -> VerifyResult:
    """Score and time dense and pruned through every runtime; write verify.json and report.html.

    Args:
        models: Nothing: the newest run. One: a run, or a model in a run, against the run's
            teacher. Two: dense, pruned.
        runtimes: Where to measure; those that are not here are reported as skipped.
        points: Operating points, `<batch>x<length>` or `<batch>xtask`.
        task: Where the development data is; by default as the run was trained.
        max_drop: Largest loss of the metric that is accepted, in points.
        min_speedup: Smallest speedup that is accepted, in every runtime and at every point.
        require: Runtimes whose absence is an error.
        threads: Of one inference; None means the physical cores.
        limit: Score only so many examples.
        min_repeats: Rounds for each operating point, whatever they take.
        max_seconds: Of timing for each operating point, once there are so many rounds.
        output: Directory of verify.json and report.html; by default the run's, else here.
        exports_root: Where missing exports are written, and present ones are looked for.
        command: What the report says reproduces it; None means this process's command line.

    Raises:
        CofiDeployError: See errors.py.
    """
    dense, pruned = _pair(models, exports_root)
    if task is None:
        if pruned.run is None:
            raise UsageError("two models outside of a run have no task; name it with --task")
        task = task_of_run(pruned.run)
    used = tuple(dict.fromkeys([*runtimes, *require]))
    _check_runtimes(used, require)
    settings = VerifySettings(
        bench=BenchSettings(
            runtimes=used,
            points=tuple(OperatingPoint.parse(point) for point in points),
            threads=threads,
            schedule=Schedule(min_repeats=min_repeats, max_seconds=max_seconds),
        ),
        targets=Targets(max_drop=max_drop, min_speedup=min_speedup),
        limit=limit,
        metrics_file=None if pruned.run is None else pruned.run / "metrics.jsonl",
        command=command,
    )
    return run_verify(
        _subject(dense, "dense", used),
        _subject(pruned, "pruned", used),
        task.load(),
        settings,
        output or pruned.run or Path(),
    )


def bench(  # noqa: PLR0913 - the arguments are the flags of the command line
    models: Sequence[Path | str] = (),
    *,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    points: Sequence[str] = ("1x128", "32x128"),
    threads: int | None = None,
    min_repeats: int = 30,
    max_seconds: float = 10.0,
    fresh_process: bool = True,
    exports_root: Path = EXPORTS_ROOT,
) -> BenchResult:
    """Time any number of models side by side; the first is the baseline of every speedup.

    Args:
        models: Run or model directories; nothing: the newest run, its teacher first.
        runtimes: Where to measure.
        points: Operating points, `<batch>x<length>`.
        threads: Of one inference; None means the physical cores.
        min_repeats: Rounds for each operating point, whatever they take.
        max_seconds: Of timing for each operating point, once there are so many rounds.
        fresh_process: Also measure load, first inference and peak memory, each in a new process.
        exports_root: Where missing exports are written, and present ones are looked for.
    """
    places = (
        [find_model(model, exports_root=exports_root) for model in models]
        if models
        else list(_pair((), exports_root))
    )
    _check_runtimes(runtimes)
    subjects = [_subject(place, place.name, runtimes) for place in places]
    settings = BenchSettings(
        runtimes=tuple(runtimes),
        points=tuple(OperatingPoint.parse(point) for point in points),
        threads=threads,
        schedule=Schedule(min_repeats=min_repeats, max_seconds=max_seconds),
        fresh_process=fresh_process,
    )
    return run_bench(subjects, settings)


def _pair(models: Sequence[Path | str], exports_root: Path) -> tuple[Place, Place]:
    if len(models) > 2:
        raise UsageError(
            f"verify compares one dense and one pruned model, got {len(models)}; "
            "time any number of models with: cofi-deploy bench"
        )
    if len(models) == 2:
        dense, pruned = (find_model(model, exports_root=exports_root) for model in models)
        return dense, pruned
    pruned = find_model(models[0] if models else None, exports_root=exports_root)
    return teacher_of(pruned), pruned


def _subject(place: Place, label: str, runtimes: Sequence[str]) -> Subject:
    """The model, and artifacts for every runtime that can run here, exported where they are stale.

    The model is what artifacts are compared with, whether PyTorch is timed or not.
    """
    artifacts: dict[str, Path] = {"torch": place.model}
    for runtime in runtimes:
        if runtime in _FORMATS and availability(runtime) is None:
            artifacts[runtime] = export_if_stale(place, _FORMATS[runtime])
    return Subject(label=label, artifacts=artifacts, facts=_facts(place))


def _facts(place: Place) -> dict[str, Any]:
    """What only the run knows about a model."""
    if place.run is None:
        return {}
    document = read_json(place.run / "run.json")
    facts = {
        "base_model": Path(document["model"]).name,
        "recipe": document["recipe"],
        "seed": document["settings"]["seed"],
    }
    for entry in document.get("result", {}).get("models", []):
        if (place.run / entry["directory"]).resolve() == place.model.resolve():
            facts["target_sparsity"] = entry["target_sparsity"]
    return facts


def _check_runtimes(runtimes: Sequence[str], required: Sequence[str] = ()) -> None:
    """Refuse unknown names and the absence of what is required, before anything is exported."""
    for runtime in runtimes:
        reason = availability(runtime)
        if reason is not None and runtime in required:
            raise EnvironmentProblem(f"--require {runtime}: {reason}")
