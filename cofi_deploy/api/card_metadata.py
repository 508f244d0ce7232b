"""Front matter of a model card: what a hub reads of it, through huggingface_hub's own classes.

In: run.json and one model of it. Out: `ModelCardData`, of which every value is known from the
run's files; what they do not say is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils._validators import validate_repo_id

from cofi_deploy.api.card_costs import Costs
from cofi_deploy.kinds import TaskKind
from cofi_deploy.targets import Target
from cofi_deploy.task_names import GLUE_NAMES, SQUAD_NAMES

LIBRARY = "cofi-deploy"
OWN_DATA = "own data"

# Hubs have no tag for scores of texts; transformers answers them by its text-classification, too.
_PIPELINES: Mapping[TaskKind, str] = {
    "text-classification": "text-classification",
    "text-regression": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
# Where a hub knows a metric by another name. The mean of Pearson and Spearman it does not know.
_METRIC_TYPES = {"f1_macro": "f1", "pearson": "pearsonr"}
_NOT_ON_HUBS = frozenset({"combined_score"})
# What an entry of run.json says beside the task's metrics; `metric` repeats the primary one.
_NO_METRICS = frozenset(
    {
        "metric",
        "target_sparsity",
        "target_speedup",
        "realized_sparsity",
        "parameters",
        "encoder_parameters",
    }
)
_SQUAD = {
    "squad": ("SQuAD 1.1", "rajpurkar/squad", "plain_text"),
    "squad_v2": ("SQuAD 2.0", "rajpurkar/squad_v2", "squad_v2"),
}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set as a hub names it; ``hub_id`` is None for files of one's own."""

    name: str
    hub_id: str | None
    config: str | None = None
    split: str = "validation"
    language: str | None = None


def card_data(
    run: Mapping[str, Any], entry: Mapping[str, Any], kind: TaskKind, costs: Costs
) -> ModelCardData:
    """Everything between the dashes.

    Args:
        run: Content of run.json, results included.
        entry: The model's entry of ``run["result"]["models"]``.
        kind: Of the task.
        costs: What the run took.
    """
    data, metrics = data_set(run["task"]), metrics_of(entry)
    results = [
        EvalResult(
            task_type=_PIPELINES[kind],
            dataset_type=data.hub_id or OWN_DATA.replace(" ", "-"),
            dataset_name=data.name,
            dataset_config=data.config,
            dataset_split=data.split,
            metric_type=_METRIC_TYPES.get(name, name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]
    known = [_METRIC_TYPES.get(name, name) for name in metrics if name not in _NOT_ON_HUBS]
    return ModelCardData(
        language=data.language,
        license=base_license(run["model"]) or "other",
        library_name=LIBRARY,
        pipeline_tag=_PIPELINES[kind],
        base_model=hub_id(run["model"]),
        datasets=None if data.hub_id is None else [data.hub_id],
        metrics=list(dict.fromkeys(known)),
        tags=["structured-pruning", "cofi", run["task"]["name"]],
        model_name=model_name(run["task"]["name"], entry),
        eval_results=results,
        co2_eq_emissions=costs.to_hub(),
    )


def model_name(task: str, entry: Mapping[str, Any]) -> str:
    """What the results stand under: task and target, `sst2-s95`."""
    return f"{task}-{Target.of(entry).label}"


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """The task's metrics in an entry of run.json, by our names."""
    return {
        name: value
        for name, value in entry.items()
        if isinstance(value, float) and name not in _NO_METRICS
    }


def data_set(task: Mapping[str, Any]) -> DataSet:
    """What a run was trained on, from ``task`` of its run.json."""
    name = task["name"]
    if name in GLUE_NAMES:
        split = "validation_matched" if name == "mnli" else "validation"
        title = f"GLUE {name.upper()}"
        return DataSet(name=title, hub_id="nyu-mll/glue", config=name, split=split, language="en")
    if name in SQUAD_NAMES:
        title, hub, config = _SQUAD[name]
        return DataSet(name=title, hub_id=hub, config=config, language="en")
    data = task.get("data")
    found = None if data is None else hub_id(data)
    return DataSet(name=found or OWN_DATA, hub_id=found)


def hub_id(source: str) -> str | None:
    """The hub id that ``source`` is, or is a cached snapshot of; None for one's own directory."""
    for part in Path(source).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    if Path(source).is_absolute() or Path(source).exists():
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def base_license(source: str) -> str | None:
    """The license in the base model's own card, where that card is on this machine."""
    card: object = Path(source) / "README.md"
    if not Path(source).is_dir():
        try:
            card = huggingface_hub.try_to_load_from_cache(source, "README.md")
        except HFValidationError:
            return None
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        found = (metadata_load(Path(card)) or {}).get("license")
    except (OSError, ValueError):  # no UTF-8, or no mapping: a card that says nothing
        return None
    return found if isinstance(found, str) else None
