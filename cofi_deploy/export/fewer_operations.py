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
        merge_biases: Leave out the last bias of each sublayer, too: the state that it is added to
            is shifted by it, see `centring.py`.
    """
    found = dict(weights)
    if merge_biases:
        biases = {state.writer: f"{state.adder}.bias" for state in states_of(arch)}
        biases = {
            writer: name
            for writer, name in biases.items()
            if np.abs(weights[name]).max() <= _LARGEST_SHIFT
        }
        found = centred(found, arch, {writer: -weights[name] for writer, name in biases.items()})
        for name in biases.values():
            del found[name]
    for index, layer in enumerate(arch.layers):
        if layer.heads:
            module = f"encoder.layers.{index}.attention"
            for name in (f"{module}.query.weight", f"{module}.query.bias"):
                found[name] = found[name] / math.sqrt(arch.head_size)
            del found[f"{module}.key.bias"]
    return found


def idle_biases(arch: Arch) -> frozenset[str]:
    """Names of the biases that a graph may be without."""
    keys = (
        f"encoder.layers.{index}.attention.key.bias"
        for index, layer in enumerate(arch.layers)
        if layer.heads
    )
    return frozenset(keys) | {f"{state.adder}.bias" for state in states_of(arch)}
