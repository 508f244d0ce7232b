"""Everything that a killed run needs to go on as if nothing had happened.

A checkpoint is one directory, replaced as a whole: `state.json` (stage, step, metrics) and
`tensors.safetensors` (weights, gates, multipliers, optimizers, random number generators).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cofi_deploy.artifacts import read_json, sha256_file, write_json
from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import CheckpointError
from cofi_deploy.loading import write_tensors

_TENSORS = "tensors.safetensors"


def save_checkpoint(
    directory: Path,
    state: Mapping[str, Any],
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    generators: Mapping[str, torch.Generator],
    extra: Mapping[str, Tensor],
) -> None:
    """Write the checkpoint in place of the previous one, whole or not at all."""
    tensors: dict[str, Tensor] = {"rng/torch": torch.get_rng_state(), **extra}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    for name, generator in generators.items():
        tensors[f"rng/{name}"] = generator.get_state()
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        tensors |= _optimizer_tensors(name, optimizer)
    with atomic_directory(directory) as temporary:
        write_tensors(tensors, temporary / _TENSORS)
        digest = sha256_file(temporary / _TENSORS)
        write_json(temporary / "state.json", {**state, "tensors_sha256": digest})


def read_state(directory: Path) -> dict[str, Any] | None:
    """State of the checkpoint in ``directory``, None when there is none.

    Raises:
        ArtifactError: It is not readable, or of a newer schema.
        CheckpointError: It names no stage and step.
    """
    path = directory / "state.json"
    if not path.is_file():
        return None
    state = read_json(path)
    if not isinstance(state.get("stage"), str) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{str(path)!r} names no stage and step; start without --resume")
    return state


def restore_checkpoint(
    directory: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    generators: Mapping[str, torch.Generator],
) -> dict[str, Tensor]:
    """Load everything back in place.

    Returns:
        The tensors that were saved as ``extra``.

    Raises:
        CheckpointError: The file is damaged, or belongs to other modules.
    """
    tensors = _read_tensors(directory)
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, f"module/{name}/"), strict=True)
        for name, optimizer in optimizers.items():
            _restore_optimizer(optimizer, _below(tensors, f"optimizer/{name}/"))
        for name, generator in generators.items():
            generator.set_state(tensors[f"rng/{name}"])
        torch.set_rng_state(tensors["rng/torch"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{str(directory)!r} does not fit this run's settings: {error}; start without --resume"
        ) from error
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    return _below(tensors, "extra/")


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / _TENSORS
    try:
        got = sha256_file(path)
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged: {error}; start without --resume"
        ) from error
    recorded = (read_state(directory) or {}).get("tensors_sha256")
    if got != recorded:
        raise CheckpointError(
            f"{str(path)!r} is damaged: it has sha256 {got[:12]}, but state.json records "
            f"{str(recorded)[:12]}; start without --resume"
        )
    return tensors


def _optimizer_tensors(name: str, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer/{name}/{index}/{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, entry = key.split("/")
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
