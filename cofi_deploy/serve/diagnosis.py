"""Why an artifact answers otherwise than its model: faults that checksums cannot show, by name.

An artifact that a faulty exporter wrote has right checksums. Comes in: subjects, the texts that
they are fed and what they answered. Goes out: one `Diagnosis` for each fault found, with a sentence
that names it. Next files: `diagnosis_vocabulary.py`, `diagnosis_structure.py`,
`diagnosis_labels.py`, `diagnosis_answers.py`; `docs/debug_parity.md` has the way on from each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cofi_deploy.serve.accuracy import Scored
from cofi_deploy.serve.diagnosis_answers import (
    check_finite,
    check_range,
    is_off,
    other_answers,
    symptom,
)
from cofi_deploy.serve.diagnosis_labels import check_label_order, check_labels, check_logit_order
from cofi_deploy.serve.diagnosis_structure import check_heads, check_runnable_heads
from cofi_deploy.serve.diagnosis_tokenizer import check_tokenizers
from cofi_deploy.serve.diagnosis_vocabulary import check_table, check_unknown
from cofi_deploy.serve.fault import Answers, Checked, Diagnosis, Texts
from cofi_deploy.serve.runner import availability
from cofi_deploy.serve.subject import Subject
from cofi_deploy.tasks import Task

# A median of fewer durations has no interval that a fault could be told from.
MIN_ROUNDS = 20


def screen(
    subjects: tuple[Subject, ...], texts: Texts, runtimes: Sequence[str]
) -> tuple[tuple[Subject, ...], list[Diagnosis]]:
    """Find what cannot be run at all, before it ends in an error of the runtime's own.

    Returns:
        The subjects, with runtimes that cannot be used marked in `Subject.unusable`, and why.

    Raises:
        ArtifactError: A file is missing or was changed since it was exported.
    """
    found: list[Diagnosis] = []
    screened = []
    for subject in subjects:
        unusable: dict[str, str] = {}
        for runtime in dict.fromkeys(("torch", *runtimes)):
            if runtime not in subject.artifacts or availability(runtime) is not None:
                continue
            checked = Checked(subject=subject, runtime=runtime)
            faults, is_fatal = check_table(checked, subjects[0], texts)
            fatal = faults if is_fatal else []
            fatal = [*fatal, *check_runnable_heads(checked)]
            found += [*faults, *(fault for fault in fatal if fault not in faults)]
            if fatal:
                unusable[runtime] = fatal[0].sentence
        screened.append(replace(subject, unusable=unusable))
    return tuple(screened), found


def explain(
    subjects: Sequence[Subject], task: Task, texts: Texts, answers: Answers
) -> list[Diagnosis]:
    """Find out why answers differ from PyTorch's, and what is wrong without showing in answers.

    Args:
        subjects: As `screen` returned them; the first is the dense one.
        task: What was asked.
        texts: What it was asked in, by label and runtime.
        answers: Of each label in each runtime; ``torch`` is the reference where it is there.

    Raises:
        ArtifactError: A tokenizer or a configuration is not readable.
    """
    found: list[Diagnosis] = []
    for subject in subjects:
        found += check_tokenizers(subject, subjects[0], texts)
        found += check_unknown(subject, subjects[0], texts)
        found += check_label_order(subject, task)
        for (label, runtime), scored in answers.items():
            if label != subject.label:
                continue
            checked = Checked(subject=subject, runtime=runtime)
            if runtime == "torch":
                found += check_finite(checked, texts, scored)
                found += check_labels(checked, task, texts, scored)
            else:
                found += _explain_artifact(checked, task, texts, (scored, answers))
    return found


def slower_models(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]
) -> list[Diagnosis]:
    """Pruned models that are slower than the dense one, by their whole interval.

    Args:
        rows: Of `bench`; those with a speedup are compared.
        samples: Of `bench`: how many rounds each row was measured for.
    """
    keys = ("model", "runtime", "batch_size", "seq_len")
    rounds = {tuple(each[key] for key in keys): each["rounds"] for each in samples}
    found = []
    for row in rows:
        high = row.get("speedup_high")
        if (
            row.get("speedup") is None
            or high is None
            or high >= 1
            or rounds[tuple(row[key] for key in keys)] < MIN_ROUNDS
        ):
            continue
        sentence = (
            f"{row['model']} in {row['runtime']} at {row['batch_size']}x{row['seq_len']} is slower "
            f"than dense: {row['speedup']:.2f} times its speed (95 % interval "
            f"{row['speedup_low']:.2f} to {high:.2f}); was the model cut, not only masked? look "
            "with: cofi-deploy inspect"
        )
        found.append(
            Diagnosis(
                model=row["model"],
                runtime=row["runtime"],
                fault="slower_model",
                sentence=sentence,
            )
        )
    return found


def _explain_artifact(
    checked: Checked, task: Task, texts: Texts, answers: tuple[Scored, Answers]
) -> list[Diagnosis]:
    """The first cause that explains an artifact's answers; none where they are as they should."""
    scored, others = answers
    not_finite = check_finite(checked, texts, scored)
    if not_finite:
        return not_finite
    reference = others.get((checked.label, "torch"))
    if reference is None:
        return check_heads(checked, "")
    if not is_off(reference, scored, checked.manifest().precision):
        return check_range(checked, texts, None)
    told = symptom(reference, scored)
    return (
        check_heads(checked, told)
        or check_logit_order(checked, task, reference, scored)
        or check_range(checked, texts, told)
        or [other_answers(checked, told)]
    )
