"""Accuracy of the dense model and of every member, in every runtime, with paired tests.

In: subjects, the encoded split and how to score. Out: rows, tests, what changed, and notes. Next
files: `changed_errors.py`, `verify.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve.accuracy import Scored, compare, score_split
from cofi_deploy.serve.bench import BenchSettings, OwnEncodings, usable_runtimes
from cofi_deploy.serve.changed_errors import changed_errors
from cofi_deploy.serve.padding import MIN_SECONDS, SHARE_OF_PASS, padding_invariance
from cofi_deploy.serve.runner import Runner, open_runner
from cofi_deploy.serve.significance import PairedTest, paired_test
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.triton_text_accuracy import add_text_rows
from cofi_deploy.tasks import EncodedSplit, Example, Task

logger = logging.getLogger(__name__)

# A runtime that predicts otherwise than PyTorch more often than this is worth a sentence; of other
# precisions the metric is what counts.
_USUAL_AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.995}
_LOSSY_AGREEMENT = 0.99


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How accuracy is measured.

    Attributes:
        task: What is scored.
        split: Of the task.
        bench: Runtimes, threads, precision and seed; PyTorch is added as the reference.
        batch_size: Of the accuracy pass.
    """

    task: Task
    split: str
    bench: BenchSettings
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What the accuracy passes gave.

    Attributes:
        rows: One for each model and runtime.
        tests: Each member against the dense model, by the member's label and runtime.
        comparisons: What changed, for each member in the first runtime: see `changed_errors`.
        notes: Sentences for the reader.
        answers: Of each label in each runtime.
    """

    rows: list[dict[str, Any]]
    tests: dict[tuple[str, str], PairedTest | None]
    comparisons: list[dict[str, Any]]
    notes: list[str]
    answers: dict[tuple[str, str], Scored]


def measure_accuracy(
    subjects: Sequence[Subject],
    encoded: Mapping[str, EncodedSplit],
    own: OwnEncodings,
    scoring: Scoring,
) -> Accuracy:
    """Score all models in every usable runtime, PyTorch first.

    Args:
        subjects: The dense model first.
        encoded: The split, by label.
        own: The split, by label and runtime, for artifacts that number their pieces otherwise.
        scoring: Task, runtimes and sizes.

    Raises:
        RunnerError: A runtime failed on an artifact.
    """
    usable, _ = usable_runtimes(subjects, ("torch", *scoring.bench.runtimes))
    dense, *members = subjects
    pairs = _Pairs(scoring, encoded[dense.label].examples)
    result = Accuracy(rows=[], tests={}, comparisons=[], notes=[], answers={})
    reference: dict[str, Scored] = {}
    for runtime in usable:
        scored: dict[str, Scored] = {}
        for subject in subjects:
            logger.info("scoring %s in %s", subject.label, runtime)
            split = own.get((subject.label, runtime), encoded[subject.label])
            row, answers = _score(subject, runtime, split, scoring)
            scored[subject.label] = result.answers[subject.label, runtime] = answers
            if runtime == "torch":
                reference[subject.label] = answers
            row |= _parity_keys(reference.get(subject.label), answers)
            row["metric_dense"] = scored[dense.label].metrics[scoring.task.metric_name]
            if subject is not dense:
                test = pairs.test(scored[dense.label], answers)
                result.tests[subject.label, runtime] = test
                row |= _change_keys(test)
            result.rows.append(row)
            result.notes.extend([*_parity_note(row), *_padding_note(row)])
        if runtime == "triton":
            add_text_rows(result, subjects, scoring.task, pairs.examples, scored, reference)
        if runtime == usable[0]:
            result.comparisons.extend(
                pairs.comparison(member.label, runtime, scored[dense.label], scored[member.label])
                for member in members
            )
    return result


class _Pairs:
    """Comparisons of two passes over the same examples."""

    def __init__(self, scoring: Scoring, examples: Sequence[Example]) -> None:
        self._scoring = scoring
        self.examples = examples
        self._tests: dict[Hashable, PairedTest | None] = {}

    def test(self, dense: Scored, member: Scored) -> PairedTest | None:
        # Most runtimes predict exactly what another one does: the same test, the same result.
        key = (tuple(dense.predictions), tuple(member.predictions))
        if key not in self._tests:
            self._tests[key] = paired_test(
                self._scoring.task,
                self.examples,
                dense.predictions,
                member.predictions,
                seed=self._scoring.bench.schedule.seed,
            )
        return self._tests[key]

    def comparison(self, label: str, runtime: str, dense: Scored, member: Scored) -> dict[str, Any]:
        test = self.test(dense, member)
        return {
            "model": label,
            "runtime": runtime,
            "test": None if test is None else dataclasses.asdict(test),
            **changed_errors(
                self._scoring.task, self.examples, dense.predictions, member.predictions
            ),
        }


def _score(
    subject: Subject, runtime: str, encoded: EncodedSplit, scoring: Scoring
) -> tuple[dict[str, Any], Scored]:
    task = scoring.task
    with open_runner(
        subject.artifacts[runtime],
        runtime,
        threads=scoring.bench.threads,
        precision=scoring.bench.precision,
    ) as runner:
        scored = score_split(runner, task, encoded, batch_size=scoring.batch_size)
        row = {
            "task": task.name,
            "split": scoring.split,
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
            **_padding_keys(runner, encoded, scoring, pass_s=scored.wall_s),
        }
    return row, scored


def _padding_keys(
    runner: Runner, encoded: EncodedSplit, scoring: Scoring, *, pass_s: float
) -> dict[str, Any]:
    """Nothing where an engine's profiles do not take a single row or the longest length."""
    try:
        found = padding_invariance(
            runner,
            encoded,
            kind=scoring.task.kind,
            batch_size=scoring.batch_size,
            max_seconds=max(MIN_SECONDS, SHARE_OF_PASS * pass_s),
        )
    except RunnerError as error:
        logger.warning("padding invariance is not measured in %s: %s", runner.runtime, error)
        return {}
    return dataclasses.asdict(found)


def _parity_keys(reference: Scored | None, answers: Scored) -> dict[str, float]:
    if reference is None:
        return {}
    found = dataclasses.asdict(compare(reference, answers))
    return {key: value for key, value in found.items() if value is not None}


def _change_keys(test: PairedTest | None) -> dict[str, float]:
    """The 95 % interval of metric minus metric_dense, and McNemar's p-value where there is one."""
    if test is None:
        return {}
    keys = {"change_low": test.low, "change_high": test.high}
    return keys if test.p_value is None else {**keys, "p_value": test.p_value}


def _parity_note(row: Mapping[str, Any]) -> list[str]:
    agreement = row.get("agreement", 1.0)
    if agreement >= _USUAL_AGREEMENT.get(row["precision"], _LOSSY_AGREEMENT):
        return []
    difference = row.get("max_abs_logit_diff")
    detail = "other tokens" if difference is None else f"largest logit difference {difference:.3g}"
    return [
        f"{row['model']} in {row['runtime']} at {row['precision']} predicts otherwise than PyTorch "
        f"for {1 - agreement:.1%} of the examples ({detail})"
    ]


def _padding_note(row: Mapping[str, Any]) -> list[str]:
    if row.get("padding_agreement", 1.0) == 1.0:
        return []
    return [
        f"{row['model']} in {row['runtime']} at {row['precision']} answers otherwise to "
        f"{1 - row['padding_agreement']:.1%} of {row['padding_examples']} texts when they are "
        "padded or beside others (largest logit difference "
        f"{row['padding_max_abs_logit_diff']:.3g})"
    ]
