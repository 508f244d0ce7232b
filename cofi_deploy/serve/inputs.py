"""What a model may be fed: checked once, for every runtime, before the runtime sees it.

Runtimes fail each in their own way: ONNX Runtime reads past an embedding table with a C++ error,
TensorRT returns garbage. Next file: `runner.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.arch import Arch
from cofi_deploy.errors import RunnerError
from cofi_deploy.kinds import INPUT_NAMES

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class InputLimits:
    """Names and ranges of a model's inputs, all int64 of shape (batch, sequence)."""

    names: tuple[str, ...]
    vocab_size: int
    max_positions: int
    token_types: int

    @classmethod
    def from_arch(cls, arch: Arch, names: tuple[str, ...] = INPUT_NAMES) -> InputLimits:
        """Limits of the model that ``arch`` describes; ``names`` are the inputs of its graph."""
        return cls(
            names=names,
            vocab_size=arch.vocab_size,
            max_positions=arch.max_positions,
            token_types=arch.token_types,
        )

    def size_of(self, name: str) -> int:
        """How many values the input may take: 0 to ``size_of(name) - 1``."""
        sizes = {"input_ids": self.vocab_size, "token_type_ids": self.token_types}
        return sizes.get(name, 2)


def check_inputs(inputs: Tensors, limits: InputLimits) -> None:
    """Refuse inputs that the model cannot read.

    Raises:
        RunnerError: Missing or unknown names, another dtype, rank or shape than int64 (batch,
            sequence), a longer sequence than the model has positions, a value out of range.
    """
    _check_names(inputs, limits)
    shapes = {name: _check_tensor(name, inputs[name], limits) for name in limits.names}
    first = limits.names[0]
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise RunnerError(
                f"input {name!r} has shape {shape}, but {first!r} has {shapes[first]}; "
                "all inputs share one shape (batch, sequence)"
            )


def _check_names(inputs: Tensors, limits: InputLimits) -> None:
    missing = [name for name in limits.names if name not in inputs]
    unknown = [name for name in inputs if name not in limits.names]
    if missing or unknown:
        problems = [f"input {name!r} is missing" for name in missing]
        problems += [f"input {name!r} is unknown" for name in unknown]
        raise RunnerError(f"{', '.join(problems)}; allowed: {', '.join(limits.names)}")


def _check_tensor(name: str, tensor: npt.NDArray[Any], limits: InputLimits) -> tuple[int, ...]:
    if not isinstance(tensor, np.ndarray):
        raise RunnerError(f"input {name!r} is a {type(tensor).__name__}, allowed: a numpy array")
    if tensor.dtype != np.int64:
        raise RunnerError(f"input {name!r} has dtype {tensor.dtype}, allowed: int64")
    shape = tensor.shape
    if tensor.ndim != 2 or 0 in shape:
        raise RunnerError(
            f"input {name!r} has shape {shape}, allowed: (batch, sequence), both at least 1"
        )
    if shape[1] > limits.max_positions:
        raise RunnerError(
            f"input {name!r} is {shape[1]} tokens long, allowed: up to {limits.max_positions}; "
            "truncate the text"
        )
    low, high = int(tensor.min()), int(tensor.max())
    top = limits.size_of(name) - 1
    if low < 0 or high > top:
        wrong = low if low < 0 else high
        raise RunnerError(f"input {name!r} holds the value {wrong}, allowed: 0 to {top}")
    return shape


def random_inputs(
    limits: InputLimits, batch_size: int, seq_len: int, *, seed: int
) -> dict[str, npt.NDArray[Any]]:
    """Unpadded inputs of random ids, for timing where no real text of that length is at hand.

    Raises:
        RunnerError: ``seq_len`` is more than the model has positions.
    """
    shape = (batch_size, seq_len)
    fill = {
        "input_ids": np.random.default_rng(seed).integers(0, limits.vocab_size, shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    inputs = {name: fill[name].astype(np.int64) for name in limits.names}
    check_inputs(inputs, limits)
    return inputs
