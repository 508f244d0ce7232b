"""Options of `export --format trt`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Lengths(click.ParamType):  # type: ignore[type-arg]
    """Numbers of tokens, with commas between them."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read "32,64,128" in any order; each length counts once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            self.fail(f"got {value!r}, expected lengths in tokens such as 32,64,128,384")
        return tuple(sorted({int(part) for part in parts}))


def engine_export_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `export --format trt`."""
    options = (
        click.option(
            "--flavour",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
            help="Of an engine; auto: tensorrt where it and a GPU are here.",
        ),
        click.option(
            "--buckets",
            type=Lengths(),
            help="Engine: a profile for each of these longest inputs, in place of one --seq-len; "
            "every input runs in the smallest that takes it.",
        ),
        click.option(
            "--builder-level",
            type=click.IntRange(0, 5),
            help="Engine: how long to search for faster kernels, 0 to 5.  [default: 3]",
        ),
        click.option(
            "--compute-capability",
            "compute_capabilities",
            multiple=True,
            metavar="X.Y",
            help="Engine of TensorRT-RTX: a GPU to compile for, for example 8.9; repeatable.  "
            "[default: all that it can]",
        ),
        click.option(
            "--hardware",
            default="same",
            show_default=True,
            type=click.Choice(["same", "ampere+", "same-capability"]),
            help="Engine of TensorRT: which GPUs beside this one it runs on.",
        ),
        click.option(
            "--version-compatible",
            is_flag=True,
            help="Engine of TensorRT: runs on newer versions of it, too.",
        ),
        click.option(
            "--refit", is_flag=True, help="Engine: its weights can be replaced by --weights-into."
        ),
        click.option(
            "--strip", is_flag=True, help="Engine: leave the weights out, for --weights-into."
        ),
        click.option(
            "--weights-into",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="ENGINE",
            help="Put MODEL's weights into this engine of the same structure, made with --refit or "
            "--strip, instead of building one.",
        ),
    )
    for option in reversed(options):  # the last one applied is the first one in the help
        function = option(function)
    return function
