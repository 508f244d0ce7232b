"""Training batches by step number, so that a resumed run sees the data it would have seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.tasks import EncodedSplit, length_bucketed_batches

_WIDTH_MULTIPLE = 4  # tokens


class Batch(NamedTuple):
    """One batch on the training device; `rows` are the features' numbers in the split."""

    rows: npt.NDArray[np.int64]
    inputs: dict[str, Tensor]  # input_ids, attention_mask, token_type_ids: (batch, sequence)
    targets: dict[str, Tensor]
    valid: Tensor  # bool (batch, sequence), False at padding


class Batches:
    """Length-bucketed, shuffled batches of a split; batch n is the same whenever asked for."""

    def __init__(
        self, encoded: EncodedSplit, *, batch_size: int, seed: int, device: torch.device
    ) -> None:
        """Nothing is drawn until `at` is called."""
        self.encoded = encoded
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._epoch = -1
        self._order: list[npt.NDArray[np.int64]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every feature once."""
        return -(-len(self.encoded) // self._batch_size)

    def steps(self, epochs: float) -> int:
        """Whole optimizer steps in a number of epochs, which may be a fraction."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs > 0 else 0

    def at(self, step: int) -> Batch:
        """The batch of an optimizer step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = length_bucketed_batches(
                self.encoded.lengths, self._batch_size, seed=self._seed, epoch=epoch
            )
            self._epoch = epoch
        return as_batch(self.encoded, self._order[place], self._device)


def as_batch(encoded: EncodedSplit, rows: npt.NDArray[np.int64], device: torch.device) -> Batch:
    """Pad some features to their longest, or a little more, and move them to ``device``."""
    width = _padded_width(encoded.lengths, rows)
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value)).to(device)
        for name, value in encoded.batch(rows.tolist(), pad_to=width).items()
    }
    inputs = {name: tensors.pop(name) for name in INPUT_NAMES}
    return Batch(rows, inputs, tensors, inputs["attention_mask"].bool())


def _padded_width(lengths: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> int:
    """A multiple, so that kernels compiled for a shape serve again; models take what data has."""
    longest = int(lengths[rows].max(initial=0))
    return min(-(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE, int(lengths.max(initial=0)))
