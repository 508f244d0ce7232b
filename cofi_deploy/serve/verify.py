"""Dense against pruned in every runtime: accuracy, parity, latency, and the verdict.

In: the dense model, one pruned model or a whole family of them, and a task. Out: `verify.json`,
`report.html` and a `VerifyResult`. Next files: `scoring.py`, `verdict.py`, `report.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import write_json
from cofi_deploy.atomic import write_bytes
from cofi_deploy.errors import UsageError
from cofi_deploy.inspect_model import describe
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.results import result_document
from cofi_deploy.serve.bench import BenchSettings, bench
from cofi_deploy.serve.curves import read_metrics
from cofi_deploy.serve.diagnosis import explain, screen, slower_models
from cofi_deploy.serve.fault import Diagnosis, Texts
from cofi_deploy.serve.profile_explanation import explanations_for
from cofi_deploy.serve.profiles import profiles_for
from cofi_deploy.serve.report import render_report
from cofi_deploy.serve.scoring import Accuracy, Scoring, measure_accuracy
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.triton_text_accuracy import is_of_texts
from cofi_deploy.serve.verdict import Targets, Verdict, judge
from cofi_deploy.tasks import EncodedSplit, Task

RESULT_FILE = "verify.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """What is verified.

    Attributes:
        bench: Runtimes and operating points; accuracy is measured in the same runtimes, and in
            PyTorch always, as the reference. Targets are judged in these runtimes alone.
        targets: What was promised.
        judged: Label of the member that the targets are about; None means the last one. The
            others are measured and shown, and change no verdict.
        split: Of the task; ``validation`` is what nothing was chosen on.
        limit: Examples, evenly spaced over the split; None means all.
        batch_size: Of the accuracy pass.
        metrics_file: The run's ``metrics.jsonl``, for training curves.
        command: Command line that reproduces the result; None means that of this process.
        train_command: The one that made the models, where it is known.
    """

    bench: BenchSettings
    targets: Targets = field(default_factory=Targets)
    judged: str | None = None
    split: str = "validation"
    limit: int | None = None
    batch_size: int = 32
    metrics_file: Path | None = None
    command: tuple[str, ...] | None = None
    train_command: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """Where the result lies, and whether every target was met."""

    ok: bool
    verdict: Verdict
    document: Mapping[str, Any]
    result_file: Path
    report_file: Path


def verify(
    dense: Subject,
    members: Sequence[Subject],
    task: Task,
    settings: VerifySettings,
    out_dir: Path,
) -> VerifyResult:
    """Measure accuracy and latency of all models, and write `verify.json` and `report.html`.

    Args:
        dense: The baseline of every comparison.
        members: The pruned model, or a family of them; all are timed in turn within a round.
        task: What they are scored on.
        settings: Runtimes, operating points, targets.
        out_dir: Where both files go.

    Raises:
        UsageError: An unknown runtime, a subject without artifacts, no member, two models of one
            label, or a judged label that no member has.
        ArtifactError: An artifact is missing or corrupt.
        RunnerError: A runtime failed on an artifact.
        DataError: The split's data is missing or unusable.
    """
    judged = _judged(dense, members, settings)
    subjects: tuple[Subject, ...] = (dense, *members)
    encoded = {
        subject.label: task.encode(
            settings.split, load_tokenizer(subject.tokenizer), limit=settings.limit
        )
        for subject in subjects
    }
    own = _own_encodings(subjects, task, settings)
    texts = Texts(encoded=encoded, own=own)
    subjects, faults = screen(subjects, texts, settings.bench.runtimes)
    scoring = Scoring(
        task=task, split=settings.split, bench=settings.bench, batch_size=settings.batch_size
    )
    accuracy = measure_accuracy(subjects, encoded, own, scoring)
    timed = bench(subjects, settings.bench, encoded[judged], own)
    diagnoses = [
        *faults,
        *explain(subjects, task, texts, accuracy.answers),
        *slower_models(timed.rows, timed.samples),
    ]
    shared = {"task": task.name, "split": settings.split}
    latency_rows = [{**shared, **row} for row in timed.rows]
    profiles = profiles_for((subjects[0], *_called(judged, subjects)), settings.bench)
    verdict = _verdict(judged, accuracy, latency_rows, diagnoses, settings)
    document = {
        **result_document([*accuracy.rows, *latency_rows], command=settings.command),
        "dense": dense.label,
        "members": [member.label for member in members],
        "judged": judged,
        "verdict": dataclasses.asdict(verdict),
        "skipped": timed.skipped,
        "conditions": timed.conditions,
        "diagnoses": [dataclasses.asdict(diagnosis) for diagnosis in diagnoses],
        "notes": [
            *(each.sentence for each in diagnoses),
            *accuracy.notes,
            *timed.notes,
            *(each["reason"] for each in profiles.failed),
        ],
        "comparisons": accuracy.comparisons,
        "structures": {subject.label: subject.arch().to_json() for subject in subjects},
        "sizes": _sizes(subjects),
        "profiles": profiles.found,
        "explanations": explanations_for(profiles.found),
        "train_command": settings.train_command,
        "latency_samples": timed.samples,
    }
    return _write(document, verdict, settings, out_dir)


def _judged(dense: Subject, members: Sequence[Subject], settings: VerifySettings) -> str:
    """The label of the judged member, once all labels are found to make sense."""
    if not members:
        raise UsageError(f"there is no pruned model to compare with {dense.label!r}; name one")
    labels = [member.label for member in members]
    everybody = [dense.label, *labels]
    twice = next((label for label in everybody if everybody.count(label) > 1), None)
    if twice is not None:
        raise UsageError(f"two models are called {twice!r}; give each a label of its own")
    judged = settings.judged or labels[-1]
    if judged not in labels:
        raise UsageError(f"judged is {judged!r}, allowed: {', '.join(labels)}")
    return judged


def _called(label: str, subjects: Sequence[Subject]) -> list[Subject]:
    return [subject for subject in subjects if subject.label == label]


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


def _verdict(
    judged: str,
    accuracy: Accuracy,
    latency_rows: Sequence[Mapping[str, Any]],
    diagnoses: Sequence[Diagnosis],
    settings: VerifySettings,
) -> Verdict:
    """Of the judged member, in the runtimes that were asked for."""
    return judge(
        settings.targets,
        [
            row
            for row in accuracy.rows
            if row["model"] == judged
            and row["runtime"] in settings.bench.runtimes
            and not is_of_texts(row)
        ],
        [row for row in latency_rows if row["model"] == judged],
        {runtime: test for (label, runtime), test in accuracy.tests.items() if label == judged},
        diagnoses,
    )


def _sizes(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Parameters by part of every model whose directory is known."""
    found = []
    for subject in subjects:
        if "torch" in subject.artifacts:
            facts = describe(subject.artifacts["torch"])
            keys = ("parameters", "parameters_by_part", "size_bytes", "dtypes")
            found.append({"model": subject.label, **{key: facts[key] for key in keys}})
    return found


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
