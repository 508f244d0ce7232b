"""A student before its first step: weights, gates, projection and multipliers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import set_seed

from cofi_deploy.arch import Arch
from cofi_deploy.loading import load_dense
from cofi_deploy.train.distill import LayerProjection
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.lagrangian import Lagrangian
from cofi_deploy.train.stages import Setup, Student


def new_student(source: Path | str, arch: Arch, setup: Setup) -> Student:
    """The same student for the same seed, whatever was drawn before.

    Args:
        source: Dense checkpoint that its weights are taken from.
        arch: Of the teacher; the gates get its sizes.
        setup: The run.
    """
    s, place = setup.settings, setup.numerics.place
    set_seed(s.seed)
    model = load_dense(source, setup.task.kind, labels=setup.task.labels, dropout=s.dropout)
    # On the CPU generator, so that gates and masks do not depend on the device.
    generator = torch.Generator().manual_seed(s.seed)
    init = dict.fromkeys(("hidden", "heads", "attn_block", "ffn_block"), s.gate_init)
    gates = HardConcreteGates(
        arch.dense,
        init={**init, "ffn": s.gate_init_ffn},
        families=s.mask_families,
        generator=generator,
    )
    gates.clamp()
    return Student(
        model=place(model),
        projection=place(LayerProjection(arch.hidden)),
        gates=place(gates),
        lagrangian=place(Lagrangian()),
        generator=torch.Generator(setup.numerics.device).manual_seed(s.seed),
    )
