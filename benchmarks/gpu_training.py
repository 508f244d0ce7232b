"""How fast the steps of training are on random tokens: prune, and fine-tune what was cut.

The stages are those of `train` itself, on BERT-base with random weights and a cached teacher. A
pruning step is timed where it is slowest: at its beginning, when nothing is pruned yet.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import source_tree  # noqa: F401 - makes the tree below importable
import torch
from paper_archs import LABELS, random_model

from cofi_deploy.arch import Arch
from cofi_deploy.config import TrainSettings
from cofi_deploy.targets import Target
from cofi_deploy.tasks import EncodedSplit
from cofi_deploy.tasks.encoding import offsets_of
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.distill import LayerProjection, teacher_layers
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.lagrangian import Lagrangian
from cofi_deploy.train.loop import Stage, run_stage
from cofi_deploy.train.precision import Numerics
from cofi_deploy.train.stages import Setup, Student, finetune_stage, prune_stages
from cofi_deploy.train.teacher import CachedTeacher, LiveTeacher, build_cache

# MNLI's pairs in bert-base-uncased's tokens: the logarithms of the lengths of every 80th training
# pair have this mean and deviation; the longest are cut as training cuts them.
MEDIAN_TOKENS, DEVIATION = 34.5, 0.48
SHORTEST, LONGEST = 8, 128
LENGTHS = (
    f"log-normal, median {MEDIAN_TOKENS:g} tokens, deviation {DEVIATION:g}, cut to {SHORTEST} to "
    f"{LONGEST}: as MNLI's sentence pairs"
)
BATCH_SIZE = 32
_TARGET = Target("sparsity", 0.95)
_WARMUP_STEPS = 5
_STEPS_AT_ONCE = 10
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def training_rows(
    archs: Mapping[str, Arch],
    precision: str,
    device: torch.device,
    *,
    seconds: float,
    examples: int = 1024,
) -> list[dict[str, Any]]:
    """One row for pruning the dense model, one for fine-tuning the structure at 95 %.

    Args:
        archs: As `paper_archs.structures`.
        precision: `fp32`, `bf16` or `fp16`: the type of matrix products under autocast.
        device: Where.
        seconds: Of timing for each row.
        examples: Of random tokens; they come again and again.
    """
    numerics = Numerics(device, _PRECISIONS[precision])
    setup = _setup(numerics, random_split(archs["dense"].vocab_size, examples))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        teacher, cache_s = _cached_teacher(setup, archs["dense"], Path(folder) / "cache")
        for name, make in _STAGES.items():
            model = {"prune": "dense", "finetune": "mean-s95"}[name]
            stage = make(setup, archs[model], teacher)
            row = _timed(stage, Path(folder) / "checkpoint", device, seconds)
            rows.append(
                {
                    "task": "random tokens",
                    "examples": examples,
                    "stage": name,
                    "model": model,
                    "target_sparsity": 0.95,
                    "realized_sparsity": archs[model].sparsity,
                    "runtime": "torch",
                    "precision": precision,
                    "device": device.type,
                    "batch_size": BATCH_SIZE,
                    "teacher_cache_s": cache_s,
                    **row,
                }
            )
    return rows


def random_split(vocabulary: int, examples: int) -> EncodedSplit:
    """Random tokens with the lengths of `LENGTHS`, and random labels."""
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(np.log(MEDIAN_TOKENS), DEVIATION, examples))
    lengths = np.clip(drawn.round().astype(np.int64), SHORTEST, LONGEST)
    total = int(lengths.sum())
    return EncodedSplit(
        name="train",
        examples=(),
        input_ids=rng.integers(1, vocabulary, total).astype(np.int32),
        token_type_ids=np.zeros(total, dtype=np.int8),
        offsets=offsets_of(lengths.tolist()),
        pad_token_id=0,
        targets={"labels": rng.integers(0, len(LABELS), examples)},
    )


def _setup(numerics: Numerics, encoded: EncodedSplit) -> Setup:
    settings = TrainSettings(
        batch_size=BATCH_SIZE, max_length=LONGEST, evaluations=1, sparsities=(_TARGET.value,)
    )
    return Setup(
        task=SimpleNamespace(kind="text-classification", labels=LABELS),
        settings=settings,
        numerics=numerics,
        batches=Batches(encoded, batch_size=BATCH_SIZE, seed=0, device=numerics.device),
        selection=encoded,
    )


def _cached_teacher(setup: Setup, arch: Arch, directory: Path) -> tuple[CachedTeacher, float]:
    """The teacher's answers on disk, and the seconds that they took."""
    began = time.perf_counter()
    model = setup.numerics.place(random_model(arch))
    live = LiveTeacher(model, teacher_layers(len(arch.layers), setup.settings.teacher_layers))
    encoded, device = setup.batches.encoded, setup.numerics.device
    build_cache(live, encoded, directory, key="random", device=device, advance=lambda _: None)
    return CachedTeacher(directory, encoded, device), time.perf_counter() - began


def _prune(setup: Setup, arch: Arch, teacher: CachedTeacher) -> Stage:
    s, place = setup.settings, setup.numerics.place
    init = dict.fromkeys(("hidden", "heads", "attn_block", "ffn_block"), s.gate_init)
    gates = HardConcreteGates(
        arch.dense,
        init={**init, "ffn": s.gate_init_ffn},
        families=s.mask_families,
        generator=torch.Generator().manual_seed(0),
    )
    gates.clamp()
    student = Student(
        model=place(random_model(arch)),
        projection=place(LayerProjection(arch.hidden)),
        gates=place(gates),
        lagrangian=place(Lagrangian()),
        generator=torch.Generator(setup.numerics.device).manual_seed(0),
    )
    (stage,) = prune_stages(setup, student, teacher).values()
    return stage


def _finetune(setup: Setup, arch: Arch, teacher: CachedTeacher) -> Stage:
    place = setup.numerics.place
    projection = place(LayerProjection(arch.hidden))
    return finetune_stage(setup, place(random_model(arch)), projection, teacher, target=_TARGET)


_STAGES: dict[str, Callable[[Setup, Arch, CachedTeacher], Stage]] = {
    "prune": _prune,
    "finetune": _finetune,
}


class _Silent:
    """Takes the place of a progress bar."""

    def start(self, *_: Any, **__: Any) -> None:
        pass

    log = advance = start


def _timed(stage: Stage, checkpoint: Path, device: torch.device, seconds: float) -> dict[str, Any]:
    """Steps for so many seconds, ten at once; scoring and checkpoints are left out."""

    def steps(count: int) -> None:
        some = dataclasses.replace(stage, steps=count, evaluate=dict, keep_best=False)
        run_stage(some, checkpoint, _Silent(), interval_s=float("inf"))

    on_gpu = device.type == "cuda"
    steps(_WARMUP_STEPS)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < seconds:
        steps(_STEPS_AT_ONCE)
        done += _STEPS_AT_ONCE
    if on_gpu:
        torch.cuda.synchronize()
    wall_s = time.perf_counter() - began
    row: dict[str, Any] = {
        "steps": done,
        "wall_s": wall_s,
        "sequences_per_s": done * BATCH_SIZE / wall_s,
    }
    if on_gpu:
        row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return row
