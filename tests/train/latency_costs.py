"""A latency table of a tiny model by a made-up clock, and gates to be cut at a speedup."""

from __future__ import annotations

import torch

from cofi_deploy.api.latency_tables import measure_table
from cofi_deploy.arch import DenseShape
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import FAMILIES
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.latency_table import LatencyCost
from tests.builders import dense_arch
from tests.made_up_clock import MadeUpClock

SHAPE = DenseShape(layers=4, hidden=32, heads=4, ffn=256, head_size=8)
DENSE = dense_arch(SHAPE)


def cost_of(kind: TaskKind = "text-classification") -> LatencyCost:
    table = measure_table(
        DENSE, kind, MadeUpClock(kind), point="onnxruntime-cpu@1x128", threads=2, key={}
    )
    return LatencyCost(table, SHAPE)


COST = cost_of()


def random_gates(seed: int, mean: float = 0.0, deviation: float = 2.0) -> HardConcreteGates:
    gates = HardConcreteGates(SHAPE, init=dict.fromkeys(FAMILIES, 0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in gates.log_alpha.values():
            value.copy_(mean + deviation * torch.randn(value.shape, generator=generator))
    gates.clamp()
    return gates
