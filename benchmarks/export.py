"""What is each artifact worth? Size, accuracy and latency of all formats and precisions.

Takes finished runs: exports the teacher and the members at 90 and 95 % in every format and
precision, scores them on the development set, and times them in turn with PyTorch (eager, fp32)
running the same model. Then the same latencies for BERT-base with random weights, in structures of
the paper. Beside each latency stands its floor, operations over what square products reach here in
the same precision, and which parts of the model take the time. Writes results/export.json.

    python benchmarks/export.py RUN [RUN ...]          the machine must be idle
    python benchmarks/export.py RUN --seconds 5 --no-base --no-tune --output mine.json
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paper_archs import BASE_MODEL, structures, write_model

from cofi_deploy import api
from cofi_deploy.api.places import find_model
from cofi_deploy.api.run_task import task_of_run
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import CofiDeployError
from cofi_deploy.export.numerics import PRECISIONS
from cofi_deploy.exports import read_tuning
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.results import result_document
from cofi_deploy.serve.accuracy import compare, score_split
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.intervals import percentiles, ratio_of_medians
from cofi_deploy.serve.latency import OperatingPoint, Samples, Schedule, time_interleaved
from cofi_deploy.serve.profile import profile
from cofi_deploy.serve.runner import open_runner
from cofi_deploy.serve.subject import Subject

RESULTS = Path(__file__).resolve().parent / "results"
RUNTIMES = {"onnx": "onnxruntime-cpu", "openvino": "openvino"}
SHAPES = ((1, 128), (32, 128))
SPARSITIES = (0.9, 0.95)
BASE_STRUCTURES = ("mean-s95", "sst2-s95")
PYTORCH = "torch fp32"
SETTLE_MS = 10.0  # longer than PyTorch's threads spin after their work

Row = dict[str, Any]


def variants(
    shapes: Sequence[tuple[int, int]], *, with_text: bool, tune: bool
) -> dict[str, dict[str, Any]]:
    """Arguments of `api.export` by the name of the variant.

    Args:
        shapes: (batch, length) that some artifacts are made for.
        with_text: Whether there is text to cut a vocabulary to and to judge a search by.
        tune: Whether to search; without text what a search would find in OpenVINO is one shape.
    """
    found: dict[str, dict[str, Any]] = {}
    for format_, runtime in RUNTIMES.items():
        for precision in PRECISIONS:
            found[f"{format_} {precision}"] = {"format": format_, "precision": precision}
        if with_text:
            small = {"format": format_, "precision": "int8", "shrink_embeddings": True}
            found[f"{format_} int8, small vocabulary"] = small
        for batch, length in shapes:
            point = f"{batch}x{length}"
            one_shape = {
                "format": format_,
                "batch_size": (batch,) * 3,
                "seq_len": (length,) * 3,
            }
            if with_text and tune:
                search = {"tune": True, "target": f"{runtime}@{point}"}
                found[f"{format_} tuned for {point}"] = {**one_shape, **search}
            if format_ == "onnx" and batch == 1:
                one_text = {"format": format_, "batch_size": one_shape["batch_size"]}
                found[f"onnx fp32 for {point}"] = one_text
            if format_ == "openvino" and not with_text:
                for precision in PRECISIONS:
                    name = f"openvino {precision} for {point}"
                    found[name] = {**one_shape, "precision": precision}
    return found


def export_all(
    model: Path, folder: Path, wanted: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Directories of the variants that can be made and run here, and why the others cannot."""
    made: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for name, arguments in wanted.items():
        try:
            directory = api.export(model, output=folder / name.replace(" ", "-"), **arguments)
            with open_runner(directory, _runtime(name)):
                made[name] = directory
        except CofiDeployError as error:
            refused[name] = str(error)
    return made, refused


