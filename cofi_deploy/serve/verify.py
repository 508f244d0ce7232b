"""Dense against pruned in every runtime: accuracy, parity, latency, and the verdict.

In: two subjects and a task. Out: `verify.json`, `report.html` and a `VerifyResult`. Next files:
`verdict.py`, `report.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import write_bytes, write_json
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.results import result_document
from cofi_deploy.serve.accuracy import Scored, compare, disagreements, score_split
from cofi_deploy.serve.bench import BenchSettings, OwnEncodings, bench, usable_runtimes
from cofi_deploy.serve.curves import read_metrics
from cofi_deploy.serve.diagnosis import explain, screen, slower_models
from cofi_deploy.serve.fault import Texts
from cofi_deploy.serve.report import render_report
from cofi_deploy.serve.runner import open_runner
from cofi_deploy.serve.significance import PairedTest, paired_test
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verdict import Targets, Verdict, judge
from cofi_deploy.tasks import EncodedSplit, Example, Task

logger = logging.getLogger(__name__)

RESULT_FILE = "verify.json"
REPORT_FILE = "report.html"

# A runtime that predicts otherwise than PyTorch more often than this is worth a sentence.
_USUAL_AGREEMENT = 0.99
_SHOWN_DISAGREEMENTS = 20


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """What is verified.

    Attributes:
        bench: Runtimes and operating points; accuracy is measured in the same runtimes, and in
            PyTorch always, as the reference. Targets are judged in these runtimes alone.
        targets: What was promised.
        split: Of the task; ``validation`` is what nothing was chosen on.
        limit: Examples, evenly spaced over the split; None means all.
        batch_size: Of the accuracy pass.
        metrics_file: The run's ``metrics.jsonl``, for training curves.
        command: Command line that reproduces the result; None means that of this process.
    """

    bench: BenchSettings
    targets: Targets = field(default_factory=Targets)
    split: str = "validation"
    limit: int | None = None
    batch_size: int = 32
    metrics_file: Path | None = None
    command: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """Where the result lies, and whether every target was met."""

    ok: bool
    verdict: Verdict
    document: Mapping[str, Any]
    result_file: Path
    report_file: Path


def verify(
    dense: Subject, pruned: Subject, task: Task, settings: VerifySettings, out_dir: Path
) -> VerifyResult:
    """Measure accuracy and latency of both models, and write `verify.json` and `report.html`.

    Raises:
        UsageError: An unknown runtime, or a subject without artifacts.
        ArtifactError: An artifact is missing or corrupt.
        RunnerError: A runtime failed on an artifact.
        DataError: The split's data is missing or unusable.
    """
    subjects: tuple[Subject, ...] = (dense, pruned)
    encoded = {
        subject.label: task.encode(
            settings.split, load_tokenizer(subject.tokenizer), limit=settings.limit
        )
        for subject in subjects
    }
    own = _own_encodings(subjects, task, settings)
    texts = Texts(encoded=encoded, own=own)
    subjects, faults = screen(subjects, texts, settings.bench.runtimes)
    accuracy = _measure_accuracy(subjects, task, (encoded, own), settings)
    timed = bench(subjects, settings.bench, encoded[pruned.label], own)
    diagnoses = [
        *faults,
        *explain(subjects, task, texts, accuracy.answers),
        *slower_models(timed.rows, timed.samples),
    ]
    shared = {"task": task.name, "split": settings.split}
    latency_rows = [{**shared, **row} for row in timed.rows]
    verdict = judge(
        settings.targets,
        [
            row
            for row in accuracy.rows
            if row["model"] == pruned.label and row["runtime"] in settings.bench.runtimes
        ],
        [row for row in latency_rows if row["model"] == pruned.label],
        accuracy.tests,
        diagnoses,
    )
    document = {
        **result_document([*accuracy.rows, *latency_rows], command=settings.command),
        "verdict": dataclasses.asdict(verdict),
        "skipped": timed.skipped,
        "diagnoses": [dataclasses.asdict(diagnosis) for diagnosis in diagnoses],
        "notes": [*(each.sentence for each in diagnoses), *accuracy.notes, *timed.notes],
        "comparison": accuracy.comparison,
        "structures": {subject.label: subject.arch().to_json() for subject in subjects},
        "latency_samples": timed.samples,
    }
    return _write(document, verdict, settings, out_dir)


@dataclass(frozen=True, kw_only=True)
class _Accuracy:
    """What the accuracy passes gave."""

    rows: list[dict[str, Any]]
    tests: dict[str, PairedTest | None]
    comparison: dict[str, Any]
    notes: list[str]
    answers: dict[tuple[str, str], Scored]


def _own_encodings(
    subjects: Sequence[Subject], task: Task, settings: VerifySettings
) -> dict[tuple[str, str], EncodedSplit]:
    """The split by label and runtime, for artifacts that number their pieces otherwise."""
    found: dict[tuple[str, str], EncodedSplit] = {}
    for subject in subjects:
        for runtime in (each for each in settings.bench.runtimes if each in subject.artifacts):
            directory = subject.own_tokenizer(runtime)
            if directory is not None:
                tokenizer = load_tokenizer(directory)
                encoded = task.encode(settings.split, tokenizer, limit=settings.limit)
                found[subject.label, runtime] = encoded
    return found


def _measure_accuracy(
    subjects: Sequence[Subject],
    task: Task,
    encodings: tuple[Mapping[str, EncodedSplit], OwnEncodings],
    settings: VerifySettings,
) -> _Accuracy:
    """Score both models in every usable runtime, PyTorch first."""
    encoded, own = encodings
    usable, _ = usable_runtimes(subjects, ("torch", *settings.bench.runtimes))
    dense, pruned = subjects
    examples = encoded[pruned.label].examples
    result = _Accuracy(rows=[], tests={}, comparison={}, notes=[], answers={})
    reference: dict[str, Scored] = {}
    tests: dict[Hashable, PairedTest | None] = {}
    for runtime in usable:
        scored: dict[str, Scored] = {}
        for subject in subjects:
            logger.info("scoring %s in %s", subject.label, runtime)
            split = own.get((subject.label, runtime), encoded[subject.label])
            row, answers = _score(subject, runtime, task, split, settings)
            scored[subject.label] = result.answers[subject.label, runtime] = answers
            if runtime == "torch":
                reference[subject.label] = answers
            row |= _parity_keys(reference.get(subject.label), answers)
            row["metric_dense"] = scored[dense.label].metrics[task.metric_name]
            result.rows.append(row)
            result.notes.extend(_parity_note(row))
        predictions = [scored[subject.label].predictions for subject in subjects]
        # Most runtimes predict exactly what another one does: the same test, the same result.
        key = (tuple(predictions[0]), tuple(predictions[1]))
        if key not in tests:
            seed = settings.bench.schedule.seed
            tests[key] = paired_test(task, examples, *predictions, seed=seed)
        test = tests[key]
        result.tests[runtime] = test
        if not result.comparison:
            result.comparison.update(
                _comparison(runtime, test, task, examples, (predictions[0], predictions[1]))
            )
    return result


def _score(
    subject: Subject,
    runtime: str,
    task: Task,
    encoded: EncodedSplit,
    settings: VerifySettings,
) -> tuple[dict[str, Any], Scored]:
    with open_runner(
        subject.artifacts[runtime],
        runtime,
        threads=settings.bench.threads,
        precision=settings.bench.precision,
    ) as runner:
        scored = score_split(runner, task, encoded, batch_size=settings.batch_size)
        row = {
            "task": task.name,
            "split": settings.split,
            "examples": len(encoded.examples),
            **subject.row(),
            "size_bytes": subject.size_bytes(runtime),
            "metric_name": task.metric_name,
            "metric": scored.metrics[task.metric_name],
            "runtime": runtime,
            "precision": runner.precision,
            "device": runner.device,
            "threads": runner.threads,
            "wall_s": scored.wall_s,
        }
    return row, scored


def _parity_keys(reference: Scored | None, answers: Scored) -> dict[str, float]:
    if reference is None:
        return {}
    found = dataclasses.asdict(compare(reference, answers))
    return {key: value for key, value in found.items() if value is not None}


def _parity_note(row: Mapping[str, Any]) -> list[str]:
    agreement = row.get("agreement", 1.0)
    if agreement >= _USUAL_AGREEMENT:
        return []
    difference = row.get("max_abs_logit_diff")
    detail = "other tokens" if difference is None else f"largest logit difference {difference:.3g}"
    return [
        f"{row['model']} in {row['runtime']} at {row['precision']} predicts otherwise than PyTorch "
        f"for {1 - agreement:.1%} of the examples ({detail})"
    ]


def _comparison(
    runtime: str,
    test: PairedTest | None,
    task: Task,
    examples: Sequence[Example],
    predictions: tuple[Sequence[Any], Sequence[Any]],
) -> dict[str, Any]:
    """How dense and pruned differ in one runtime, with up to 20 examples to look at."""
    places = disagreements(*predictions)
    if task.kind == "text-regression":  # scores always differ; the largest differences tell most
        shown = sorted(places, key=lambda at: -abs(predictions[0][at] - predictions[1][at]))
        shown = shown[:_SHOWN_DISAGREEMENTS]
    else:
        shown = places[:: max(1, -(-len(places) // _SHOWN_DISAGREEMENTS))]
    return {
        "runtime": runtime,
        "kind": task.kind,
        "test": None if test is None else dataclasses.asdict(test),
        "agreement": 1.0 - len(places) / max(len(examples), 1),
        "disagreements": len(places),
        "examples": [
            {
                "id": examples[place].id,
                "text": examples[place].text,
                "text_pair": examples[place].text_pair,
                "label": _in_words(task, _gold(examples[place])),
                "dense": _in_words(task, predictions[0][place]),
                "pruned": _in_words(task, predictions[1][place]),
            }
            for place in shown
        ],
    }


def _gold(example: Example) -> Any:
    return example.answers[0].text if example.answers else example.label


def _in_words(task: Task, value: Any) -> str:
    if task.labels and isinstance(value, int):
        return task.labels[value]
    if isinstance(value, float):
        return f"{value:.3f}"
    return "no answer" if value in {None, ""} else str(value)


def _write(
    document: Mapping[str, Any], verdict: Verdict, settings: VerifySettings, out_dir: Path
) -> VerifyResult:
    result_file, report_file = out_dir / RESULT_FILE, out_dir / REPORT_FILE
    write_json(result_file, document)
    metrics = [] if settings.metrics_file is None else read_metrics(settings.metrics_file)
    write_bytes(report_file, render_report(document, metrics).encode())
    return VerifyResult(
        ok=verdict.ok,
        verdict=verdict,
        document=document,
        result_file=result_file,
        report_file=report_file,
    )
