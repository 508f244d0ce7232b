"""The same function in weights that leave fewer operations over.

Where a runtime adds each bias in an operation of its own, as ONNX Runtime does on a CPU, these and
the scale of attention take up to a tenth of a small model's time. So what softmax takes away again
is left out, and what other weights can hold is put there. Used by `graph.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from cofi_deploy.arch import Arch
from cofi_deploy.export.centring import centred, states_of
from cofi_deploy.export.quantized import Array

# What a LayerNorm gives is of size 1 to 10: a shift far beyond it would cost digits. Biases of
# trained encoders were seen to reach 1.0.
_LARGEST_SHIFT = 4.0


def with_fewer_operations(
    weights: Mapping[str, Array], arch: Arch, *, merge_biases: bool
) -> dict[str, Array]:
    """Weights of the same function: what is not in it needs no operation.

    The scale of attention is in the query's map. The bias of the key is left out: it adds the same
    to all scores of a query, which softmax takes away.

    Args:
        weights: fp32, by the model's names; they are not changed.
        arch: Whose weights they are.
        merge_biases: Leave out the last bias of each sublayer, too, and of attention that of the
            value: the state that they are added to is shifted by them, see `centring.py`.
    """
    found = _without_last_biases(weights, arch) if merge_biases else dict(weights)
    for index, layer in enumerate(arch.layers):
        if layer.heads:
            module = f"encoder.layers.{index}.attention"
            for name in (f"{module}.query.weight", f"{module}.query.bias"):
                found[name] = found[name] / math.sqrt(arch.head_size)
            del found[f"{module}.key.bias"]
    return found


def _without_last_biases(weights: Mapping[str, Array], arch: Arch) -> dict[str, Array]:
    centres: dict[str, Array] = {}
    idle: list[str] = []
    for state in states_of(arch):
        last = f"{state.adder}.bias"
        values = [reader for reader in state.readers if reader.endswith(".value")]
        both = _shift_for_both(weights, state.adder, values[0]) if values else None
        centre = -weights[last] if both is None else both
        if np.abs(centre).max() > _LARGEST_SHIFT:
            continue
        centres[state.writer] = centre
        idle += [last] if both is None else [last, f"{values[0]}.bias"]
    shifted = centred(weights, arch, centres)
    return {name: array for name, array in shifted.items() if name not in idle}


def _shift_for_both(weights: Mapping[str, Array], output: str, value: str) -> Array | None:
    """By how much less a state must be for attention to need no bias of values and of the output.

    A shift ``c`` adds ``V c`` to values and ``c`` to the sum behind the output, so that it must be
    ``O (b_v + V c) + b_o + c = 0``. None where it would cost digits: close to singular.
    """
    outputs = weights[f"{output}.weight"].astype(np.float64)
    bias = weights[f"{output}.bias"] + outputs @ weights[f"{value}.bias"]
    system = np.eye(len(bias)) + outputs @ weights[f"{value}.weight"]
    try:
        shift = np.linalg.solve(system, -bias)
    except np.linalg.LinAlgError:
        return None
    is_small = np.abs(shift).max() <= _LARGEST_SHIFT  # false for NaN
    return shift.astype(np.float32) if is_small else None


def idle_biases(arch: Arch) -> frozenset[str]:
    """Names of the biases that a graph may be without."""
    of_attention = (
        f"encoder.layers.{index}.attention.{part}.bias"
        for index, layer in enumerate(arch.layers)
        for part in ("key", "value")
        if layer.heads
    )
    return frozenset(of_attention) | {f"{state.adder}.bias" for state in states_of(arch)}
