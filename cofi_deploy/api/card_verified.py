"""What a verify.json says about one model of a run, for its card.

In: the document and the model's entry of run.json. Out: the paired interval and the latencies, or
None where the document is not about this model. Next file: `model_card.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import ArtifactError
from cofi_deploy.targets import Target

logger = logging.getLogger(__name__)

DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was measured of one model beside its dense teacher.

    Attributes:
        test: ``difference``, ``low``, ``high`` of the metric (pruned minus dense), in ``runtime``
            on ``examples`` examples; None where the task has no paired test.
        latency: One entry for each runtime and operating point.
        machine: Where.
        created: When.
    """

    test: Mapping[str, Any] | None
    latency: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    created: str


def read_verified(path: Path) -> dict[str, Any] | None:
    """The document; None, with a warning, where it is there and cannot be read."""
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ArtifactError as error:
        logger.warning("model cards go without verification: %s", error)
        return None


def verified_model(
    document: Mapping[str, Any] | None, entry: Mapping[str, Any], arch: Arch
) -> Verified | None:
    """What ``document`` says about the model of ``entry``; None where that is nothing.

    Args:
        document: Content of a verify.json: one pruned model or several, by their labels.
        entry: Of ``run["result"]["models"]``.
        arch: Of the model as it is on disk now; a document about another structure is old.
    """
    if document is None:
        return None
    try:
        label = _label(document, entry)
        if label is None or Arch.from_json(document["structures"][label]) != arch:
            return None
        return Verified(
            test=_test(document, label),
            latency=tuple(_latency(document["rows"], label)),
            machine=document["machine"],
            created=document["created"],
        )
    except (ArtifactError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        logger.warning(
            "a model card goes without verification, which is of another form (%s)", reason
        )
        return None


def _label(document: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """The label whose rows have the entry's target."""
    target = Target.of(entry).keys.items()
    for row in document["rows"]:
        if row["model"] != DENSE and target <= row.items():
            return str(row["model"])
    return None


def _test(document: Mapping[str, Any], label: str) -> dict[str, Any] | None:
    """The paired test, with the runtime that gave the predictions and their number."""
    comparison = _comparison(document, label)
    test = comparison.get("test")
    if not test:
        return None
    runtime = comparison["runtime"]
    examples = {
        row["runtime"]: row["examples"]
        for row in document["rows"]
        if row["model"] == label and "examples" in row
    }
    return {**test, "runtime": runtime, "examples": examples[runtime]}


def _comparison(document: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """Of several models the one with this label; a document about one model has one comparison."""
    if "comparisons" in document:
        return next((each for each in document["comparisons"] if each["model"] == label), {})
    return document.get("comparison") or {}


def _latency(rows: list[Mapping[str, Any]], label: str) -> Iterator[dict[str, Any]]:
    dense = {_point(row): row for row in rows if row["model"] == DENSE and "p50_ms" in row}
    for row in rows:
        if row["model"] != label or "p50_ms" not in row:
            continue
        beside = dense.get(_point(row))
        yield {**row, "dense_p50_ms": None if beside is None else beside["p50_ms"]}


def _point(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["runtime"], row["precision"], row["batch_size"], row["seq_len"]