def score(run: Path, model: Path, made: Mapping[str, Path]) -> dict[str, Row]:
    """Metric on the whole development set, and agreement with PyTorch, by variant."""
    task = task_of_run(run).load()
    artifacts = {PYTORCH: model, **made}
    found: dict[str, Row] = {}
    reference = None
    for name, directory in artifacts.items():
        encoded = task.encode("validation", load_tokenizer(directory))
        with open_runner(directory, _runtime(name)) as runner:
            if np.diff(encoded.offsets).max() > runner.limits.max_positions:
                continue  # made for shorter texts
            scored = score_split(runner, task, encoded)
        reference = reference or scored
        parity = compare(reference, scored)
        found[name] = {
            "metric_name": task.metric_name,
            "metric": scored.metrics[task.metric_name],
            "examples": len(encoded.examples),
            "agreement": parity.agreement,
            "max_abs_logit_diff": parity.max_abs_logit_diff,
        }
    return found


def latencies(
    model: Path, made: Mapping[str, Path], shape: tuple[int, int], schedule: Schedule
) -> dict[str, Row]:
    """All variants and PyTorch in turn; ``times_pytorch`` is its median over the variant's.

    Each runs untimed before each timed run, so that no threads of another one still spin: with one
    untimed run alone between them, 2.95 instead of 2.25 ms were seen after PyTorch.
    """
    point = f"{shape[0]}x{shape[1]}"
    fitting = {name: directory for name, directory in made.items() if _fits(name, point)}
    artifacts = {PYTORCH: model, **fitting}
    with contextlib.ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(directory, _runtime(name)))
            for name, directory in artifacts.items()
        }
        calls = {
            name: runner.bind(random_inputs(runner.limits, *shape, seed=0))
            for name, runner in runners.items()
        }
        samples = time_interleaved(calls, schedule)
    threads = runners[PYTORCH].threads
    found: dict[str, Row] = {}
    for name, runner in runners.items():
        found[name] = {
            "runtime": runner.runtime,
            "precision": runner.precision,
            "device": runner.device,
            "threads": runner.threads,
            "batch_size": shape[0],
            "seq_len": shape[1],
            **_timed(samples, name, schedule, threads),
        }
        if name != PYTORCH:
            found[name] |= floor_of(artifacts[name], shape, runner.threads)
    return found


def _timed(samples: Samples, name: str, schedule: Schedule, threads: int) -> Row:
    """Percentiles of one variant, PyTorch's median over its own, and who else was busy."""
    busy = None if samples.load is None else samples.load.too_busy(threads)
    ratio = ratio_of_medians(samples, PYTORCH, name, seed=schedule.seed)
    return {
        **percentiles(samples, name, seed=schedule.seed),
        "times_pytorch": ratio.value,
        "times_pytorch_low": ratio.low,
        "times_pytorch_high": ratio.high,
        **({} if busy is None else {"noise": busy}),
    }


def floor_of(directory: Path, shape: tuple[int, int], threads: int) -> Row:
    """``floor_ms`` in this precision, and the milliseconds of each part that fill the rest."""
    runtime = RUNTIMES[read_json(directory / "export.json")["format"]]
    point = OperatingPoint(batch_size=shape[0], seq_len=shape[1], runtime=runtime, threads=threads)
    got = profile(directory, point, max_runs=20, max_seconds=2.0)
    flops = sum(part.flops for part in got.parts)
    parts: dict[str, float] = {}
    for part in got.parts:
        parts[part.part] = parts.get(part.part, 0.0) + part.ms
    peak = got.peak_gflops
    return {
        "flops": flops,
        "peak_gflops": peak,
        "floor_ms": flops / peak / 1e6 if peak else None,
        "parts_ms": {name: float(np.round(ms, 4)) for name, ms in parts.items()},
    }


