"""Is the vocabulary whole: rows of the word table for every id, and few unknown tokens?"""

from __future__ import annotations

import numpy as np

from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.diagnosis_structure import graph_facts
from cofi_deploy.serve.fault import Checked, Diagnosis, Texts
from cofi_deploy.serve.subject import Subject

# A share of unknown tokens that is larger than the dense model's by more than this is a fault; a
# vocabulary that was cut to the task keeps the single characters, so that its share does not grow.
_MORE_UNKNOWN = 0.02


def check_table(checked: Checked, dense: Subject, texts: Texts) -> tuple[list[Diagnosis], bool]:
    """Compare the rows of the word table with the ids that it is asked for.

    Returns:
        The fault, and whether the artifact cannot be run because of it.

    Raises:
        ArtifactError: A file is missing or was changed.
    """
    rows, wanted = _rows(checked), checked.expected().vocab_size
    ids = texts.fed(checked.label, checked.runtime).input_ids
    top, outside = int(ids.max(initial=0)), float(np.mean(ids >= rows))
    if top < rows:
        if rows >= wanted:
            return [], False
        fault = checked.diagnosis(
            "truncated_vocabulary",
            f"the vocabulary is truncated: the word table has {rows} rows, the model's {wanted}; "
            f"{checked.remedy()}",
        )
        return [fault], False
    whole = max(wanted, dense.arch().vocab_size)
    if rows >= whole:
        fault = checked.diagnosis(
            "different_tokenizer",
            f"the tokenizer belongs to another model: it gives ids up to {top}, but the word table "
            f"has {rows} rows, as it should; copy the tokenizer of the model that was pruned",
        )
        return [fault], True
    fault = checked.diagnosis(
        "truncated_vocabulary",
        f"the vocabulary is truncated: the word table has {rows} rows instead of {whole}, but the "
        f"tokenizer gives ids up to {top}, and {outside:.1%} of the tokens of the task's text have "
        f"no row; {checked.remedy()}",
    )
    return [fault], True


def check_unknown(subject: Subject, dense: Subject, texts: Texts) -> list[Diagnosis]:
    """Compare the share of unknown tokens with the dense model's, on the task's text.

    Raises:
        ArtifactError: A tokenizer is not readable.
    """
    found = []
    usual, usual_size = _unknown(dense, None, texts)
    runtimes = [runtime for label, runtime in texts.own if label == subject.label]
    for runtime in (None, *runtimes):
        share, size = _unknown(subject, runtime, texts)
        if share > usual + _MORE_UNKNOWN:
            checked = Checked(subject=subject, runtime=runtime or subject.home)
            found.append(
                checked.diagnosis(
                    "truncated_vocabulary",
                    f"the vocabulary is truncated: its tokenizer has {size} pieces, to which "
                    f"{share:.1%} of the tokens of the task's text are unknown, against "
                    f"{usual:.1%} with the {usual_size} pieces of {dense.label}; "
                    f"{checked.remedy()}",
                )
            )
    return found


def _rows(checked: Checked) -> int:
    """Ids that can be looked up: rows of the graph's table, as far as the manifest allows."""
    if checked.runtime == "torch":
        return checked.expected().vocab_size
    declared = checked.manifest().arch.vocab_size
    stored = graph_facts(checked).word_rows
    return declared if stored is None else min(declared, stored)


def _unknown(subject: Subject, runtime: str | None, texts: Texts) -> tuple[float, int]:
    """Share of unknown tokens and size of the vocabulary: of a cut one, or of the model's own."""
    if runtime is None:
        directory, split = subject.tokenizer, texts.encoded[subject.label]
    else:
        directory, split = subject.artifacts[runtime], texts.own[subject.label, runtime]
    ids, tokenizer = split.input_ids, load_tokenizer(directory)
    unknown = tokenizer.unk_token_id
    return 0.0 if unknown is None else float(np.mean(ids == unknown)), len(tokenizer)
