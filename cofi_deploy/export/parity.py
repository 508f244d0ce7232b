"""Does an artifact answer like PyTorch, on real sentences, alone and padded together?

Comes in: the model, its tokenizer and a function that runs the artifact. Goes out: an
`ExportParity`, or an `ExportError` with the numbers. Padding is part of the comparison: a graph
whose mask is wrong agrees perfectly on sentences without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from cofi_deploy.arch import Arch
from cofi_deploy.errors import ExportError
from cofi_deploy.export.numerics import Precision
from cofi_deploy.exports import ExportParity
from cofi_deploy.kinds import TaskKind, is_per_token
from cofi_deploy.model import CofiPreTrainedModel

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = dict[str, Array]
Infer = Callable[[Inputs], Outputs]

# Largest difference of a logit between the artifact and PyTorch. fp32: only the order of sums
# differs, 1e-6 to 1e-5 is usual. fp16 keeps 11 bits: 1e-2 is usual for logits of size 1 to 10; bf16
# keeps 8. int8 is judged by its predictions (`text_parity.py`); here only the broken is refused.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 5e-2, "int8": 1e-1}
# The same, as a share of the largest logit: lossy formats err in proportion. The larger holds.
RELATIVE_TOLERANCE: dict[Precision, float] = {
    "fp32": 0.0,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "int8": 2.5e-1,
}

# Lengths from one word to more than a hundred tokens; the third entry and others are pairs.
SENTENCES: tuple[tuple[str, str | None], ...] = (
    ("Great.", None),
    ("The delivery came two days late and the box was open.", None),
    ("Who wrote the first novel of the series?", "It was written by a teacher in Leeds in 1911."),
    ("I have rarely laughed so much, and my brother, who hates films, even stayed awake.", None),
    ("A man is playing a large flute.", "A man plays the flute in front of two old houses."),
    ("no", "yes"),
    (
        "When the river rose in March, the town closed both bridges, moved four hundred people "
        "to the school on the hill, and asked the army for boats, because the last time, in 1947, "
        "nobody had believed the warnings until the water stood in the cellars of the market "
        "square.",
        "How many people had to leave their homes when the river rose in March, and where were "
        "they taken by the town?",
    ),
    ("Zürich, 3.5 % & <unknown> — 漢字 😀 supercalifragilistic", None),
)

_EXTRA_PADDING = 7  # tokens of padding that even the longest sentence gets


def check_parity(
    infer: Infer,
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    runtime: str,
    precision: Precision,
) -> ExportParity:
    """Compare the artifact behind ``infer`` with ``model``.

    Every sentence is run alone (batch 1, no padding) and all together (padded beyond the longest);
    both answers are compared with PyTorch's answer to the sentence alone.

    Raises:
        ExportError: A logit differs by more than `allowed_difference`, or is not finite.
    """
    rows = encode_sentences(tokenizer, model.arch)
    expected = [torch_outputs(model, batch_of([row])) for row in rows]
    alone = [infer(batch_of([row])) for row in rows]
    width = min(max(len(row[0]) for row in rows) + _EXTRA_PADDING, model.arch.max_positions)
    together = infer(batch_of(rows, pad_to=width, pad_id=model.arch.pad_token_id))
    padded = [_cut(together, index, len(row[0]), model.kind) for index, row in enumerate(rows)]
    largest_alone = largest_difference(expected, alone)
    largest_padded = largest_difference(expected, padded)
    largest = float(np.max([largest_alone, largest_padded]))  # np.max hands NaN on
    tolerance = allowed_difference(expected, precision)
    if not largest <= tolerance:  # NaN is not <= anything
        raise ExportError(
            f"{runtime} differs from PyTorch by up to {largest_alone:.2e} on single sentences and "
            f"{largest_padded:.2e} on padded ones, allowed: {tolerance:.0e}; nothing was written, "
            "report this with the model's config.json"
        )
    return ExportParity(
        max_abs_logit_diff=largest,
        agreement=_agreement(expected, alone + padded, model.kind, tolerance),
        sentences=len(rows),
        runtime=runtime,
        max_abs_padding_diff=largest_difference(alone, padded),
        mean_abs_logit_diff=mean_difference([*expected, *expected], [*alone, *padded]),
    )


def encode_sentences(tokenizer: PreTrainedTokenizerBase, arch: Arch) -> list[tuple[Array, Array]]:
    """Token ids and token types of the built-in sentences, cut to what the model can take.

    Raises:
        ExportError: The tokenizer gives ids that the model has no embedding for.
    """
    rows = []
    for text, pair in SENTENCES:
        encoded = tokenizer(text, pair, return_token_type_ids=True, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)[: arch.max_positions]
        types = np.asarray(encoded["token_type_ids"], dtype=np.int64)[: arch.max_positions]
        if ids.max() >= arch.vocab_size or types.max() >= arch.token_types:
            raise ExportError(
                f"the tokenizer gives token id {ids.max()} and token type {types.max()}, but the "
                f"model has {arch.vocab_size} ids and {arch.token_types} types; "
                "the tokenizer files belong to another model"
            )
        rows.append((ids, types))
    return rows


def warmup_inputs(tokenizer: PreTrainedTokenizerBase, arch: Arch, length: int) -> dict[str, Array]:
    """One row (1, length) of real token ids, without padding, to warm a server up with."""
    rows = encode_sentences(tokenizer, arch)
    ids = np.concatenate([row[0] for row in rows])
    types = np.concatenate([row[1] for row in rows])
    repeats = -(-length // len(ids))
    return batch_of([(np.tile(ids, repeats)[:length], np.tile(types, repeats)[:length])])


def batch_of(
    rows: Sequence[tuple[Array, Array]], *, pad_to: int | None = None, pad_id: int = 0
) -> dict[str, Array]:
    """Rows of ids and types as inputs (batch, sequence), padded to the longest or to ``pad_to``."""
    length = pad_to or max(len(ids) for ids, _ in rows)
    inputs = {
        "input_ids": np.full((len(rows), length), pad_id, dtype=np.int64),
        "attention_mask": np.zeros((len(rows), length), dtype=np.int64),
        "token_type_ids": np.zeros((len(rows), length), dtype=np.int64),
    }
    for index, (ids, types) in enumerate(rows):
        inputs["input_ids"][index, : len(ids)] = ids
        inputs["attention_mask"][index, : len(ids)] = 1
        inputs["token_type_ids"][index, : len(ids)] = types
    return inputs


def torch_outputs(model: CofiPreTrainedModel, inputs: Inputs) -> Outputs:
    """What an artifact is compared with."""
    with torch.inference_mode():
        outputs = model.outputs({name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _cut(outputs: Outputs, index: int, length: int, kind: TaskKind) -> Outputs:
    """One row of a padded batch, without its padding."""
    rows = {name: array[index : index + 1] for name, array in outputs.items()}
    return {name: row[:, :length] for name, row in rows.items()} if is_per_token(kind) else rows


def mean_difference(expected: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Mean absolute difference over all logits; NaN when any output is not a number."""
    differences = [
        np.abs(row[name] - other[name].astype(np.float32)).ravel()
        for row, other in zip(expected, got, strict=True)
        for name in row
    ]
    return float(np.concatenate(differences).mean(dtype=np.float64))


