"""Which settings of `train` are refused: ranges, and combinations that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cofi_deploy.errors import did_you_mean
from cofi_deploy.masks import FAMILIES

_POSITIVE = (
    "batch_size",
    "teacher_lr",
    "student_lr",
    "finetune_lr",
    "temperature",
    "max_grad_norm",
    "teacher_layers",
    "evaluations",
)
_NOT_NEGATIVE = (
    "max_length",
    "teacher_epochs",
    "distill_epochs",
    "warmup_epochs",
    "prune_epochs",
    "finetune_epochs",
    "gate_lr",
    "multiplier_lr",
    "weight_decay",
    "prediction_weight",
    "layer_weight",
    "label_weight",
    "cache_gib",
    "checkpoint_seconds",
    "train_limit",
    "validation_limit",
)
BUDGETS = ("sparsities", "speedups")
_FRACTIONS = ("lr_warmup", "dropout", "teacher_dropout")
_MAX_SEED = 2**32 - 1  # numpy's


def problems_of(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings by name, a sentence for each; their types are right already."""
    yield from _number_problems(values)
    yield from _budget_problems(values)
    if not values["mask_families"]:
        yield f"mask_families is empty, allowed: one or more of {', '.join(FAMILIES)}"
    for name in values["mask_families"]:
        if name not in FAMILIES:
            yield f"unknown mask family {name!r}, {did_you_mean(name, FAMILIES)}"
    if values["prediction_weight"] + values["layer_weight"] + values["label_weight"] <= 0:
        yield "prediction_weight, layer_weight and label_weight are all 0: nothing to learn from"
    if values["warmup_epochs"] + values["prune_epochs"] <= 0:
        yield "warmup_epochs and prune_epochs are both 0: nothing would be pruned"


def _budget_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name in BUDGETS:
        given = list(values[name])
        if given != sorted(set(given)):
            yield f"{name} is {given}, expected ascending without repeats"
    sparsities, speedups = list(values["sparsities"]), list(values["speedups"])
    if sparsities and speedups:
        yield f"sparsities is {sparsities} and speedups is {speedups}, allowed: one of them"
    if (not sparsities and not speedups) or any(not 0 < value < 1 for value in sparsities):
        yield f"sparsities is {sparsities}, allowed: one or more between 0 and 1"
    if any(not 1 < value < math.inf for value in speedups):
        yield f"speedups is {speedups}, allowed: numbers above 1, such as 10"
    if bool(speedups) != bool(values["speedup_for"]):
        yield (
            f"speedups is {speedups} and speedup_for is {values['speedup_for']!r}, allowed: both, "
            "such as --speedup 10 --for onnxruntime-cpu@1x128, or neither"
        )


def _number_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} is {value!r}, allowed: a finite number"
        elif name in _POSITIVE and not value > 0:
            yield f"{name} is {value!r}, allowed: above 0"
        elif name in _NOT_NEGATIVE and not value >= 0:
            yield f"{name} is {value!r}, allowed: 0 or more"
        elif name in _FRACTIONS and not 0 <= value < 1:
            yield f"{name} is {value!r}, allowed: 0 up to but not 1"
        elif name == "seed" and not 0 <= value <= _MAX_SEED:
            yield f"seed is {value!r}, allowed: 0 to {_MAX_SEED}"
