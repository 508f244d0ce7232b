"""The command line of `profile`: parse, call one function of `api`, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cofi_deploy.cli_options import check_places, common_options, print_json


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="Where to profile; repeatable.  [default: onnxruntime-cpu, openvino]",
)
@click.option(
    "--point", default="1x128", show_default=True, metavar="BATCHxLENGTH", help="Operating point."
)
@click.option("--threads", type=int, help="Of one inference.  [default: physical cores]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file.")
@click.option(
    "--svg", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it into this file."
)
@common_options
def profile(models: tuple[Path, ...], output: Path | None, svg: Path | None, **flags: Any) -> None:
    """Where the time of one inference goes, layer by layer, and why the speedup is what it is.

    MODELS: nothing for the newest run and its teacher, else any number; the first is what the
    others are compared with.

    \b
    cofi-deploy profile
    cofi-deploy profile runs/a/teacher runs/a --runtime openvino --point 8x64 --svg profile.svg
    """
    check_places(models)
    from rich.console import Console

    from cofi_deploy.api import profiling
    from cofi_deploy.artifacts import write_json
    from cofi_deploy.atomic import write_bytes
    from cofi_deploy.serve.profile_table import render

    result = profiling.profile(
        models,
        runtimes=flags["runtimes"] or profiling.DEFAULT_RUNTIMES,
        point=flags["point"],
        threads=flags["threads"],
    )
    console = Console(stderr=True, markup=False)
    console.print(render(result.profiles, result.explanations), highlight=False)
    for skipped in result.skipped:
        console.print(f"skipped {skipped['runtime']}: {skipped['reason']}", highlight=False)
    if svg is not None:
        write_bytes(svg, result.chart().encode())
    if output is None:
        print_json(result.document())
    else:
        write_json(output, result.document())
