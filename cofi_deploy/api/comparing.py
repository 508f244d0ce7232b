"""`compare`: two result files, the judgement, and what is written of it. Loads no framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.atomic import write_bytes
from cofi_deploy.errors import ArtifactError, UsageError, did_you_mean
from cofi_deploy.results import result_document
from cofi_deploy.serve.comparison import IDENTITY, Comparison
from cofi_deploy.serve.comparison import compare as compare_documents
from cofi_deploy.serve.junit import junit_xml
from cofi_deploy.serve.quantities import Tolerances


def compare(
    baseline: Path,
    candidate: Path,
    *,
    tolerances: Tolerances | None = None,
    ignore: Collection[str] = (),
    require_all: bool = True,
    junit: Path | None = None,
) -> Comparison:
    """Compare two result files; see `serve.comparison.compare`.

    Args:
        baseline: Result file that was accepted before.
        candidate: Result file that is asked about.
        tolerances: Changes that are accepted.
        ignore: Keys of rows that do not tell them apart.
        require_all: Whether what the candidate lacks is a failure.
        junit: Where to write the comparison as JUnit XML.

    Raises:
        UsageError: A file is missing, corrupt, of a newer schema or no result file, no row of one
            is in the other, or ``ignore`` names no key of rows.
        EnvironmentProblem: ``junit`` cannot be written.
    """
    for key in ignore:
        if key not in IDENTITY:
            raise UsageError(f"--ignore {key!r} tells no rows apart; {did_you_mean(key, IDENTITY)}")
    documents = (_read(baseline), _read(candidate))
    comparison = compare_documents(
        *documents, tolerances or Tolerances(), ignore=ignore, require_all=require_all
    )
    if not comparison.findings:
        raise UsageError(_nothing_in_common((baseline, candidate), documents, comparison))
    if junit is not None:
        write_bytes(junit, junit_xml(comparison))
    return comparison


def comparison_document(comparison: Comparison, baseline: Path, candidate: Path) -> dict[str, Any]:
    """A comparison as a result file: one row for each quantity of each pair of rows."""
    rows = [
        {
            **one.identity,
            "quantity": one.quantity,
            "baseline": one.baseline,
            "candidate": one.candidate,
            **dataclasses.asdict(one.judgement),
        }
        for one in comparison.findings
    ]
    return {
        **result_document(rows),
        "baseline": str(baseline),
        "candidate": str(candidate),
        "verdict": {
            "ok": comparison.ok,
            "sentence": comparison.sentence,
            "counts": comparison.counts(),
        },
        "vanished": list(comparison.vanished),
        "new": list(comparison.new),
        "ambiguous": list(comparison.ambiguous),
        "notes": list(comparison.notes),
    }


def write_comparison(path: Path, comparison: Comparison, baseline: Path, candidate: Path) -> None:
    """Write `comparison_document`, whole or not at all."""
    write_json(path, comparison_document(comparison, baseline, candidate))


def _read(path: Path) -> dict[str, Any]:
    """A result file; exit code 1 would say that something got worse, so all faults are usage."""
    try:
        document = read_json(path)
    except ArtifactError as error:
        raise UsageError(
            f"{error}; give a result file of cofi-deploy verify or cofi-deploy bench"
        ) from error
    rows = document.get("rows")
    if not isinstance(rows, list):
        raise UsageError(
            f"{str(path)!r} has no list 'rows', so it is no result file; give one of "
            "cofi-deploy verify or cofi-deploy bench"
        )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UsageError(
                f"row {index} of {str(path)!r} is a {type(row).__name__}, expected an object; "
                "make the file again"
            )
    return document


def _nothing_in_common(
    paths: tuple[Path, Path], documents: tuple[Mapping[str, Any], ...], comparison: Comparison
) -> str:
    """Say which key keeps the rows apart: often it is `model`, with the time of a run in it."""
    empty = [str(path) for path, each in zip(paths, documents, strict=True) if not each["rows"]]
    if empty:
        return f"{empty[0]!r} has no rows, so there is nothing to compare; make the file again"
    pair = f"nothing in {str(paths[1])!r} was measured where {str(paths[0])!r} was"
    for key in IDENTITY:
        values = [
            sorted({str(row[key]) for row in each["rows"] if row.get(key) is not None})
            for each in documents
        ]
        if values[0] and values[1] and not set(values[0]) & set(values[1]):
            return (
                f"{pair}: {key} is {', '.join(values[0])} there and {', '.join(values[1])} here; "
                f"compare other files, or match rows without it: --ignore {key}"
            )
    if comparison.ambiguous:
        return f"{pair}: every place is measured several times in one file; give files of one run"
    return f"{pair}; measure the same models, runtimes and operating points"
