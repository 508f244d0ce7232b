"""Training batches by step number, so that a resumed run sees the data it would have seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.tasks import EncodedSplit, length_bucketed_batches
from cofi_deploy.tasks.encoding import IGNORED


class Share(NamedTuple):
    """This process's part of a batch that several processes share, as fractions of the whole.

    A loss is a mean over rows, tokens or labels; times the fraction it adds up, over the
    processes, to the mean over the whole batch.
    """

    rows: float = 1.0
    tokens: float = 1.0
    labels: float = 1.0  # rows, or the tokens that have a label


_WIDTH_MULTIPLE = 4  # tokens


class Batch(NamedTuple):
    """One batch on the training device; `rows` are the features' numbers in the split."""

    rows: npt.NDArray[np.int64]
    inputs: dict[str, Tensor]  # input_ids, attention_mask, token_type_ids: (batch, sequence)
    targets: dict[str, Tensor]
    valid: Tensor  # bool (batch, sequence), False at padding
    share: Share = Share()


class Batches:
    """Length-bucketed, shuffled batches of a split; batch n is the same whenever asked for."""

    def __init__(
        self,
        encoded: EncodedSplit,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Nothing is drawn until `at` is called.

        Args:
            encoded: The split.
            batch_size: Of an optimizer step, all processes together.
            seed: Of the order.
            device: Where batches go.
            part: Number of this process, and how many there are.
        """
        self.encoded = encoded
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._part = part
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
        """The batch of an optimizer step, counted from 0, or this process's share of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = length_bucketed_batches(
                self.encoded.lengths, self._batch_size, seed=self._seed, epoch=epoch
            )
            self._epoch = epoch
        rows = self._order[place]
        process, processes = self._part
        if processes == 1:
            return as_batch(self.encoded, rows, self._device)
        # Every n-th row, since rows are sorted by length: all get as many tokens.
        own = rows[process::processes]
        # More processes than rows: any row will do, it has no weight.
        batch = as_batch(self.encoded, own if len(own) else rows[:1], self._device)
        return batch._replace(share=self._share(own, rows))

    def _share(self, own: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Share:
        lengths = self.encoded.lengths
        of_rows = len(own) / len(rows)
        labels = self.encoded.token_targets.get("labels")
        return Share(
            rows=of_rows,
            tokens=float(lengths[own].sum() / lengths[rows].sum()),
            labels=of_rows
            if labels is None
            else self._labelled(own) / max(1, self._labelled(rows)),
        )

    def _labelled(self, rows: npt.NDArray[np.int64]) -> int:
        labels, offsets = self.encoded.token_targets["labels"], self.encoded.offsets
        places = [labels[offsets[row] : offsets[row + 1]] for row in rows]
        return sum(int((each != IGNORED).sum()) for each in places)


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
