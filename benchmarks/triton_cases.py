"""Requests with their right answers: real text, as token ids or as it is, answered by PyTorch.

In: a model directory and the texts of a task. Out: `Case`s for `triton_load.py`. The answers come
from the PyTorch model, one text at a time, before any server runs: another runtime, no batching and
no padding, so that a mistake of the served path cannot be in both.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from triton_load import TOLERANCE, Case

from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.loading import label_names, load, load_tokenizer
from cofi_deploy.tasks import load_task
from cofi_deploy.tasks.glue import GLUE

ROOT = Path(__file__).resolve().parent
DATA = Path(os.environ.get("COFI_DEPLOY_DATA", ROOT.parents[1] / "shared" / "data")) / "glue"
FIXED_LENGTH = 128

Text = tuple[str, ...]  # one sentence, or a sentence and its pair
Row = dict[str, npt.NDArray[np.int64]]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The same model asked in three ways.

    Attributes:
        fixed: Token ids of the texts end to end, cut to `FIXED_LENGTH`, no padding.
        ids: Token ids of one text each, at its own length.
        text: The same texts as strings.
        lengths: Tokens of each of ``ids``.
    """

    fixed: tuple[Case, ...]
    ids: tuple[Case, ...]
    text: tuple[Case, ...]
    lengths: tuple[int, ...]


def read_texts(task: str, limit: int) -> list[Text]:
    """Development texts of a GLUE task, or the column `text` of a csv file, evenly spread.

    Raises:
        SystemExit: Neither a known task nor a file.
    """
    if task in GLUE:
        examples = load_task(task, data_dir=DATA).splits["validation"].examples
        texts = [
            (example.text,) if example.text_pair is None else (example.text, example.text_pair)
            for example in examples
        ]
    elif Path(task).is_file():
        with Path(task).open(encoding="utf-8", newline="") as file:
            texts = [(row["text"],) for row in csv.DictReader(file)]
    else:
        raise SystemExit(f"--texts is {task!r}, allowed: {', '.join(GLUE)}, or a csv file")
    step = max(1, len(texts) // limit)
    return texts[::step][:limit]


def make_cases(model: Path, texts: Sequence[Text]) -> Cases:
    """Ask the PyTorch model each text; keep those whose answers tell them apart.

    Args:
        model: Directory of a classifier.
        texts: At least one.
    """
    network, tokenizer = load(model), load_tokenizer(model)
    labels = label_names(network) if network.config.task_kind == "text-classification" else ()
    longest = network.config.structure.max_positions
    encoded = [
        tokenizer(*text, truncation=True, max_length=longest, return_token_type_ids=True)
        for text in texts
    ]
    rows = [{name: np.array([item[name]], np.int64) for name in INPUT_NAMES} for item in encoded]
    fixed = _fixed(rows, min(FIXED_LENGTH, longest))
    logits, fixed_logits = _logits(network, rows), _logits(network, fixed)
    kept, kept_fixed = _distinct(logits, labels), _distinct(fixed_logits, labels)
    return Cases(
        fixed=_id_cases([fixed[i] for i in kept_fixed], fixed_logits[kept_fixed]),
        ids=_id_cases([rows[i] for i in kept], logits[kept]),
        text=tuple(_text_case(texts[i], logits[i], labels) for i in kept),
        lengths=tuple(rows[i]["input_ids"].shape[1] for i in kept),
    )


def _fixed(rows: Sequence[Row], length: int) -> list[Row]:
    ids = np.concatenate([row["input_ids"][0] for row in rows])
    ids = np.resize(ids, (max(1, len(ids) // length), 1, length))
    ones, zeros = np.ones((1, length), np.int64), np.zeros((1, length), np.int64)
    return [dict(zip(INPUT_NAMES, (chosen, ones, zeros), strict=True)) for chosen in ids]


@torch.inference_mode()
def _logits(network: torch.nn.Module, rows: Sequence[Row]) -> Floats:
    """Logits (texts, classes), one text at a time."""
    answers = [
        network(**{name: torch.from_numpy(array) for name, array in row.items()}).logits
        for row in rows
    ]
    return torch.cat(answers).numpy()


def _distinct(logits: Floats, labels: Sequence[str]) -> list[int]:
    """Indices of answers that no other kept answer could be mistaken for."""
    answers = _probabilities(logits) if labels else logits
    kept: list[int] = []
    for index, row in enumerate(answers):
        if all(np.abs(row - answers[other]).max() > 10 * TOLERANCE for other in kept):
            kept.append(index)
    return kept


def _probabilities(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _id_cases(rows: Sequence[Row], logits: Floats) -> tuple[Case, ...]:
    return tuple(
        Case(inputs=row, answer={"logits": answer[None]})
        for row, answer in zip(rows, logits, strict=True)
    )


def _text_case(text: Text, logits: Floats, labels: Sequence[str]) -> Case:
    """Labels best first with their probabilities; the raw value for regression."""
    strings = np.array([[part.encode() for part in text]], dtype=np.object_)
    if not labels:
        return Case(inputs={"text": strings}, answer={"scores": logits[None]})
    scores = _probabilities(logits)
    order = np.argsort(-scores, kind="stable")
    names = np.array([[labels[i].encode() for i in order]], dtype=np.object_)
    return Case(inputs={"text": strings}, answer={"labels": names, "scores": scores[order][None]})
