"""What pruning is worth where it is served: MiniLM on MRPC and SST-2, dense against 60 to 95 %.

Takes families that `accuracy.py` has trained, scores every member on the development set in every
CPU runtime, and times all of them in turn with their dense teacher. Writes
results/pruning-<task>.json.

    python benchmarks/accuracy.py train mrpc sst2 --recipe fast --seed 1   first
    python benchmarks/pruning.py [TASK ...]          minutes; the machine must be idle
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from accuracy import SUBJECTS, run_of
from command_help import as_written
from training import POINTS, ROOT, RUNS

from cofi_deploy import api
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.results import result_document

TASKS = ("mrpc", "sst2")


def measure(task: str, recipe: str, seed: int) -> dict[str, Any]:
    """Accuracy of every member in every CPU runtime, and all latencies side by side."""
    run = run_of(task, recipe, seed)
    exports = RUNS / "exports" / run.name
    document = read_json(run / "run.json")
    members = {
        f"{task}-s{100 * entry['target_sparsity']:g}": run / entry["directory"]
        for entry in document["result"]["models"]
    }
    rows, structures = _accuracy(task, members, exports)
    timed = api.bench(
        [run / "teacher", *members.values()],
        points=POINTS,
        min_repeats=15,
        max_seconds=6.0,
        fresh_process=False,
        exports_root=exports,
    )
    labels = [f"{task}-dense", *members]
    order = list(dict.fromkeys(row["model"] for row in timed.rows))
    names = dict(zip(order, labels, strict=True))
    rows += [{**row, "task": task, "model": names[row["model"]]} for row in timed.rows]
    command = ["python", "benchmarks/pruning.py", task, "--recipe", recipe, "--seed", str(seed)]
    results = result_document(
        [{**row, "seed": seed, "wall_s": document["wall_s"]} for row in rows], command=command
    )
    return results | {
        "notes": timed.notes,
        "structures": structures,
        "recipe": document["recipe"],
        "stages": document["stages"],
        "settings": document["settings"],
        "training_precision": document["precision"],
    }


def _accuracy(
    task: str, members: dict[str, Path], exports: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and structures of the dense model, once, and of every member."""
    rows: list[dict[str, Any]] = []
    structures: dict[str, Any] = {}
    for name, member in members.items():
        verified = api.verify(
            [member],
            points=(),
            output=RUNS / "verified" / exports.name / name,
            exports_root=exports,
        ).document
        names = {"dense": f"{task}-dense", "pruned": name}
        scored = [row for row in verified["rows"] if "metric" in row]
        known = {row["model"] for row in rows}
        rows += [
            {**row, "model": names[row["model"]]}
            for row in scored
            if names[row["model"]] not in known
        ]
        structures |= {names[key]: value for key, value in verified["structures"].items()}
    return rows, structures


@click.command(help=as_written(__doc__))
@click.argument("tasks", nargs=-1, type=click.Choice(list(SUBJECTS)))
@click.option("--recipe", default="fast", help="That they were trained with; fast.")
@click.option("--seed", type=int, default=1, help="That they were trained with; 1.")
def main(tasks: tuple[str, ...], recipe: str, seed: int) -> None:
    """Measure TASKS, or those that the README shows."""
    for task in tasks or TASKS:
        write_json(ROOT / "results" / f"pruning-{task}.json", measure(task, recipe, seed))


if __name__ == "__main__":
    main()
