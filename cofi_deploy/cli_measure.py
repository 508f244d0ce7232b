"""`verify` and `bench` on the command line: what is measured, for whom."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cofi_deploy.cli_options import (
    check_places,
    common_options,
    measuring_options,
    print_json,
    verify_targets_of,
)
from cofi_deploy.task_names import check_task_arguments

_MODEL = click.Path(path_type=Path)


@click.command()
@click.argument("models", nargs=-1, type=_MODEL)
@measuring_options
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="BATCHxLENGTH",
    help="Operating point; LENGTH may be 'task'.  [default: 1x128, 32x128, 1xtask]",
)
@click.option("--max-drop", type=float, help="Largest accepted loss of the metric, in points.")
@click.option("--min-speedup", type=float, help="Smallest accepted speedup, everywhere.")
@click.option(
    "--require",
    multiple=True,
    help="Runtime that must be here, else exit 3 before anything is exported; repeatable.",
)
@click.option(
    "--triton-url",
    metavar="HOST:PORT",
    help="gRPC service of a running server, for --runtime triton.  [default: starts its own]",
)
@click.option("--limit", type=int, help="Score only so many examples.")
@click.option("--task", help="Task, for two models that lie in no run.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Local files of --task.")
@click.option("--data", help="Your own data, for a --task that is not of GLUE or SQuAD.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file whose [verify] table holds max_drop and min_speedup.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Of verify.json and report.html.  [default: the run directory]",
)
@common_options
def verify(models: tuple[Path, ...], **flags: Any) -> None:
    """Accuracy and latency of dense and pruned in every runtime, interleaved; exit 1 on a miss.

    MODELS: nothing for the newest run, one run, one model of a run, or two: DENSE PRUNED. Of a
    run, all members are measured side by side; --max-drop and --min-speedup judge its main one,
    `model/` (the sparsest). Name a member to judge and measure that one alone.

    \b
    cofi-deploy verify
    cofi-deploy verify --max-drop 1.5 --min-speedup 8
    cofi-deploy verify runs/mrpc-s95/models/0.6 --max-drop 0.5
    cofi-deploy verify runs/mrpc-s90 --runtime ort --runtime triton --point 8x64
    """
    check_places(models)
    named = _named_task(flags)
    targets = verify_targets_of(flags)
    from cofi_deploy import summary
    from cofi_deploy.api import verifying
    from cofi_deploy.api.run_task import TaskArguments

    task = None if named is None else TaskArguments(**named)
    result = verifying.verify(
        models,
        runtimes=flags["runtimes"] or verifying.DEFAULT_RUNTIMES,
        points=flags["points"] or verifying.DEFAULT_POINTS,
        task=task,
        require=flags["require"],
        triton_url=flags["triton_url"],
        threads=flags["threads"],
        limit=flags["limit"],
        min_repeats=flags["min_repeats"],
        max_seconds=flags["max_seconds"],
        saturate=flags["saturate"],
        output=flags["output"],
        **targets,
    )
    summary.print_verification(result)
    if not result.ok:
        sys.exit(1)


@click.command()
@click.argument("models", nargs=-1, type=_MODEL)
@measuring_options
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="BATCHxLENGTH",
    help="Operating point; LENGTH may be 'task' with --task.  [default: 1x128, 32x128]",
)
@click.option("--task", help="Take texts and lengths from this task; not needed for fixed lengths.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Local files of --task.")
@click.option("--data", help="Your own data, for --task text-classification or text-regression.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file.")
@common_options
def bench(models: tuple[Path, ...], output: Path | None, **flags: Any) -> None:
    """Latency and throughput of any number of MODELS; the first is the baseline.

    \b
    cofi-deploy bench runs/a/teacher runs/a runs/b --point 1x128 --point 32x128
    cofi-deploy bench runs/a/teacher runs/a --point 1xtask --saturate --output bench.json
    """
    check_places(models)
    named = _named_task(flags)
    from cofi_deploy import summary
    from cofi_deploy.api import verifying
    from cofi_deploy.api.run_task import TaskArguments
    from cofi_deploy.artifacts import write_json
    from cofi_deploy.results import result_document

    result = verifying.bench(
        models,
        runtimes=flags["runtimes"] or verifying.DEFAULT_RUNTIMES,
        points=flags["points"] or ("1x128", "32x128"),
        task=None if named is None else TaskArguments(**named),
        threads=flags["threads"],
        min_repeats=flags["min_repeats"],
        max_seconds=flags["max_seconds"],
        saturate=flags["saturate"],
    )
    summary.print_latency(result)
    document = result_document(result.rows) | result.document_keys()
    if output is None:
        print_json(document)
    else:
        write_json(output, document)


def _named_task(flags: dict[str, Any]) -> dict[str, Any] | None:
    """What the command line says of the task; None: the run knows it."""
    name, data_dir, data = flags["task"], flags["data_dir"], flags["data"]
    if name is None:
        if data_dir is not None or data is not None:
            raise click.UsageError("--data-dir and --data need --task; a run knows its own data")
        return None
    check_task_arguments(name, data_dir=data_dir, data=data, columns=None)
    return {"name": name, "data_dir": None if data_dir is None else str(data_dir), "data": data}
