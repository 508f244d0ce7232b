"""Are widths that are multiples of 8, 16 or 32 worth having? Time first, then accuracy as well.

`widths`: random weights. Encoders of MiniLM's size with the same number of FFN parameters, once in
widths as pruning leaves them and once in multiples, timed side by side in every CPU runtime. Says
what `--align auto` is. Writes results/alignment-widths.json.

`train` and `measure`: one task pruned from one teacher with one seed, so to the same gates, cut
without and with alignment, fine-tuned equally; then scored on the development set and timed side
by side. Writes results/alignment-<task>.json.

    python benchmarks/alignment.py widths             minutes; the machine must be idle
    python benchmarks/alignment.py train              hours; resumes when killed
    python benchmarks/alignment.py measure            minutes; the machine must be idle

Data and weights as in training.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from command_help import as_written
from paper_archs import write_model
from training import DATA, POINTS, RUNS, train_or_resume

from cofi_deploy import api
from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.results import result_document

ROOT = Path(__file__).resolve().parent
SPARSITY = 0.95
SECONDS = float(os.environ.get("COFI_DEPLOY_BENCHMARK_SECONDS", "15"))  # of timing at each point
MINILM = DenseShape(layers=6, hidden=384, heads=12, ffn=1536, head_size=32)

# Hidden size and FFN widths. Of each size the FFN has the same parameters, to 0.4 %.
SIZES: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "small-any": (375, (213,) * 6),
    "small-8": (376, (216, 208) * 3),
    "small-16": (384, (208,) * 6),
    "small-32": (384, (224, 192) * 3),
    "large-any": (381, (633,) * 6),
    "large-8": (384, (632, 624) * 3),
    "large-16": (384, (624, 640, 624) * 2),
    "large-32": (384, (640, 608, 640) * 2),
}


def widths() -> None:
    """Time every size; the first of a group, of any width, is the baseline of its speedups."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    archs = {name: _arch(*sizes) for name, sizes in SIZES.items()}
    for group in ("small", "large"):
        models = [
            write_model(RUNS / "widths" / name, arch)
            for name, arch in archs.items()
            if name.startswith(group)
        ]
        timed = api.bench(
            models,
            points=POINTS,
            min_repeats=8,
            max_seconds=SECONDS,
            fresh_process=False,
            exports_root=RUNS / "exports",
        )
        rows += timed.rows
        notes += timed.notes
    document = result_document(rows, command=["python", "benchmarks/alignment.py", "widths"])
    document |= {
        "notes": list(dict.fromkeys(notes)),
        "structures": {name: arch.to_json() for name, arch in archs.items()},
    }
    write_json(ROOT / "results" / "alignment-widths.json", document)


def train(task: str, multiple: int, teacher: Path | None = None) -> None:
    """Both members, from one teacher: the one given, or that of the first."""
    train_member(task, 1, teacher)
    train_member(task, multiple, teacher or _run(task, 1) / "teacher")


def train_member(task: str, align: int, teacher: Path | None) -> None:
    """One member, or what is left of it."""
    train_or_resume(
        _run(task, align),
        task,
        teacher=teacher,
        data_dir=DATA,
        recipe="fast",
        sparsity=SPARSITY,
        overrides={"align": align},
    )


def measure(task: str, multiple: int) -> None:
    """Accuracy and latency of the teacher and of both members."""
    runs = {"any": _run(task, 1), str(multiple): _run(task, multiple)}
    documents = {name: read_json(run / "run.json") for name, run in runs.items()}
    timed = api.bench(
        [runs["any"] / "teacher", *(run / "model" for run in runs.values())],
        points=POINTS,
        min_repeats=15,
        max_seconds=SECONDS,
        fresh_process=False,
        exports_root=RUNS / "exports",
    )
    labels = [f"{task}-dense", *(f"{task}-align-{name}" for name in runs)]
    names = dict(zip(dict.fromkeys(row["model"] for row in timed.rows), labels, strict=True))
    rows = [{**row, "task": task, "model": names[row["model"]]} for row in timed.rows]
    rows += [_scored(task, name, document) for name, document in documents.items()]
    command = ["python", "benchmarks/alignment.py", "measure", f"--task={task}"]
    command.append(f"--multiple={multiple}")
    results = result_document(rows, command=command)
    structures = {
        name: read_json(run / "model" / "config.json")["arch"] for name, run in runs.items()
    }
    changed = documents[str(multiple)]["alignment"][f"{SPARSITY:g}"]
    results |= {
        "notes": timed.notes,
        "same_gates": changed["without"]["hidden"] == structures["any"]["hidden"]
        and changed["without"]["ffn"] == [layer["ffn"] for layer in structures["any"]["layers"]],
        "alignment": changed,
        "structures": {f"{task}-align-{name}": arch for name, arch in structures.items()},
        "settings": {name: document["settings"] for name, document in documents.items()},
    }
    write_json(ROOT / "results" / f"alignment-{task}.json", results)


def _scored(task: str, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    result = document["result"]
    model = result["models"][0]
    return {
        "task": task,
        "model": f"{task}-align-{name}",
        "split": "validation",
        "examples": result["examples"],
        "seed": document["settings"]["seed"],
        "recipe": document["recipe"],
        "target_sparsity": SPARSITY,
        "realized_sparsity": model["realized_sparsity"],
        "parameters": model["parameters"],
        "metric_name": result["metric_name"],
        "metric": model["metric"],
        "metric_dense": result["teacher"]["metric"],
        "wall_s": document["wall_s"],
    }


def _run(task: str, align: int) -> Path:
    return RUNS / f"{task}-align-{align}"


def _arch(hidden: int, ffn: tuple[int, ...]) -> Arch:
    return Arch(
        family="bert",
        vocab_size=1000,
        max_positions=512,
        type_vocab_size=2,
        hidden=hidden,
        head_size=MINILM.head_size,
        layers=tuple(LayerArch(heads=2, ffn=width) for width in ffn),
        dense=MINILM,
        pooler=MINILM.hidden,
    )


_TASK = click.option("--task", default="mrpc", show_default=True)
_MULTIPLE = click.option("--multiple", type=int, default=16, show_default=True)


@click.group(help=as_written(__doc__))
def main() -> None:
    """`widths`, `train` or `measure`."""


@main.command("widths")
def time_widths() -> None:
    """Time every size of `SIZES`."""
    widths()


@main.command("train")
@_TASK
@_MULTIPLE
@click.option("--teacher", type=Path, help="Fine-tuned dense model; trained if not given.")
def train_both(task: str, multiple: int, teacher: Path | None) -> None:
    """Train without and with alignment, or go on with it."""
    train(task, multiple, teacher)


@main.command("measure")
@_TASK
@_MULTIPLE
def measure_both(task: str, multiple: int) -> None:
    """Score and time the teacher and both members."""
    measure(task, multiple)


if __name__ == "__main__":
    main()
