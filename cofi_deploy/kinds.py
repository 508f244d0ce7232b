"""The four kinds of task, and the tensors that a model of each kind takes and gives."""

from __future__ import annotations

from typing import Literal, get_args

TaskKind = Literal[
    "text-classification", "text-regression", "token-classification", "question-answering"
]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def output_names(kind: TaskKind) -> tuple[str, ...]:
    """Names of the model's outputs, the same in PyTorch and in every runtime."""
    if kind == "question-answering":
        return ("start_logits", "end_logits")
    return ("logits",)


def is_per_token(kind: TaskKind) -> bool:
    """True when the outputs have a sequence axis after the batch axis."""
    return kind in {"token-classification", "question-answering"}
