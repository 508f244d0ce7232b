"""A clock that knows no time: milliseconds by formula, so that nothing depends on the machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cofi_deploy.arch import Arch
from cofi_deploy.kinds import TaskKind, is_per_token
from cofi_deploy.serve.conditions import Load
from cofi_deploy.serve.latency import Samples

BASE_MS, HIDDEN_MS = 0.05, 0.001
ATTENTION_MS, HEAD_MS = 0.02, 0.004  # of a sublayer at all; of a head and a hidden dimension
FFN_MS, UNIT_MS = 0.01, 0.0005
ROUNDS = 24


def made_up_ms(arch: Arch, kind: TaskKind = "text-classification") -> float:
    """Bilinear in the sizes; behind the last attention a tenth of the products."""
    last = len(arch.layers) if is_per_token(kind) else arch.last_attention
    total = BASE_MS + HIDDEN_MS * arch.hidden
    for index, layer in enumerate(arch.layers):
        products = 1.0 if index < last else 0.1
        if layer.heads:
            total += ATTENTION_MS + products * HEAD_MS * layer.heads * arch.hidden
        if layer.ffn:
            total += FFN_MS + products * UNIT_MS * layer.ffn * arch.hidden
    return total


def load(others_cores: float, *, cores: int = 2) -> Load:
    """What others do meanwhile, for half a minute."""
    return Load(
        window_s=30.0,
        cores=cores,
        own_cores=cores - others_cores,
        others_cores=others_cores,
        stolen_cores=0.0,
        switches_per_s=0.0,
    )


class MadeUpClock:
    """Times structures in turn; whole models take ``factor`` times what their parts add up to."""

    def __init__(
        self,
        kind: TaskKind = "text-classification",
        *,
        factor: float = 1.0,
        others_cores: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.kind = kind
        self.factor = factor
        self.load = load(others_cores)
        self.noise = noise
        self.timed: list[Arch] = []
        self._rng = np.random.default_rng(0)

    def __call__(self, archs: Mapping[str, Arch]) -> Samples:
        ms = {}
        for name, arch in archs.items():
            self.timed.append(arch)
            whole = self.factor if len(arch.layers) > 2 and not arch.is_dense else 1.0
            spent = np.full(ROUNDS, whole * made_up_ms(arch, self.kind))
            ms[name] = spent * (1.0 + self.noise * self._rng.standard_normal(ROUNDS))
        return Samples(ms=ms, load=self.load)
