"""`train` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cofi_deploy.artifacts import read_toml
from cofi_deploy.cli_options import (
    Choice,
    Count,
    common_options,
    is_first_process,
    name_and_value,
    setting_overrides,
)
from cofi_deploy.hub import DEFAULT_MODEL, check_model_reachable
from cofi_deploy.task_names import check_task_arguments

_NEWEST = "newest"


@click.command()
@click.option(
    "--task",
    help="cola sst2 mrpc stsb qqp mnli qnli rte squad squad_v2, or "
    "text-classification, text-regression, token-classification, question-answering with --data.",
)
@click.option(
    "--model",
    help="Dense encoder to start from: hub id or directory.  "
    "[default: the --teacher, else bert-base-uncased]",
)
@click.option("--teacher", help="Fine-tuned dense checkpoint, instead of training one.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Local files of a GLUE or SQuAD task, in their official layout.",
)
@click.option(
    "--data",
    help="Your own data: a file or folder (csv, tsv, json, parquet, conll) or a hub id.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=NAME",
    help="Column of --data for text, text_pair, label or id (tokens and tags; question, context "
    "and answers); repeatable.",
)
@click.option("--sparsity", type=float, help="Share of the encoder to prune.  [default: 0.95]")
@click.option("--sparsities", help="Several models from one run: 0.6,0.8,0.9,0.95")
@click.option(
    "--speedup",
    "speedups",
    help="Budget as a measured speedup instead: 10; several models from one run: 4,10",
)
@click.option(
    "--for",
    "target",
    metavar="RUNTIME@BATCHxLENGTH",
    help="Where --speedup is measured: onnxruntime-cpu@1x128, openvino@32x128.",
)
@click.option(
    "--params", "parameters", type=Count(), help="Budget as encoder parameters instead: 5M"
)
@click.option(
    "--recipe", default="balanced", show_default=True, help="paper, balanced, fast or smoke."
)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file of settings."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any single setting, for example student_lr=5e-5; repeatable.",
)
@click.option(
    "--align",
    type=Choice(["8", "16", "32", "auto"]),
    help="Hidden size and FFN widths become multiples, within the same budget.",
)
@click.option("--max-length", type=int, help="Longest sequence in tokens.")
@click.option(
    "--precision",
    type=Choice(["auto", "fp32", "bf16", "fp16"]),
    help="auto: bf16 where the hardware multiplies it.",
)
@click.option("--seed", type=int)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run directory.  [default: runs/<task>-<budget>-<time>]",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_NEWEST,
    metavar="[RUN]",
    help="Continue a run that was interrupted; without RUN the newest one.",
)
@common_options
def train(**flags: Any) -> None:
    """Fine-tune a teacher, prune with distillation, cut, fine-tune the small model.

    \b
    cofi-deploy train --task squad
    cofi-deploy train --task mrpc --model ./MiniLM --data-dir ./glue --sparsity 0.9 --recipe fast
    cofi-deploy train --task text-classification --data ./tickets --sparsities 0.8,0.9,0.95
    cofi-deploy train --task sst2 --speedup 10 --for onnxruntime-cpu@1x128
    cofi-deploy train --resume
    """
    if flags["resume"] is not None:
        _print_run(_resumed(flags))
        return
    # Typing errors are answered before the frameworks are imported, which takes seconds.
    overrides = setting_overrides(flags)
    columns = dict(name_and_value(text, "--column") for text in flags["columns"]) or None
    if flags["task"] is None:
        raise click.UsageError("--task is missing; see cofi-deploy train --help")
    data_dir, data = flags["data_dir"], flags["data"]
    check_task_arguments(flags["task"], data_dir=data_dir, data=data, columns=columns)
    if flags["config"] is not None:
        read_toml(flags["config"])
    if flags["target"] is not None:
        from cofi_deploy.api.speedup_target import speedup_point

        speedup_point(flags["target"])
    check_model_reachable(
        flags["model"] or flags["teacher"] or DEFAULT_MODEL,
        data_is_local=data_dir is not None or (data is not None and Path(data).exists()),
    )
    from cofi_deploy import api

    run = api.train(
        flags["task"],
        model=flags["model"],
        teacher=flags["teacher"],
        data_dir=data_dir,
        data=data,
        columns=columns,
        recipe=flags["recipe"],
        config=flags["config"],
        parameters=flags["parameters"],
        output=flags["output"],
        overrides=overrides,
    )
    _print_run(run)


def _resumed(flags: dict[str, Any]) -> Path:
    """Continue a run; all other flags come from it."""
    from cofi_deploy.api.places import run_to_resume

    run = run_to_resume(None if flags["resume"] == _NEWEST else flags["resume"])
    from cofi_deploy import api

    return api.train(resume=run)


def _print_run(run: Path) -> None:
    from cofi_deploy import summary

    if is_first_process():
        summary.print_run(run)
