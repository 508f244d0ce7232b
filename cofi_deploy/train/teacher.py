"""What the teacher says about a batch: asked anew, or read from a cache on disk.

The teacher does not change while the student is pruned, so its answers are computed once:
predictions in fp32, states of the chosen layers in fp16, padding left out, memory-mapped. For a
student at 95 % sparsity the teacher would otherwise take most of a step's time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import ArtifactError
from cofi_deploy.kinds import is_per_token, output_names
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks import EncodedSplit
from cofi_deploy.train.batches import Batch, as_batch

_CACHE_BATCH = 64


class TeacherAnswers(NamedTuple):
    """Predictions, and states of the chosen layers at valid tokens."""

    outputs: dict[str, Tensor]  # as `kinds.output_names`
    states: Tensor  # (teacher_layers, tokens, hidden)


class Teacher(Protocol):
    """Answers for a training batch."""

    def answers(self, batch: Batch) -> TeacherAnswers:
        """The teacher's predictions and states for ``batch``."""


class LiveTeacher:
    """Runs the dense model for every batch."""

    def __init__(self, model: CofiPreTrainedModel, layers: Sequence[int]) -> None:
        """``layers`` are 1-based numbers of layers whose output is wanted."""
        self.model = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self.layers = tuple(layers)

    def answers(self, batch: Batch) -> TeacherAnswers:
        """One forward pass without gradients."""
        with torch.no_grad():
            encoded = self.model.encode(**batch.inputs)
            outputs = self.model.head(encoded)
        states = torch.stack([encoded.states[layer][batch.valid] for layer in self.layers])
        return TeacherAnswers(outputs, states)


class CachedTeacher:
    """Reads what `build_cache` wrote."""

    def __init__(self, directory: Path, encoded: EncodedSplit, device: torch.device) -> None:
        """Map the files; nothing is read before it is needed."""
        described = read_json(directory / "cache.json")
        self._per_token: bool = described["per_token"]
        self._states = np.load(directory / "states.npy", mmap_mode="r")
        self._outputs = {
            name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in described["outputs"]
        }
        self._offsets = encoded.offsets
        self._device = device

    def answers(self, batch: Batch) -> TeacherAnswers:
        """Gather the batch's rows; per-token outputs are padded with zeros."""
        tokens = _token_rows(self._offsets, batch.rows)
        states = torch.from_numpy(self._states[tokens]).to(self._device, torch.float32)
        outputs = {
            name: self._output(values, tokens, batch) for name, values in self._outputs.items()
        }
        return TeacherAnswers(outputs, states.transpose(0, 1))

    def _output(
        self, values: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], batch: Batch
    ) -> Tensor:
        if not self._per_token:
            return torch.from_numpy(values[batch.rows]).to(self._device)
        flat = torch.from_numpy(values[tokens]).to(self._device)
        padded = flat.new_zeros(*batch.valid.shape, *flat.shape[1:])
        padded[batch.valid] = flat
        return padded


def build_cache(
    teacher: LiveTeacher,
    encoded: EncodedSplit,
    directory: Path,
    *,
    key: str,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    """Write the teacher's answers for a whole split, unless ``directory`` has them already.

    Args:
        teacher: Gives the answers.
        encoded: The training split.
        directory: Appears whole or not at all.
        key: Names weights and data; another key makes the cache anew.
        device: Where the teacher runs.
        advance: Called with the number of features done.

    Raises:
        EnvironmentProblem: The disk is full; nothing is left of the cache.
    """
    if _is_cached(directory, key):
        advance(len(encoded))
        return
    if directory.exists():
        shutil.rmtree(directory)
    tokens, hidden = int(encoded.offsets[-1]), teacher.model.arch.hidden
    with atomic_directory(directory) as temporary:
        path = temporary / "states.npy"
        shape = (tokens, len(teacher.layers), hidden)
        states = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        _reserve(path)
        outputs: dict[str, npt.NDArray[np.float32]] = {}
        order = np.argsort(encoded.lengths, kind="stable")
        for start in range(0, len(order), _CACHE_BATCH):
            rows = order[start : start + _CACHE_BATCH]
            batch = as_batch(encoded, rows, device)
            answers = teacher.answers(batch)
            where = _token_rows(encoded.offsets, rows)
            states[where] = answers.states.transpose(0, 1).to("cpu", torch.float16).numpy()
            _store_outputs(outputs, answers.outputs, batch, where, encoded, teacher)
            advance(len(rows))
        states.flush()
        for name, values in outputs.items():
            np.save(temporary / f"{name}.npy", values)
        per_token = is_per_token(teacher.model.kind)
        described = {"key": key, "outputs": sorted(outputs), "per_token": per_token}
        write_json(temporary / "cache.json", described)


def _reserve(path: Path) -> None:
    """Take the disk space of a file with holes, which a mapped one is until it is written.

    On a full disk this is an error with words; writing to the mapped pages would be SIGBUS.
    """
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def cache_bytes(encoded: EncodedSplit, layers: int, hidden: int) -> int:
    """Size that `build_cache` would need for the states."""
    return int(encoded.offsets[-1]) * layers * hidden * 2


def _store_outputs(
    stored: dict[str, npt.NDArray[np.float32]],
    outputs: Mapping[str, Tensor],
    batch: Batch,
    where: npt.NDArray[np.int64],
    encoded: EncodedSplit,
    teacher: LiveTeacher,
) -> None:
    per_token = is_per_token(teacher.model.kind)
    for name in output_names(teacher.model.kind):
        value = (outputs[name][batch.valid] if per_token else outputs[name]).cpu().float().numpy()
        if name not in stored:
            count = int(encoded.offsets[-1]) if per_token else len(encoded)
            stored[name] = np.zeros((count, *value.shape[1:]), np.float32)
        stored[name][where if per_token else batch.rows] = value


def _token_rows(
    offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Flat token numbers of some features, feature after feature."""
    return np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])


def _is_cached(directory: Path, key: str) -> bool:
    try:
        return bool(read_json(directory / "cache.json").get("key") == key)
    except ArtifactError:
        return False
