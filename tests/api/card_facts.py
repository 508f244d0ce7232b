"""A run, one of its models and what `verify` found of it, as far as model cards read them."""

from __future__ import annotations

from typing import Any

from cofi_deploy.api.card_verified import Verified
from cofi_deploy.api.model_card import model_card
from cofi_deploy.arch import LayerArch
from cofi_deploy.kinds import TaskKind
from tests.builders import dense_arch

PRUNED = dense_arch(
    hidden=22,
    layers=(LayerArch(heads=2, ffn=7), LayerArch(heads=0, ffn=0), LayerArch(heads=1, ffn=3)),
)
WIDER = dense_arch(layers=(LayerArch(heads=2, ffn=9),) * 3)
RUN: dict[str, Any] = {
    "task": {"name": "mrpc", "data": None},
    "model": "/models/all: MiniLM",
    "teacher": None,
    "recipe": "fast",
    "precision": "bf16",
    "settings": {
        "seed": 7,
        "sparsities": [0.9],
        "batch_size": 32,
        "teacher_epochs": 3.0,
        "distill_epochs": 0.0,
        "warmup_epochs": 4.0,
        "prune_epochs": 0.5,
        "finetune_epochs": 8.0,
        "train_limit": 0,
    },
    "stages": {
        "teacher": {"seconds": 90.0, "samples_per_s": 61.7, "metric": 0.9},
        "prune-0.9": {"seconds": 1200.0, "samples_per_s": 55.2, "metric": 0.8},
    },
    "data_fingerprint": "0123456789abcdef" * 4,
    "versions": {"cofi-deploy": "0.1.0", "torch": "2.13.0+cpu"},
    "machine": {"cpu": "Some CPU", "cores": 2, "gpu": None},
    "wall_s": 1800.0,
    "result": {
        "metric_name": "f1",
        "examples": 1408,
        "teacher": {
            "metric": 0.87654,
            "f1": 0.87654,
            "accuracy": 0.85432,
            "encoder_parameters": 10_640_640,
            "parameters": 22_713_986,
        },
    },
}
MODEL: dict[str, Any] = {
    "metric": 0.81236,
    "f1": 0.81236,
    "accuracy": 0.78941,
    "target_sparsity": 0.9,
    "realized_sparsity": 0.90012,
    "encoder_parameters": 1_062_787,
    "parameters": 12_345_678,
}
VERIFIED = Verified(
    test={"difference": -0.0642, "low": -0.0811, "high": -0.0493}
    | {"runtime": "torch", "examples": 1408},
    latency=(
        {"runtime": "openvino", "precision": "fp32", "batch_size": 1, "seq_len": 128}
        | {"threads": 2, "dense_p50_ms": 13.41, "p50_ms": 1.987}
        | {"speedup": 6.749, "speedup_low": 6.5, "speedup_high": 7.0},
        {"runtime": "torch", "precision": "fp32", "batch_size": 32, "seq_len": "task"}
        | {"threads": 2, "dense_p50_ms": 449.0, "p50_ms": 64.0, "speedup": None},
    ),
    machine={"cpu": "Other CPU", "cores": 8, "gpu": None},
    created="2026-11-26T10:00:00+00:00",
)


def card(
    kind: TaskKind = "text-classification", verified: Verified | None = None, **changes: Any
) -> str:
    run = {**RUN, **changes}
    return model_card(run, MODEL, kind=kind, arch=PRUNED, base=dense_arch(), verified=verified)
