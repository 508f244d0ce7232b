"""`verify` and `bench`: dense against pruned, in the runtimes that serve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.api.exporting import RUNTIME_FORMATS, export_if_stale
from cofi_deploy.api.model_card import refresh_cards
from cofi_deploy.api.places import Place, find_model, newest_pair, teacher_of
from cofi_deploy.api.run_task import TaskArguments, task_of_run
from cofi_deploy.api.runtime_names import points_of, runtimes_of
from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import EXPORTS_ROOT, read_json
from cofi_deploy.errors import UsageError
from cofi_deploy.exports import read_manifest
from cofi_deploy.inspect_model import describe
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.bench import BenchResult, BenchSettings
from cofi_deploy.serve.bench import bench as run_bench
from cofi_deploy.serve.latency import TASK_LENGTHS, Schedule
from cofi_deploy.serve.runner import availability
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.triton_service import running_server
from cofi_deploy.serve.verdict import Targets
from cofi_deploy.serve.verify import VerifyResult, VerifySettings
from cofi_deploy.serve.verify import verify as run_verify
from cofi_deploy.targets import Target
from cofi_deploy.tasks import EncodedSplit

DEFAULT_RUNTIMES = ("torch", "onnxruntime-cpu", "openvino")
DEFAULT_POINTS = ("1x128", "32x128", "1xtask")


def verify(  # noqa: PLR0913 - the arguments are the flags of the command line
    models: Sequence[Path | str] = (),
    *,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    points: Sequence[str] = DEFAULT_POINTS,
    task: TaskArguments | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    require: Sequence[str] = (),
    triton_url: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    min_repeats: int = 30,
    max_seconds: float = 10.0,
    saturate: bool = False,
    output: Path | None = None,
    exports_root: Path = EXPORTS_ROOT,
    command: tuple[str, ...] | None = None,
) -> VerifyResult:
    """Score and time dense and pruned through every runtime; write verify.json and report.html.

    Args:
        models: Nothing: the newest run. One: a run, with all its members against its teacher,
            or a model in a run, alone against that teacher. Two: dense, pruned.
        runtimes: Where to measure, or `all`; those that are not here are reported as skipped. Short
            names are those of `runtime_names.ALIASES`.
        points: Operating points, `<batch>x<length>` or `<batch>xtask`.
        task: Where the development data is; by default as the run was trained.
        max_drop: Largest loss of the metric that is accepted, in points. Of a family, the run's
            `model/` is judged, and the others are shown; name another member to judge that.
        min_speedup: Smallest speedup that is accepted, in every runtime and at every point; of
            the same model.
        require: Runtimes whose absence is an error.
        triton_url: `HOST:PORT` of the gRPC service of a running Triton server that serves the
            models; None: runtime `triton` starts servers of its own.
        threads: Of one inference; None means the physical cores.
        limit: Score only so many examples.
        min_repeats: Rounds for each operating point, whatever they take.
        max_seconds: Of timing for each operating point, once there are so many rounds.
        saturate: Also measure the throughput of as many concurrent clients as help.
        output: Directory of verify.json and report.html; by default the run's, else here.
        exports_root: Where missing exports are written, and present ones are looked for.
        command: What the report says reproduces it; None means this process's command line.

    Raises:
        CofiDeployError: See errors.py.
    """
    family = _family(models, exports_root)
    run = family.main.run
    if task is None:
        if run is None:
            raise UsageError("two models outside of a run have no task; name it with --task")
        task = task_of_run(run)
    if triton_url is not None and "triton" not in {*runtimes, *require}:
        raise UsageError(
            "--triton-url names the server of --runtime triton, which is not asked for"
        )
    with running_server(triton_url):
        used = runtimes_of(runtimes, require)
    settings = VerifySettings(
        bench=BenchSettings(
            runtimes=used,
            points=points_of(points),
            threads=threads,
            schedule=Schedule(min_repeats=min_repeats, max_seconds=max_seconds),
            saturate=saturate,
        ),
        targets=Targets(max_drop=max_drop, min_speedup=min_speedup),
        judged=family.judged,
        limit=limit,
        metrics_file=None if run is None else run / "metrics.jsonl",
        command=command,
        train_command=None if run is None else read_json(run / "run.json").get("command"),
    )
    with running_server(triton_url):
        result = run_verify(
            _subject(family.dense, "dense", used),
            [_subject(place, label, used) for label, place in family.members.items()],
            task.load(),
            settings,
            output or run or Path(),
        )
    refresh_cards(result.result_file.parent)
    return result


def bench(  # noqa: PLR0913 - the arguments are the flags of the command line
    models: Sequence[Path | str] = (),
    *,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    points: Sequence[str] = ("1x128", "32x128"),
    task: TaskArguments | None = None,
    threads: int | None = None,
    min_repeats: int = 30,
    max_seconds: float = 10.0,
    saturate: bool = False,
    fresh_process: bool = True,
    exports_root: Path = EXPORTS_ROOT,
) -> BenchResult:
    """Time any number of models side by side; the first is the baseline of every speedup.

    Args:
        models: Run or model directories; nothing: the newest run, its teacher first.
        runtimes: Where to measure, as for `verify`.
        points: Operating points, `<batch>x<length>` or `<batch>xtask`.
        task: Where the texts of `xtask` come from; None means the task of the first run among the
            models. Any length in tokens is timed without.
        threads: Of one inference; None means the physical cores.
        min_repeats: Rounds for each operating point, whatever they take.
        max_seconds: Of timing for each operating point, once there are so many rounds.
        saturate: Also measure the throughput of as many concurrent clients as help.
        fresh_process: Also measure load, first inference and peak memory, each in a new process.
        exports_root: Where missing exports are written, and present ones are looked for.
    """
    places = (
        [find_model(model, exports_root=exports_root) for model in models]
        if models
        else newest_pair(exports_root)
    )
    used = runtimes_of(runtimes)
    subjects = [_subject(place, place.name, used) for place in places]
    settings = BenchSettings(
        runtimes=used,
        points=points_of(points),
        threads=threads,
        schedule=Schedule(min_repeats=min_repeats, max_seconds=max_seconds),
        fresh_process=fresh_process,
        saturate=saturate,
    )
    texts = _texts(places, subjects, settings, task)
    return run_bench(subjects, settings, *texts)


def _texts(
    places: Sequence[Place],
    subjects: Sequence[Subject],
    settings: BenchSettings,
    task: TaskArguments | None,
) -> tuple[EncodedSplit | None, dict[tuple[str, str], EncodedSplit]]:
    """Texts of a task in the last model's ids, and for artifacts that number pieces otherwise.

    Nothing where no point asks for them, or where neither a task is named nor a run knows one.
    """
    runs = [place.run for place in places if place.run is not None]
    if all(point.seq_len != TASK_LENGTHS for point in settings.points):
        return None, {}
    if task is None and not runs:
        return None, {}
    loaded = (task or task_of_run(runs[0])).load()

    def encode(tokenizer: Path) -> EncodedSplit:
        return loaded.encode("validation", load_tokenizer(tokenizer))

    own = {
        (subject.label, runtime): encode(directory)
        for subject in subjects
        for runtime in subject.artifacts
        if (directory := subject.own_tokenizer(runtime)) is not None
    }
    return encode(subjects[-1].tokenizer), own


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What is compared: the dense model, its members by label, and which one is judged."""

    dense: Place
    members: Mapping[str, Place]
    judged: str

    @property
    def main(self) -> Place:
        """The judged member."""
        return self.members[self.judged]


