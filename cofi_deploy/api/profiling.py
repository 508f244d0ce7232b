"""`profile`: where the time of dense and pruned goes, part by part, and why the speedup is that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cofi_deploy.api.exporting import RUNTIME_FORMATS, export_if_stale
from cofi_deploy.api.places import Place, find_model, newest_pair
from cofi_deploy.artifacts import EXPORTS_ROOT
from cofi_deploy.errors import EnvironmentProblem, RunnerError
from cofi_deploy.results import result_document
from cofi_deploy.serve.bench import BenchSettings, usable_runtimes
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.profile import check_profiled
from cofi_deploy.serve.profile_chart import profile_chart
from cofi_deploy.serve.profile_explanation import explanations_for
from cofi_deploy.serve.profiles import profiles_for
from cofi_deploy.serve.runner import availability
from cofi_deploy.serve.subject import Subject

DEFAULT_RUNTIMES = ("onnxruntime-cpu", "openvino")
DEFAULT_POINT = "1x128"

_ROW_KEYS = ("model", "runtime", "precision", "device", "threads", "batch_size", "seq_len")


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """Profiles, explanations of every model against the first, and runtimes that were skipped."""

    profiles: list[dict[str, Any]]
    explanations: list[dict[str, Any]]
    skipped: list[dict[str, str]]

    def document(self) -> dict[str, Any]:
        """A result file: one row for each profile, and all that was found."""
        rows = [
            {**{key: each[key] for key in _ROW_KEYS}, "p50_ms": each["wall_ms"]}
            for each in self.profiles
        ]
        return {
            **result_document(rows),
            "profiles": self.profiles,
            "explanations": self.explanations,
            "skipped": self.skipped,
        }

    def chart(self) -> str:
        """The picture, an SVG."""
        return profile_chart(self.profiles)


def profile(
    models: Sequence[Path | str] = (),
    *,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    point: str = DEFAULT_POINT,
    threads: int | None = None,
    exports_root: Path = EXPORTS_ROOT,
) -> ProfileResult:
    """Profile models at one operating point in each runtime.

    Args:
        models: Run or model directories, the first is what the others are compared with; nothing:
            the newest run, its teacher first.
        runtimes: Those of `PROFILED_RUNTIMES` that are wanted.
        point: `<batch>x<length>`.
        threads: Of one inference; None means the physical cores.
        exports_root: Where missing exports are written, and present ones are looked for.

    Raises:
        UsageError: A runtime without a profiler, or a point without a length in tokens.
        EnvironmentProblem: None of the runtimes can be used here.
        RunnerError: All of them failed.
        CofiDeployError: See errors.py.
    """
    at = OperatingPoint.parse(point)
    for runtime in runtimes:
        check_profiled(replace(at, runtime=runtime))
    subjects = [_subject(place, runtimes) for place in _places(models, exports_root)]
    usable, skipped = usable_runtimes(subjects, runtimes)
    if not usable:
        reasons = "; ".join(f"{each['runtime']}: {each['reason']}" for each in skipped)
        raise EnvironmentProblem(f"nothing can be profiled here: {reasons}")
    settings = BenchSettings(runtimes=tuple(usable), points=(at,), threads=threads)
    profiles = profiles_for(subjects, settings)
    if not profiles.found:
        raise RunnerError("; ".join(each["reason"] for each in profiles.failed))
    return ProfileResult(
        profiles=profiles.found,
        explanations=explanations_for(profiles.found),
        skipped=[*skipped, *profiles.failed],
    )


def _places(models: Sequence[Path | str], exports_root: Path) -> list[Place]:
    if models:
        return [find_model(model, exports_root=exports_root) for model in models]
    return newest_pair(exports_root)


def _subject(place: Place, runtimes: Sequence[str]) -> Subject:
    """Artifacts for every runtime that can run here, exported where they are missing or stale."""
    usable = (runtime for runtime in runtimes if availability(runtime) is None)
    artifacts = {runtime: export_if_stale(place, RUNTIME_FORMATS[runtime]) for runtime in usable}
    return Subject(label=place.name, artifacts=artifacts)