def largest_difference(expected: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Largest absolute difference of a logit; NaN when any output is not a number."""
    differences = [
        np.abs(row[name] - other[name].astype(np.float32)).max()
        for row, other in zip(expected, got, strict=True)
        for name in row
    ]
    return float(np.max(differences))  # np.max hands NaN on


def allowed_difference(expected: Sequence[Outputs], precision: Precision) -> float:
    """How far a logit may be from ``expected``: the larger of the two tolerances."""
    return max(TOLERANCE[precision], RELATIVE_TOLERANCE[precision] * largest_value(expected))


def largest_value(outputs: Sequence[Outputs]) -> float:
    """Largest absolute logit."""
    return float(max(np.abs(array).max() for row in outputs for array in row.values()))


def _agreement(
    expected: Sequence[Outputs], got: Sequence[Outputs], kind: TaskKind, tolerance: float
) -> float:
    """Share of equal predictions; for regression, of values within the tolerance."""
    twice = [*expected, *expected]
    same = [
        is_same_answer(row, other, kind, tolerance) for row, other in zip(twice, got, strict=True)
    ]
    return sum(same) / len(same)


def is_same_answer(expected: Outputs, got: Outputs, kind: TaskKind, tolerance: float) -> bool:
    """Equal predictions; for regression, values within ``tolerance`` of each other."""
    return all(_same(expected[name], got[name], kind, tolerance) for name in expected)


def _same(expected: Array, got: Array, kind: TaskKind, tolerance: float) -> bool:
    if kind == "text-regression":
        return bool(np.abs(expected - got).max() <= tolerance)
    return bool(np.array_equal(expected.argmax(axis=-1), got.argmax(axis=-1)))
