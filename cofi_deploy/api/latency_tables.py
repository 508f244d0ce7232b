"""Latency tables: what every kept size costs where the model will be served, before training.

Comes in: the dense model's `Arch` and something that times structures in turn. Goes out: a
`LatencyTable`, whose sublayers are differences between models that differ in one sublayer, and
whose sum was held against whole models. Next file: `speedup.py`, which exports and times for real.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cofi_deploy.arch import Arch, LayerArch
from cofi_deploy.errors import BudgetError
from cofi_deploy.kinds import TaskKind, is_per_token
from cofi_deploy.masks import FAMILIES
from cofi_deploy.serve.latency import Samples
from cofi_deploy.targets import Target
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.latency_table import LatencyCost, LatencyTable, SublayerTable
from cofi_deploy.train.projection import masks_at_target

logger = logging.getLogger(__name__)

TimeInTurn = Callable[[Mapping[str, Arch]], Samples]

# Shares of the dense sizes. Products of sizes are bilinear, so that few points will do.
_HIDDEN = (1 / 16, 1 / 4, 1 / 2, 1.0)
_HEADS = (0.0, 1 / 3, 1.0)  # 0: a single one
_FFN = (0.0, 1 / 16, 1 / 4, 1.0)
# A table of words is looked up, not multiplied: a short one does, and is written fast.
_WORDS = 2048
_DENSE = "dense"
_BASE = "no sublayer"

# Whole models that the table is held against: means of the hidden gates of random students, which
# keep all of the residual stream, most of it, or what chance leaves.
_HIDDEN_MEANS = (4.0, 2.0, 0.0)
_DEVIATION = 2.0


def measure_table(
    arch: Arch,
    kind: TaskKind,
    time_in_turn: TimeInTurn,
    *,
    point: str,
    threads: int,
    key: Mapping[str, Any],
) -> LatencyTable:
    """Time one sublayer of every size at every width, and the dense model.

    Args:
        arch: Of the dense model.
        kind: Of the task; decides whether the end of a graph computes the first token alone.
        time_in_turn: Times structures, by name, interleaved.
        point: The operating point as typed.
        threads: Of one inference.
        key: What the times depend on.
    """
    dense = arch.dense
    hidden = _sizes(dense.hidden, _HIDDEN)
    heads, units = _sizes(dense.heads, _HEADS), _sizes(dense.ffn, _FFN)
    base: list[float] = []
    attention: list[list[tuple[float, float]]] = []
    ffn: list[list[tuple[float, float]]] = []
    for width in hidden:
        logger.info("timing sublayers of hidden size %d at %s", width, point)
        structures = dict(_structures(arch, width, heads, units))
        ms = _quiet(time_in_turn(structures))
        base.append(ms[_BASE])
        attention.append([_attention_ms(ms, size) for size in heads])
        ffn.append([_ffn_ms(ms, size, heads[0]) for size in units])
    dense_ms = _medians(time_in_turn({_DENSE: arch}))[_DENSE]
    return LatencyTable(
        point=point,
        threads=threads,
        key=key,
        hidden=hidden,
        base_ms=tuple(np.maximum.accumulate(base).tolist()),
        attention=_sublayers(heads, attention, kind),
        ffn=_sublayers(units, ffn, kind),
        dense_ms=dense_ms,
    )


def held_against_models(
    table: LatencyTable, arch: Arch, targets: Sequence[Target], time_in_turn: TimeInTurn
) -> LatencyTable:
    """Scale a table so that it foretells whole models of random structure.

    A sublayer by itself has the caches for itself, and a whole model calls more kernels; the
    ratio is about the same for all models of a speed, and measured at the speeds asked for.
    """
    cost = LatencyCost(table, arch.dense)
    foretold: dict[str, float] = {}
    structures: dict[str, Arch] = {_DENSE: arch}
    for target in targets:
        for number, mean in enumerate(_HIDDEN_MEANS):
            try:
                masks = masks_at_target(_random_gates(arch, mean, number), target.share, cost)
            except BudgetError:
                continue
            name = f"{target.name}, hidden gates around {mean:g}"
            structures[name], foretold[name] = masks.arch(arch), cost.kept(masks)
    if not foretold:
        return table
    ms = _medians(time_in_turn(structures))
    ratios = {name: ms[name] / expected for name, expected in foretold.items()}
    scale = float(np.median(list(ratios.values())))
    logger.info("whole models take %.2f times what the table adds up to", scale)
    return replace(
        table,
        scale=table.scale * scale,
        dense_ms=ms[_DENSE],
        notes={**table.notes, "whole_models_over_table": ratios},
    )


def _sizes(largest: int, shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(share * largest)) for share in shares}))


def _structures(
    arch: Arch, width: int, heads: Sequence[int], units: Sequence[int]
) -> Iterator[tuple[str, Arch]]:
    """Models of at most two layers that are left, named by what is in them, in order."""
    yield _BASE, _of(arch, width)
    for size in heads:
        attention = LayerArch(heads=size, ffn=0)
        yield _name("attention", size), _of(arch, width, attention)
        yield _name("attention twice", size), _of(arch, width, attention, attention)
    last = LayerArch(heads=heads[0], ffn=0)
    for size in units:
        ffn = LayerArch(heads=0, ffn=size)
        yield _name("FFN before attention", size), _of(arch, width, ffn, last)
        yield _name("FFN behind attention", size), _of(arch, width, last, ffn)


def _name(what: str, size: int) -> str:
    return f"{what}, {size}"


def _of(arch: Arch, width: int, *layers: LayerArch) -> Arch:
    """A model of these layers, and of as many empty ones as make two."""
    empty = LayerArch(heads=0, ffn=0)
    padded = (*layers, *(empty for _ in range(2 - len(layers))))
    return replace(
        arch,
        vocab_size=min(arch.vocab_size, max(_WORDS, arch.pad_token_id + 1)),
        hidden=width,
        layers=padded,
        dense=replace(arch.dense, layers=2),
    )


def _attention_ms(ms: Mapping[str, float], size: int) -> tuple[float, float]:
    """For all tokens, and where only the first goes on."""
    one, two = ms[_name("attention", size)], ms[_name("attention twice", size)]
    return two - one, one - ms[_BASE]


def _ffn_ms(ms: Mapping[str, float], size: int, heads: int) -> tuple[float, float]:
    """For all tokens, and behind the last attention."""
    without = ms[_name("attention", heads)]
    before, behind = (ms[_name(f"FFN {place} attention", size)] for place in ("before", "behind"))
    return before - without, behind - without


def _sublayers(
    sizes: tuple[int, ...], rows: Sequence[Sequence[tuple[float, float]]], kind: TaskKind
) -> SublayerTable:
    everything = tuple(tuple(pair[0] for pair in row) for row in rows)
    first = tuple(tuple(pair[1] for pair in row) for row in rows)
    if is_per_token(kind):
        # All tokens are computed everywhere, so that both differences are of the same thing.
        pairs = zip(everything, first, strict=True)
        everything = first = tuple(
            tuple((one + other) / 2 for one, other in zip(*pair, strict=True)) for pair in pairs
        )
    return SublayerTable(sizes=sizes, all_ms=everything, first_ms=first).monotone()


def _random_gates(arch: Arch, hidden_mean: float, seed: int) -> HardConcreteGates:
    """Gates as training might leave them."""
    gates = HardConcreteGates(arch.dense, init=dict.fromkeys(FAMILIES, 0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in gates.log_alpha.items():
            mean = hidden_mean if name == "hidden" else 0.0
            value.copy_(mean + _DEVIATION * torch.randn(value.shape, generator=generator))
    gates.clamp()
    return gates


def _quiet(samples: Samples) -> dict[str, float]:
    """Lower quartiles: neighbours only ever add, and small differences drown in what they add."""
    return {name: float(np.percentile(spent, 25)) for name, spent in samples.ms.items()}


def _medians(samples: Samples) -> dict[str, float]:
    return {name: float(np.median(durations)) for name, durations in samples.ms.items()}
