"""What `--runtime` and `--require` may say: runtimes, short names, `all`.

In: names as typed. Out: runtimes of `serve/runner.py`, and the servers that were asked for by name
made ready. `verifying.py` calls it before anything is exported.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cofi_deploy.errors import EnvironmentProblem, UsageError, did_you_mean
from cofi_deploy.serve import runner_triton
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.runner import RUNTIMES, availability

logger = logging.getLogger(__name__)

ALL = "all"

# Which runtimes a short name stands for: the first of them that works here.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "trt": ("tensorrt", "tensorrt-rtx"),
    "onnxruntime": ("onnxruntime-cpu",),
    "ort": ("onnxruntime-cpu",),
}


def runtimes_of(names: Sequence[str], required: Sequence[str] = ()) -> tuple[str, ...]:
    """The runtimes to measure in, each once, in the order of the names.

    A runtime that is asked for by its own name may install what it can install by itself: a Triton
    server. `all` asks for none by name.

    Args:
        names: Runtimes, short names or `all`; those that are not here are left for the caller to
            report, a short name with all that it stands for.
        required: The same, but their absence is an error.

    Raises:
        UsageError: An unknown name; says the nearest one.
        EnvironmentProblem: None of what a required name stands for works here; says why.
    """
    for name in (*names, *required):
        _check_name(name)
    if "triton" in {*names, *required}:
        _prepare_triton()
    for name in required:
        for meant in _meanings(name):
            _check_here(name, meant)
    found = [
        runtime
        for name in (*names, *required)
        for meant in _meanings(name)
        for runtime in _usable(meant)
    ]
    return tuple(dict.fromkeys(found))


def points_of(texts: Sequence[str]) -> tuple[OperatingPoint, ...]:
    """Operating points as typed, one for each runtime that a short name before `@` stands for.

    Raises:
        UsageError: No operating point, or one in an unknown runtime.
    """
    found = []
    for point in map(OperatingPoint.parse, texts):
        if not point.runtime:
            found.append(point)
            continue
        _check_name(point.runtime)
        found += [
            replace(point, runtime=runtime)
            for meant in _meanings(point.runtime)
            for runtime in _usable(meant)
        ]
    return tuple(found)


def check_measured_at(
    point: OperatingPoint, runtimes: Collection[str], *, flag: str, typed: str
) -> None:
    """Refuse a point behind ``flag`` and `--for` at which nothing can be measured.

    Args:
        point: Where.
        runtimes: That ``flag`` measures in.
        flag: Such as `--tune`.
        typed: The point as the user knows it.

    Raises:
        UsageError: Another runtime, or no one length.
        EnvironmentProblem: The runtime is not here.
    """
    if point.runtime not in runtimes or not isinstance(point.seq_len, int):
        raise UsageError(
            f"{flag} --for {typed}: allowed: RUNTIME@BATCHxLENGTH with a number of tokens and one "
            f"of the runtimes {', '.join(runtimes)}, such as onnxruntime-cpu@1x128"
        )
    reason = availability(point.runtime)
    if reason is not None:
        raise EnvironmentProblem(f"--for {typed}: {reason}")


def _check_name(name: str) -> None:
    allowed = (*RUNTIMES, *ALIASES, ALL)
    if name not in allowed:
        raise UsageError(f"runtime is {name!r}, {did_you_mean(name, allowed)}")


def _meanings(name: str) -> list[tuple[str, ...]]:
    """One entry for each runtime that is meant: those of which one will do."""
    if name == ALL:
        return [(runtime,) for runtime in RUNTIMES]
    return [ALIASES.get(name, (name,))]


def _usable(meant: tuple[str, ...]) -> tuple[str, ...]:
    """The first that works here; all of them, so that each is told as skipped, where none does."""
    return next(((runtime,) for runtime in meant if availability(runtime) is None), meant)


def _check_here(name: str, meant: tuple[str, ...]) -> None:
    reasons = {runtime: availability(runtime) for runtime in meant}
    if None in reasons.values():
        return
    told = "; ".join(
        f"{reason}" if runtime == name else f"{runtime}: {reason}"
        for runtime, reason in reasons.items()
    )
    raise EnvironmentProblem(f"--require {name}: {told}")


def _prepare_triton() -> None:
    """Where it cannot be installed, the runtime is absent like any other."""
    try:
        runner_triton.prepare(lambda line: logger.warning("%s", line))
    except EnvironmentProblem as problem:
        logger.warning("no Triton server can be installed: %s", problem)
