"""Do logits and label names stand in one order, in the artifact, the model and the task?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from cofi_deploy.artifacts import read_json
from cofi_deploy.kinds import output_names
from cofi_deploy.serve.accuracy import Scored
from cofi_deploy.serve.diagnosis_answers import symptom
from cofi_deploy.serve.fault import Checked, Diagnosis, Texts
from cofi_deploy.serve.subject import Subject
from cofi_deploy.tasks import Task

# Swapped logits explain a difference when they leave at most this share of it.
_UNEXPLAINED = 0.25
# Cohen's kappa with labels exchanged must be as large as this, and so many standard errors of
# chance (about 1 / sqrt(examples)), before labels are called swapped.
_MIN_KAPPA = 0.2
_CHANCE = 4.0


def check_label_order(subject: Subject, task: Task) -> list[Diagnosis]:
    """Compare the names in each config.json and export.json with the task's.

    Other names say nothing: models call their classes what they like.

    Raises:
        ArtifactError: A file is not readable.
    """
    found = []
    right, whose = tuple(task.labels), "the task's"
    in_order = sorted(subject.artifacts, key=lambda runtime: runtime != "torch")
    for runtime in in_order:
        checked = Checked(subject=subject, runtime=runtime)
        for file, names in _stored_orders(checked):
            if names != right and sorted(map(_folded, names)) == sorted(map(_folded, right)):
                if [_folded(name) for name in names] == [_folded(name) for name in right]:
                    continue
                found.append(
                    checked.diagnosis(
                        "swapped_labels",
                        f"labels are swapped: {file} has the order {', '.join(names)}, {whose} is "
                        f"{', '.join(right)}; {checked.remedy()}",
                    )
                )
                break
        if runtime == "torch":
            # What the model says is what its artifacts must say.
            right, whose = _names_in_config(checked.directory) or right, "the model's"
    return found


def check_logit_order(
    checked: Checked, task: Task, reference: Scored, scored: Scored
) -> list[Diagnosis]:
    """Whether the artifact's logits are PyTorch's in another order; for answers that are off."""
    expected, got = _columns(task, reference), _columns(task, scored)
    if expected is None or got is None or expected.shape != got.shape:
        return []
    distance = np.array(
        [[np.abs(got[:, j] - one).mean() for one in expected.T] for j in range(got.shape[1])]
    )  # (artifact's column, PyTorch's column)
    _, order = linear_sum_assignment(distance)
    moved = np.flatnonzero(order != np.arange(len(order)))
    swapped = distance[np.arange(len(order)), order]
    if not len(moved) or swapped[moved].sum() > _UNEXPLAINED * np.diag(distance)[moved].sum():
        return []
    names = _column_names(checked, task, len(order))
    return [
        checked.diagnosis(
            "swapped_labels",
            f"labels are swapped: the artifact's logits are in the order "
            f"{', '.join(names[at] for at in order)}, the model's in the order "
            f"{', '.join(names)}, and {symptom(reference, scored)}; {checked.remedy()}",
        )
    ]


def check_labels(checked: Checked, task: Task, texts: Texts, scored: Scored) -> list[Diagnosis]:
    """Whether a classifier's answers are right with its labels exchanged, and wrong as they are."""
    if task.kind != "text-classification":
        return []
    gold = [example.label for example in texts.encoded[checked.label].examples]
    counts = np.zeros((len(task.labels), len(task.labels)))
    for answer, right in zip(scored.predictions, gold, strict=True):
        counts[int(str(answer)), int(str(right))] += 1
    answered, meant = linear_sum_assignment(-counts)
    before, after = _kappa(counts), _kappa(counts[:, meant])
    enough = max(_MIN_KAPPA, _CHANCE / np.sqrt(len(gold)))
    if before > 0 or after < enough:
        return []
    share = [np.trace(each) / len(gold) for each in (counts, counts[:, meant])]
    said = [
        f"{task.labels[one]!r} where the task says {task.labels[other]!r}"
        for one, other in zip(answered, meant, strict=True)
        if one != other
    ]
    return [
        checked.diagnosis(
            "swapped_labels",
            f"labels are swapped: it answers {' and '.join(said)}; accuracy is {share[0]:.3f}, and "
            f"would be {share[1]:.3f} with these labels exchanged; compare the task's labels "
            f"({', '.join(task.labels)}) with what the model was trained on",
        )
    ]


def _stored_orders(checked: Checked) -> list[tuple[str, tuple[str, ...]]]:
    found = [("config.json", _names_in_config(checked.directory))]
    if checked.runtime != "torch":
        found.append(("export.json", checked.manifest().labels))
    return [(file, names) for file, names in found if names]


def _names_in_config(directory: Path) -> tuple[str, ...]:
    path = directory / "config.json"
    stored: dict[str, Any] = (read_json(path).get("id2label") or {}) if path.is_file() else {}
    return tuple(str(stored[key]) for key in sorted(stored, key=int))


def _folded(name: str) -> str:
    return name.casefold()


def _columns(task: Task, scored: Scored) -> npt.NDArray[Any] | None:
    """Logits of all features below each other: (rows, labels), or (rows, start and end)."""
    names = output_names(task.kind)
    if task.kind == "text-regression" or not scored.outputs:
        return None
    if len(names) > 1:
        joined = [np.concatenate([row[name] for row in scored.outputs]) for name in names]
        return np.stack(joined, axis=1)
    rows = [np.atleast_2d(row[names[0]]) for row in scored.outputs]
    return np.concatenate(rows)


def _column_names(checked: Checked, task: Task, count: int) -> Sequence[str]:
    if task.kind == "question-answering":
        return output_names(task.kind)
    names = checked.manifest().labels or tuple(task.labels)
    return names if len(names) == count else [f"LABEL_{index}" for index in range(count)]


def _kappa(counts: npt.NDArray[np.float64]) -> float:
    """Cohen's kappa: agreement beyond that of two draws by the margins, as a share of its most."""
    total = counts.sum()
    chance = float((counts.sum(0) * counts.sum(1)).sum() / total**2)
    seen = float(np.trace(counts) / total)
    return 0.0 if chance >= 1 else (seen - chance) / (1 - chance)
