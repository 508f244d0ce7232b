"""What a run ends with: teacher and models on the validation split, scored once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import read_json
from cofi_deploy.loading import load
from cofi_deploy.targets import Target
from cofi_deploy.tasks import EncodedSplit, Task
from cofi_deploy.train.evaluate import evaluate
from cofi_deploy.train.loop import interruption
from cofi_deploy.train.precision import Numerics


def final_report(
    run: Path,
    models: Mapping[Target, Path],
    task: Task,
    encoded: EncodedSplit,
    numerics: Numerics,
) -> dict[str, Any]:
    """``result`` of run.json: metrics, sparsity and sizes, and latencies that were measured before.

    Args:
        run: The run directory, with the teacher in it.
        models: Directory of each model, below ``run``.
        task: What they are scored on.
        encoded: Its validation split.
        numerics: Where and in which numbers they are run.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came.
    """
    latencies = read_json(run / "run.json").get("latency", {})
    return {
        "metric_name": task.metric_name,
        "examples": len(encoded),
        "teacher": _scores(run / "teacher", task, encoded, numerics),
        "models": [
            {
                **target.keys,
                **({"latency": latencies[target.name]} if target.name in latencies else {}),
                "directory": directory.relative_to(run).as_posix(),
                **_scores(directory, task, encoded, numerics),
            }
            for target, directory in models.items()
        ],
    }


def _scores(
    directory: Path, task: Task, encoded: EncodedSplit, numerics: Numerics
) -> dict[str, Any]:
    interruption.stop_if_asked()
    model = numerics.place(load(directory))
    return {
        **evaluate(model, task, encoded),
        "realized_sparsity": model.arch.sparsity,
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": model.arch.prunable_parameters,
    }
