"""States around zero: exact shifts that make the steps of int8 finer, and cost nothing.

A few channels of BERT's states are far from zero in every token. One range for all channels must
reach them, which makes its steps coarse for the others. So the map that writes a state takes the
middle of each channel's range away in its bias, and those who read the state give it back in
theirs: the same function in other numbers. Used by `graph.py`; what the middles are is found in
`lossy.py`.

Source:
    Wei et al. 2023, Outlier Suppression+ (arXiv:2304.09145), section 4.1: channel-wise shifting.
    A residual stream adds one more reader, the addition behind each sublayer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cofi_deploy.arch import Arch
from cofi_deploy.export.quantized import Array


@dataclass(frozen=True, kw_only=True)
class State:
    """What one sublayer reads, by the modules around it.

    Attributes:
        writer: Its bias is added to the state last: a LayerNorm, or the map behind narrow
            embeddings.
        readers: Linear maps of the state.
        adder: The linear map whose result the state is added to.
    """

    writer: str
    readers: tuple[str, ...]
    adder: str


def states_of(arch: Arch) -> Iterator[State]:
    """Every state that a sublayer reads, in their order; the head's is not among them."""
    writer = "encoder.embeddings.norm" if arch.embedding is None else "encoder.embeddings.project"
    for index, layer in enumerate(arch.layers):
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.ffn"
        if layer.heads:
            readers = tuple(f"{attention}.{part}" for part in ("query", "key", "value"))
            yield State(writer=writer, readers=readers, adder=f"{attention}.output")
            writer = f"{attention}.norm"
        if layer.ffn:
            yield State(writer=writer, readers=(f"{ffn}.up",), adder=f"{ffn}.down")
            writer = f"{ffn}.norm"


def centred(
    weights: Mapping[str, Array], arch: Arch, centres: Mapping[str, Array]
) -> dict[str, Array]:
    """Weights of the same function, whose states are less by their centres.

    Args:
        weights: fp32, by the model's names; they are not changed.
        arch: Whose weights they are.
        centres: (hidden,) by the state's writer; states without one stay as they are.
    """
    moved = dict(weights)
    for state in states_of(arch):
        centre = centres.get(state.writer)
        if centre is None:
            continue
        for reader in state.readers:
            back = weights[f"{reader}.weight"] @ centre  # (outputs,)
            moved[f"{reader}.bias"] = moved[f"{reader}.bias"] + back
        moved[f"{state.writer}.bias"] = moved[f"{state.writer}.bias"] - centre
        moved[f"{state.adder}.bias"] = moved[f"{state.adder}.bias"] + centre
    return moved