def rows_of_model(  # noqa: PLR0913 - what a model is, and how it is measured
    place: Mapping[str, Any],
    model: Path,
    folder: Path,
    schedule: Schedule,
    *,
    run: Path | None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tune: bool = True,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of one model, and why variants are missing; without ``tune``, no searched ones."""
    wanted = variants(shapes, with_text=run is not None, tune=tune)
    made, refused = export_all(model, folder, wanted)
    scores = {} if run is None else score(run, model, made)
    rows = []
    for shape in shapes:
        for name, row in latencies(model, made, shape, schedule).items():
            directory = made.get(name, model)
            sizes = Subject(label="model", artifacts={_runtime(name): directory})
            rows.append(
                {
                    **place,
                    "variant": name,
                    "size_bytes": sizes.size_bytes(_runtime(name)),
                    **scores.get(name, {}),
                    **row,
                    **_kept(directory),
                }
            )
    return rows, refused


def measure(
    runs: Sequence[Path], schedule: Schedule, *, with_base: bool = True, tune: bool = True
) -> Iterator[dict[str, Any]]:
    """The document of results/export.json, after each model: an hour's work may be cut short."""
    rows: list[Row] = []
    refused: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for label, place, model, run in _models(runs, root, with_base=with_base):
            found, why = rows_of_model(
                {"model": label, **place},
                model,
                root / "exports" / label,
                schedule,
                run=run,
                # A search takes minutes with a dense model, whose variants nobody chooses from.
                tune=tune and not label.endswith("-dense"),
            )
            rows += found
            refused[label] = why
            yield result_document(rows, command=_command(sys.argv[1:])) | {"refused": refused}


def _command(arguments: Sequence[str]) -> list[str]:
    """The command without the places of this machine: of a path its last part."""
    return ["python", "benchmarks/export.py", *(Path(each).name for each in arguments)]


def _models(runs: Sequence[Path], root: Path, *, with_base: bool) -> list[tuple[Any, ...]]:
    """(label, keys of its rows, model directory, its run) of everything to measure."""
    found: list[tuple[Any, ...]] = []
    for run in runs:
        document = read_json(run / "run.json")
        task = document["task"]["name"]
        found.append(
            (f"{task}-dense", {"task": task, "realized_sparsity": 0.0}, run / "teacher", run)
        )
        for entry in document["result"]["models"]:
            if entry["target_sparsity"] in SPARSITIES:
                keys = {key: entry[key] for key in ("target_sparsity", "realized_sparsity")}
                label = f"{task}-s{100 * entry['target_sparsity']:g}"
                model = find_model(run / entry["directory"]).model
                found.append((label, {"task": task, **keys}, model, run))
    archs = structures() if with_base else {}
    for name in BASE_STRUCTURES if with_base else ():
        model = write_model(root / "base" / name, archs[name])
        found.append((f"base-{name}", {"base_model": BASE_MODEL}, model, None))
    return found


def _runtime(variant: str) -> str:
    return "torch" if variant == PYTORCH else RUNTIMES[variant.split(" ", maxsplit=1)[0]]


def _fits(variant: str, point: str) -> bool:
    """What is made for one shape is timed there alone."""
    return " for " not in variant or variant.endswith(point)


def _kept(directory: Path) -> dict[str, str]:
    if not (directory / "export.json").is_file():
        return {}
    tuning = read_tuning(directory)
    return {} if tuning is None else {"kept": tuning["kept"]}


def main() -> None:
    """Read the flags, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="finished run directories")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing at each point")
    parser.add_argument("--no-base", action="store_true", help="leave BERT-base out")
    parser.add_argument("--no-tune", action="store_true", help="leave out what is searched")
    parser.add_argument("--output", type=Path, default=RESULTS / "export.json")
    arguments = parser.parse_args()
    schedule = Schedule(min_repeats=10, max_seconds=arguments.seconds, settle_ms=SETTLE_MS)
    with_base, tune = not arguments.no_base, not arguments.no_tune
    for document in measure(arguments.runs, schedule, with_base=with_base, tune=tune):
        write_json(arguments.output, document)


if __name__ == "__main__":
    main()
