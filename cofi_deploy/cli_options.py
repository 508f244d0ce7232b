"""Types, shared options and readings of the command line's flags; `cli*.py` have the commands."""

from __future__ import annotations

import json
import logging
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from cofi_deploy.errors import CofiDeployError, did_you_mean


class Group(click.Group):
    """Prints our own errors as one line and exits with their code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see `errors` for the codes."""
        try:
            return super().invoke(ctx)
        except CofiDeployError as error:
            if not _speaks():
                ctx.exit(error.exit_code)
            if ctx.ensure_object(dict).get("verbose"):
                click.echo(traceback.format_exc(), err=True)
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            what = "interrupted; nothing half-written is left"
            if ctx.invoked_subcommand == "train":
                what += ", continue with: cofi-deploy train --resume"
            if _speaks():
                click.echo(what, err=True)
            ctx.exit(130)


def is_first_process() -> bool:
    """Whether this is the only process of the command, or the first that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _speaks() -> bool:
    """Whether this process tells people why the command ended: one on each machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


class Choice(click.Choice):  # type: ignore[type-arg]
    """One of a few words; a wrong one is told the nearest, as everywhere else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take a word that is allowed."""
        if value not in self.choices:
            self.fail(f"got {value!r}, {did_you_mean(str(value), self.choices)}", param, ctx)
        return super().convert(value, param, ctx)


class Triple(click.ParamType):  # type: ignore[type-arg]
    """MIN:OPT:MAX, or one number for all three."""

    name = "MIN:OPT:MAX"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        """Read "1:8:32"; "8" stands for all three."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(":")
        if len(parts) == 1:
            parts *= 3
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            self.fail(f"got {value!r}, expected MIN:OPT:MAX such as 1:8:32, or one number")
        low, usual, high = (int(part) for part in parts)
        if not 1 <= low <= usual <= high:
            self.fail(f"got {value!r}, expected 1 <= MIN <= OPT <= MAX")
        return low, usual, high


class Count(click.ParamType):  # type: ignore[type-arg]
    """A number with an optional k or M behind it."""

    name = "COUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read "5M" as 5,000,000."""
        scale = {"k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6}.get(str(value)[-1:], 1.0)
        try:
            return round(float(str(value).rstrip("kKmM")) * scale)
        except ValueError:
            self.fail(f"got {value!r}, expected a number such as 5M or 800k")


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command has."""

    def set_up(ctx: click.Context, _: click.Parameter, verbose: bool) -> bool:
        ctx.find_root().ensure_object(dict)["verbose"] = verbose
        level = logging.INFO if verbose else logging.WARNING
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("cofi_deploy").setLevel(level)
        return verbose

    option = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=set_up,
        help="Say what is being done; on an error, print the traceback.",
    )
    return option(function)


def check_places(models: tuple[Path, ...]) -> None:
    """Answer at once where a model is missing: the frameworks take seconds to import."""
    from cofi_deploy.api.places import find_model

    for model in models or (None,):
        find_model(model)


def measuring_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that times models: where, on how many threads, how long."""
    options = (
        click.option(
            "--runtime",
            "runtimes",
            multiple=True,
            help="Where to measure; repeatable. One of torch, onnxruntime-cpu (ort), "
            "onnxruntime-cuda, openvino, tensorrt and tensorrt-rtx (trt), triton; or all. "
            "[default: torch, onnxruntime-cpu, openvino]",
        ),
        click.option("--threads", type=int, help="Of one inference.  [default: physical cores]"),
        click.option(
            "--repeats",
            "min_repeats",
            type=click.IntRange(2),
            default=30,
            show_default=True,
            help="Rounds at the least, for each operating point.",
        ),
        click.option(
            "--max-seconds",
            type=float,
            default=10.0,
            show_default=True,
            help="Of timing, for each operating point.",
        ),
        click.option(
            "--saturate",
            is_flag=True,
            help="Also measure the throughput of as many concurrent clients as help.",
        ),
    )
    for option in reversed(options):  # the last one applied is the first one in the help
        function = option(function)
    return function


def tuning_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a search for the fastest artifact."""
    options = (
        click.option(
            "--tune",
            is_flag=True,
            help="Try precisions, graphs, threads and session options, and keep the fastest that "
            "is right; the machine must be idle.",
        ),
        click.option(
            "--for",
            "target",
            metavar="RUNTIME@BATCHxLENGTH",
            help="Where --tune measures: onnxruntime-cpu@1x128, openvino@32x128.",
        ),
        click.option(
            "--max-drop",
            type=float,
            help="Points of the metric that --tune may lose on held-out training text.  "
            "[default: 0.5 and chance]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def setting_overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that are settings, by the settings' names."""
    _check_budget_flags(flags)
    overrides: dict[str, Any] = settings_of(flags["settings"])
    for name in ("max_length", "precision", "seed"):
        if flags[name] is not None:
            overrides[name] = flags[name]
    if flags["align"] is not None:
        overrides["align"] = "auto" if flags["align"] == "auto" else int(flags["align"])
    if flags["sparsity"] is not None:
        overrides["sparsities"] = [flags["sparsity"]]
    if flags["sparsities"] is not None:
        overrides["sparsities"] = _numbers("--sparsities", flags["sparsities"], "0.6,0.8,0.9,0.95")
    if flags["speedups"] is not None:
        overrides["speedups"] = _numbers("--speedup", flags["speedups"], "10 or 4,10")
        overrides["speedup_for"] = flags["target"]
    return overrides


def _check_budget_flags(flags: dict[str, Any]) -> None:
    """One budget, and `--for` with a speedup alone."""
    names = {
        "--sparsity": "sparsity",
        "--sparsities": "sparsities",
        "--speedup": "speedups",
        "--params": "parameters",
    }
    given = [flag for flag, name in names.items() if flags[name] is not None]
    if len(given) > 1:
        raise click.UsageError(
            f"got {' and '.join(given)}; give one budget: --sparsity, --sparsities, --speedup or "
            "--params"
        )
    target, speedup = flags["target"], flags["speedups"]
    if speedup is not None and target is None:
        raise click.UsageError(
            f"--speedup {speedup} needs --for RUNTIME@BATCHxLENGTH, such as onnxruntime-cpu@1x128"
        )
    if target is not None and speedup is None:
        raise click.UsageError(f"--for {target} says where --speedup is measured; give both")


def _numbers(flag: str, text: str, such_as: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.UsageError(f"{flag} is {text!r}, expected numbers such as {such_as}") from error


def settings_of(texts: Iterable[str]) -> dict[str, Any]:
    """What --set KEY=VALUE was given, by key."""
    return dict(_setting(text) for text in texts)


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value read as TOML, or as a plain string where it is none."""
    key, value = name_and_value(text, "--set")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def name_and_value(text: str, flag: str) -> tuple[str, str]:
    """Split NAME=VALUE."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.UsageError(f"{flag} is {text!r}, expected NAME=VALUE")
    return key.strip(), value.strip()


def verify_targets_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags over the [verify] table of the TOML file."""
    targets: dict[str, Any] = {}
    if flags["config"] is not None:
        from cofi_deploy.config import verify_targets

        targets |= verify_targets(flags["config"])
    for name in ("max_drop", "min_speedup"):
        if flags[name] is not None:
            targets[name] = flags[name]
    return targets


def print_json(document: dict[str, Any]) -> None:
    """Print what programs read."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