def _family(models: Sequence[Path | str], exports_root: Path) -> _Family:
    if len(models) > 2:
        raise UsageError(
            f"verify compares one dense and one pruned model, or a run's, got {len(models)}; "
            "time any number of models with: cofi-deploy bench"
        )
    if len(models) == 2:
        dense, pruned = (find_model(model, exports_root=exports_root) for model in models)
        return _Family(dense=dense, members={"pruned": pruned}, judged="pruned")
    main = find_model(models[0] if models else None, exports_root=exports_root)
    named_run = not models or (Path(models[0]) / "run.json").is_file()
    members = _members(main) if named_run else {"pruned": main}
    judged = next(label for label, place in members.items() if place == main)
    return _Family(dense=teacher_of(main), members=members, judged=judged)


def _members(main: Place) -> dict[str, Place]:
    """All models of a run by label, sparsest last; ``main`` is the one in `model/`."""
    entries = [] if main.run is None else _trained_models(main.run)
    if main.run is None or len(entries) < 2:
        return {"pruned": main}
    main_directory = main.model.resolve()
    members: dict[str, Place] = {}
    for entry in sorted(entries, key=lambda entry: Target.of(entry).share):
        directory = main.run / entry["directory"]
        is_main = directory.resolve() == main_directory
        found = main if is_main else find_model(directory, exports_root=main.exports_root)
        members[Target.of(entry).label] = found
    return members


def _trained_models(run: Path) -> list[dict[str, Any]]:
    """What run.json says of each model of a run: its target, directory, metrics."""
    found: list[dict[str, Any]] = read_json(run / "run.json").get("result", {}).get("models", [])
    return found


def _subject(place: Place, label: str, runtimes: Sequence[str]) -> Subject:
    """The model, and artifacts for every runtime that can run here, exported where they are stale.

    The model is what artifacts are compared with, whether PyTorch is timed or not.
    """
    artifacts: dict[str, Path] = {"torch": place.model}
    for runtime in runtimes:
        if runtime in RUNTIME_FORMATS and availability(runtime) is None:
            artifacts[runtime] = export_if_stale(place, RUNTIME_FORMATS[runtime])
            if runtime == "triton":
                _check_vocabulary(place, artifacts[runtime])
    return Subject(label=label, artifacts=artifacts, facts=_facts(place))


def _check_vocabulary(place: Place, repository: Path) -> None:
    """Token ids of the model must be those of the repository; one made from an ONNX may be cut."""
    served = read_manifest(repository).arch.vocab_size
    own = Arch.from_json(describe(place.model)["arch"]).vocab_size
    if served != own:
        raise UsageError(
            f"{str(repository)!r} serves a vocabulary of {served} pieces, the model has {own}; "
            f"export it again: cofi-deploy export {place.model} --format triton "
            f"--output {repository}"
        )


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
    for entry in _trained_models(place.run):
        if (place.run / entry["directory"]).resolve() == place.model.resolve():
            facts |= Target.of(entry).keys
    return facts
