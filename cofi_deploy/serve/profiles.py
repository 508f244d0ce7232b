"""Profiles of several models in several runtimes, each runtime in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve import own_process
from cofi_deploy.serve.bench import BenchSettings, usable_runtimes
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.profile import PROFILED_RUNTIMES
from cofi_deploy.serve.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """What was profiled, and which runtimes failed.

    Attributes:
        found: `Profile.to_json` of each subject, runtime by runtime.
        failed: ``runtime`` and ``reason``. A profile is an explanation: what failed at it has
            still been measured, and says so.
    """

    found: list[dict[str, Any]]
    failed: list[dict[str, str]]


def profiles_for(subjects: Sequence[Subject], settings: BenchSettings) -> Profiles:
    """Profiles of all subjects, at the first point of each runtime that has a length in tokens.

    Runtimes that cannot be used here or have no profiler are left out, and those without a point
    too.

    Raises:
        UsageError: A runtime is unknown.
    """
    found: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    usable, _ = usable_runtimes(subjects, settings.runtimes)
    for runtime in (each for each in usable if each in PROFILED_RUNTIMES):
        point = first_point(settings.points, runtime)
        if point is None:
            continue
        at = replace(point, threads=settings.threads, precision=settings.precision)
        artifacts = [(each.label, str(each.artifacts[runtime])) for each in subjects]
        request = {"point": asdict(at), "artifacts": artifacts}
        try:
            found += own_process.ask("cofi_deploy.serve.profile", request, f"the profile of {at}")
        except RunnerError as error:
            failed.append({"runtime": runtime, "reason": str(error)})
    return Profiles(found=found, failed=failed)


def first_point(points: Sequence[OperatingPoint], runtime: str) -> OperatingPoint | None:
    """The first point with a length in tokens that is meant for the runtime."""
    meant = (point for point in points if point.runtime in {"", runtime})
    found = next((point for point in meant if isinstance(point.seq_len, int)), None)
    return None if found is None else replace(found, runtime=runtime)
