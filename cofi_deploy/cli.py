"""The command line: parse, call one function of `api`, print; no logic of its own.

Frameworks are imported inside the commands, so that `--help` answers at once. People read
standard error, programs read the JSON on standard output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cofi_deploy import __version__
from cofi_deploy.cli_compare import compare
from cofi_deploy.cli_engine import engine_export_options
from cofi_deploy.cli_measure import bench, verify
from cofi_deploy.cli_options import (
    Choice,
    Group,
    Triple,
    common_options,
    print_json,
    settings_of,
    tuning_options,
)
from cofi_deploy.cli_profile import profile
from cofi_deploy.cli_train import train
from cofi_deploy.cli_triton import rollback, serve, triton_export_options

_MODEL = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)
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
    help="Leave out the rarest pieces of the vocabulary that this text does not need; at int8 also "
    "store frequent words in 6 bits and others in 2, if 0.5 points or less are lost on it.",
)
@click.option(
    "--batch-size",
    type=Triple(),
    help="Profile of an engine; its MAX is the largest batch that Triton forms; with --seq-len, "
    "one number each: the only shape of an OpenVINO graph; 1: an ONNX graph that computes one text "
    "at a time.  [default: 1:8:32]",
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
    from cofi_deploy.atomic import write_bytes

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


main.add_command(bench)
main.add_command(compare)
main.add_command(profile)
main.add_command(rollback)
main.add_command(serve)
main.add_command(train)
main.add_command(verify)


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


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
