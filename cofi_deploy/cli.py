"""The command line: parse, call one function of `api`, print; no logic of its own.

Frameworks are imported inside the commands, so that `--help` answers at once. People read
standard error, programs read the JSON on standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cofi_deploy import __version__
from cofi_deploy.artifacts import read_toml
from cofi_deploy.cli_compare import compare
from cofi_deploy.cli_engine import engine_export_options
from cofi_deploy.cli_options import (
    Choice,
    Count,
    Group,
    Triple,
    common_options,
    is_first_process,
    measuring_options,
    name_and_value,
    print_json,
    setting_overrides,
    settings_of,
    tuning_options,
    verify_targets_of,
)
from cofi_deploy.cli_profile import profile
from cofi_deploy.cli_triton import rollback, serve, triton_export_options
from cofi_deploy.hub import DEFAULT_MODEL, check_model_reachable
from cofi_deploy.task_names import check_task_arguments

_MODEL = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)
_NEWEST = "newest"
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Group, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="cofi-deploy")
def main() -> None:
    """Make a BERT-like encoder about ten times faster, and prove it where it is served.

    \b
    cofi-deploy demo                        the whole path in minutes, nothing to download
    cofi-deploy train --task sst2           teacher, pruning, cut, fine-tuning -> runs/...
    cofi-deploy export --format onnx        the newest run -> exports/...
    cofi-deploy verify                      accuracy and latency, dense against pruned
    cofi-deploy serve                       a Triton server on the newest Triton export
    """


@main.command()
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


@main.command()
@click.argument("model", required=False, type=_MODEL)
@click.option(
    "--format",
    "format_",
    required=True,
    type=Choice(["onnx", "openvino", "trt", "triton"]),
    help="What to write.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=Choice(["fp32", "fp16", "bf16", "int8"]),
    help="int8: for CPUs; in an engine, of the weights alone.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text, one in each line, that lossy numbers are fitted to and judged on.  "
    "[default: the run's own data]",
)
@click.option(
    "--shrink-embeddings",
    is_flag=True,
    help="Keep half of the vocabulary, and all that this text needs; at int8 also store word "
    "embeddings in 4 bits, if held-out text loses 0.5 points or less.",
)
@click.option(
    "--batch-size",
    type=Triple(),
    help="Profile of an engine; its MAX is the largest batch that Triton forms; with --seq-len, "
    "one number each: the only shape of an OpenVINO graph.  [default: 1:8:32]",
)
@click.option(
    "--seq-len",
    type=Triple(),
    help="Profile of an engine, in tokens; what Triton warms up.  [default: 16:128:384]",
)
@click.option(
    "--align",
    type=Choice(["8", "16", "32"]),
    help="Refuse widths that are no multiples; train --align makes them so.",
)
@click.option("--opset", type=int, help="ONNX operator set, 17 to 23.  [default: 17]")
@tuning_options
@engine_export_options
@triton_export_options
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write.  [default: exports/<name>/<format>]",
)
@common_options
def export(model: Path | None, format_: str, **flags: Any) -> None:
    """Write a deployable artifact of MODEL (a run or model directory; default: the newest run).

    \b
    cofi-deploy export --format onnx
    cofi-deploy export --format onnx --precision int8 --shrink-embeddings
    cofi-deploy export --format onnx --tune --for onnxruntime-cpu@1x128
    cofi-deploy export --format trt --batch-size 1:8:32 --seq-len 16:128:384
    cofi-deploy export --format trt --precision fp16 --buckets 32,64,128,384
    cofi-deploy export runs/sst2-s95-20261123-201500 --format triton --output /srv/models
    cofi-deploy export --format triton --repository /srv/models --name sentiment --set instances=2
    """
    from cofi_deploy.api.places import find_model

    flags["settings"] = settings_of(flags["settings"])
    find_model(model)  # answers at once where there is none; the frameworks come later
    from cofi_deploy.api import exporting

    align = flags.pop("align")
    directory = exporting.export(
        model, format=format_, align=None if align is None else int(align), **flags
    )
    exported = exporting.exported({format_: directory})
    if flags["tune"]:
        from cofi_deploy.tuning_table import print_tuning

        print_tuning(exported[format_]["tuning"])
    print_json(exported)


@main.command()
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
    _check_places(models)
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


@main.command()
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
    _check_places(models)
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


@main.command()
@click.argument("model", required=False, type=_MODEL)
@click.argument("other", required=False, type=_MODEL)
@click.option("--svg", type=_FILE, help="Also draw the kept structure into this file.")
@click.option("--png", type=_FILE, help="The same as pixels; needs cofi-deploy[png].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@common_options
def inspect(
    model: Path | None, other: Path | None, svg: Path | None, png: Path | None, as_json: bool
) -> None:
    """What MODEL keeps: heads, FFN width and parameters of each layer, size by part.

    With OTHER: both side by side. MODEL may be an export, whose bytes are told by part.

    \b
    cofi-deploy inspect
    cofi-deploy inspect runs/mrpc-s90/model --svg structure.svg
    cofi-deploy inspect runs/mrpc-s90/teacher runs/mrpc-s90/model --png structure.png
    cofi-deploy inspect exports/mrpc-s90/onnx
    """
    from cofi_deploy import (
        inspect_export,
        inspect_model,
        inspect_pair,
        structure_png,
        structure_svg,
    )
    from cofi_deploy.api.places import find_model
    from cofi_deploy.artifacts import write_bytes

    given = (model,) if other is None else (model, other)
    inspect_export.check_alone(*given)
    exported = inspect_export.is_export(model)
    if model is not None and exported:
        described = [inspect_export.describe_export(model)]
    else:
        described = [inspect_model.describe(find_model(each).model) for each in given]
    if svg is not None or png is not None:
        picture = structure_svg.structures_svg(inspect_model.archs_of(described))
        if png is not None:
            write_bytes(png, structure_png.png_from_svg(picture))
        if svg is not None:
            write_bytes(svg, picture.encode())
    if as_json:
        print_json(described[0] if other is None else inspect_model.document_of(described))
    elif exported:
        _print_table(inspect_export.render_export(described[0]))
    elif other is None:
        _print_table(inspect_model.render(described[0]))
    else:
        _print_table(inspect_pair.render_pair(*described))


main.add_command(compare)
main.add_command(profile)
main.add_command(rollback)
main.add_command(serve)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@common_options
def doctor(as_json: bool) -> None:
    """Which runtimes and devices are here, what is missing, and how to install it.

    \b
    cofi-deploy doctor
    """
    from cofi_deploy import doctor as examination

    report = examination.examine()
    if as_json:
        print_json(report)
    else:
        _print_table(examination.render(report))


@main.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo",
    show_default=True,
    help="Directory for run, exports and report.",
)
@click.option("--sparsity", type=float, default=0.95, show_default=True)
@common_options
def demo(output: Path, sparsity: float) -> None:
    """The whole path on weights and text that pip packages ship: train, export, verify, report.

    \b
    cofi-deploy demo
    """
    from cofi_deploy import demo as demonstration

    demonstration.run_demo(output, sparsity=sparsity)


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


def _check_places(models: tuple[Path, ...]) -> None:
    """Answer at once where a model is missing: the frameworks take seconds to import."""
    from cofi_deploy.api.places import find_model

    for model in models or (None,):
        find_model(model)


def _named_task(flags: dict[str, Any]) -> dict[str, Any] | None:
    """What the command line says of the task; None: the run knows it."""
    name, data_dir, data = flags["task"], flags["data_dir"], flags["data"]
    if name is None:
        if data_dir is not None or data is not None:
            raise click.UsageError("--data-dir and --data need --task; a run knows its own data")
        return None
    check_task_arguments(name, data_dir=data_dir, data=data, columns=None)
    return {"name": name, "data_dir": None if data_dir is None else str(data_dir), "data": data}


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
