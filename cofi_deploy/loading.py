"""Open a model directory or hub id: an ordinary dense checkpoint, or a compact model of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import (
    atomic_directory,
    check_model_directory,
    read_json,
    sha256_file,
    write_json,
)
from cofi_deploy.errors import ArtifactError, CheckpointError, ConfigError, HubUnreachableError
from cofi_deploy.families import arch_from_config, config_from_arch, kind_from_config, bert_name, ours_from_bert
from cofi_deploy.kinds import TaskKind
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build

WEIGHTS = "model.safetensors"
_HUB_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model"]
_HUB_TIMEOUT_S = 3.0


def load(path: Path | str) -> CofiPreTrainedModel:
    """Open a model for inference: compact or dense, from a directory or a hub id.

    Returns:
        The model in evaluation mode, fp32, on the CPU.

    Raises:
        ArtifactError: Corrupt, unsafe or incomplete; the file is named.
        CheckpointError: Tensors that do not fit the configuration, or no task head.
    """
    directory = resolve(path)
    config = read_json(directory / "config.json")
    if config.get("model_type") == CofiConfig.model_type:
        return _load_compact(directory, config)
    kind = kind_from_config(config)
    if kind is None:
        raise CheckpointError(
            f"{str(path)!r} has no head for a task (architectures: {config.get('architectures')}); "
            "fine-tune it first: cofi-deploy train --task TASK --model " + str(path)
        )
    labels = tuple(config["id2label"][key] for key in sorted(config["id2label"], key=int))
    return load_dense(directory, kind, labels=labels).eval()


def load_dense(
    path: Path | str, kind: TaskKind, *, labels: tuple[str, ...] = (), dropout: float = 0.1
) -> CofiPreTrainedModel:
    """Open an ordinary checkpoint for training or as a teacher; a missing head starts random.

    Raises:
        ConfigError: A family that is not supported.
        CheckpointError: An encoder tensor is missing, unknown or of another shape.
    """
    directory = resolve(path)
    check_model_directory(directory)
    arch = arch_from_config(read_json(directory / "config.json"))
    model = build(CofiConfig.from_arch(arch, kind, labels=labels, dropout=dropout))
    tensors = _read_weights(directory)
    found, _ = ours_from_bert(tensors, model.state_dict(), kind)
    model.load_state_dict({**model.state_dict(), **found})
    return model


def read_dense_arch(path: Path | str) -> Arch:
    """`Arch` of an ordinary checkpoint, from its config.json alone."""
    return arch_from_config(read_json(resolve(path) / "config.json"))


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """Fast tokenizer of a model directory or hub id, without padding or truncation of its own.

    Raises:
        ConfigError: Only a slow tokenizer exists; spans and offsets need a fast one.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve(path), use_fast=True, local_files_only=True)
    if not tokenizer.is_fast:
        raise ConfigError(f"{str(path)!r} has no fast tokenizer (tokenizer.json); convert it first")
    # Some checkpoints (sentence-transformers) ship a tokenizer.json that pads every text to 128.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def save_dense(
    model: CofiPreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write a dense model as an ordinary Hugging Face checkpoint, whole or not at all."""
    if not model.arch.is_dense:
        raise CheckpointError("only a dense model can be saved as an ordinary checkpoint")
    labels = tuple(model.config.id2label[key] for key in sorted(model.config.id2label))
    config = config_from_arch(model.arch, model.kind, labels=labels, dropout=model.config.dropout)
    tensors = {bert_name(name, model.kind): tensor for name, tensor in model.state_dict().items()}
    with atomic_directory(directory) as temporary:
        _write_weights(tensors, temporary / WEIGHTS)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        tokenizer.save_pretrained(temporary)


def save_compact(
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    readme: str | None = None,
) -> None:
    """Write ``model/``: config with Arch and checksum, weights, tokenizer, model card."""
    with atomic_directory(directory) as temporary:
        _write_weights(model.state_dict(), temporary / WEIGHTS)
        config = json.loads(model.config.to_json_string(use_diff=True))
        config["weights_sha256"] = sha256_file(temporary / WEIGHTS)
        write_json(temporary / "config.json", config)
        tokenizer.save_pretrained(temporary)
        if readme is not None:
            (temporary / "README.md").write_text(readme, encoding="utf-8")


def resolve(path: Path | str) -> Path:
    """A local directory as it is; a hub id as its snapshot, from the cache or downloaded.

    Raises:
        HubUnreachableError: Not cached and no network; said at once, without retries.
    """
    local = Path(path)
    if local.is_dir():
        return local
    name = str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ArtifactError(f"{name!r} does not exist; expected a model directory or a hub id")
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    def fetch(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                name, allow_patterns=_HUB_FILES, local_files_only=local_files_only
            )
        )

    try:
        return fetch(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    if not hub_is_reachable():
        raise HubUnreachableError(
            f"{name!r} is no local directory, not in the hub cache, and the hub is out of reach; "
            "give --model a local model directory, or fill the cache on a machine with a network"
        )
    try:
        return fetch(local_files_only=False)
    except (HfHubHTTPError, OSError) as error:
        raise HubUnreachableError(f"the hub does not give {name!r}: {error}") from error


def hub_is_reachable() -> bool:
    """Ask the hub once, three seconds at most; False at once when HF_HUB_OFFLINE is set."""
    import httpx  # noqa: PLC0415 - comes with huggingface_hub, slow to import

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        httpx.head(endpoint, timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _load_compact(directory: Path, data: Mapping[str, Any]) -> CofiPreTrainedModel:
    check_model_directory(directory)
    _check_weights(directory, data.get("weights_sha256"))
    config = CofiConfig(**{key: value for key, value in data.items() if key != "schema_version"})
    model = build(config)
    tensors = _read_weights(directory)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{str(directory / WEIGHTS)!r} does not fit the Arch of its config.json: {error}"
        ) from error
    return model.eval()


def _check_weights(directory: Path, expected: str | None) -> None:
    path = directory / WEIGHTS
    if expected is None or not path.is_file():
        return
    got = sha256_file(path)
    if got != expected:
        raise ArtifactError(
            f"{str(path)!r} has sha256 {got[:12]}, but config.json records {expected[:12]}: it is "
            "corrupt, truncated or was replaced; train or copy the model again"
        )


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, sharded or not, as fp32."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            tensors.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{str(path)!r} is no whole safetensors file: {error}; fetch or train it again"
            ) from error
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
