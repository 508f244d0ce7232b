"""Open a model directory or hub id: an ordinary dense checkpoint, or a compact model of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import (
    check_checksums,
    check_model_directory,
    checksums,
    read_json,
    sha256_file,
    write_json,
)
from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    EnvironmentProblem,
    HubUnreachableError,
)
from cofi_deploy.families import (
    arch_from_config,
    checkpoint_name,
    config_from_arch,
    kind_from_config,
    ours_from_checkpoint,
)
from cofi_deploy.hub import why_unreachable
from cofi_deploy.kinds import TASK_KINDS, TaskKind
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build

WEIGHTS = "model.safetensors"
_HUB_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model"]
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# Not covered by checksums: config.json holds them, the model card is written later.
_UNCHECKED = frozenset({"config.json", "README.md"})
_REMEDY = "train or copy the model again"


def load(path: Path | str) -> CofiPreTrainedModel:
    """Open a model for inference: compact or dense, from a directory or a hub id.

    Returns:
        The model in evaluation mode, fp32, on the CPU.

    Raises:
        ArtifactError: Corrupt, unsafe or incomplete; the file is named.
        CheckpointError: Tensors that do not fit the configuration, or no task head.
    """
    directory = resolve(path)
    check_model_directory(directory)
    config = read_json(directory / "config.json")
    if config.get("model_type") == CofiConfig.model_type:
        return _load_compact(directory, config)
    arch_from_config(config)  # a family that is not supported is refused before its head is missed
    kind = kind_from_config(config)
    if kind is None:
        raise CheckpointError(
            f"{str(path)!r} has no head for a task (architectures: {config.get('architectures')}); "
            "fine-tune it first: cofi-deploy train --task TASK --model " + str(path)
        )
    model, fresh = _open_dense(directory, kind, labels=_stored_labels(config), dropout=0.1)
    if fresh:
        raise CheckpointError(
            f"{str(path)!r} claims to be a {config['architectures'][0]}, but lacks fitting "
            f"{', '.join(fresh)}; fetch it again, or fine-tune it: cofi-deploy train --task TASK"
        )
    return _for_inference(model)


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
    return _open_dense(directory, kind, labels=labels, dropout=dropout)[0]


def read_dense_arch(path: Path | str) -> Arch:
    """`Arch` of an ordinary checkpoint, from its config.json alone."""
    return arch_from_config(read_json(resolve(path) / "config.json"))


def read_arch(path: Path | str) -> Arch:
    """`Arch` of a compact model, a dense checkpoint or an export, from its config.json alone."""
    config = read_json(resolve(path) / "config.json")
    return Arch.from_json(config["arch"]) if "arch" in config else arch_from_config(config)


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """Fast tokenizer of a model directory or hub id, without padding or truncation of its own.

    Raises:
        ArtifactError: Its files are missing, corrupt or want to run code.
        ConfigError: Only a slow tokenizer exists; spans and offsets need a fast one.
    """
    directory = resolve(path)
    _check_tokenizer_files(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{str(directory)!r} holds no usable tokenizer: {error}; fetch or train the model again"
        ) from error
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
    config = config_from_arch(
        model.arch, model.kind, labels=label_names(model), dropout=model.config.dropout
    )
    tensors = {
        checkpoint_name(name, model.arch.family, model.kind): tensor
        for name, tensor in model.state_dict().items()
    }
    with atomic_directory(directory) as temporary:
        write_tensors(tensors, temporary / WEIGHTS)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        save_tokenizer(tokenizer, temporary)


def save_compact(
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    readme: str | None = None,
) -> None:
    """Write ``model/``: config with Arch and checksums, weights, tokenizer, model card."""
    with atomic_directory(directory) as temporary:
        write_tensors(model.state_dict(), temporary / WEIGHTS)
        save_tokenizer(tokenizer, temporary)
        config = json.loads(model.config.to_json_string(use_diff=True))
        config["weights_sha256"] = sha256_file(temporary / WEIGHTS)
        config["tokenizer_sha256"] = checksums(temporary, exclude=_UNCHECKED | {WEIGHTS})
        write_json(temporary / "config.json", config)
        if readme is not None:
            (temporary / "README.md").write_text(readme, encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        EnvironmentProblem: The disk is full or the place is not writable.
    """
    # Clones: safetensors refuses tensors that share memory.
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(owned, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise EnvironmentProblem(
            f"cannot write {str(path)!r}: {error}; free space or choose another --output"
        ) from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the tokenizer's files so that transformers 4.57 opens them, too.

    transformers 5 writes ``TokenizersBackend`` for a tokenizer without a class of its own; 4.57
    knows the same thing as ``PreTrainedTokenizerFast``, which both read.
    """
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def label_names(model: CofiPreTrainedModel) -> tuple[str, ...]:
    """Class names in the order of the logits, as stored; placeholders where a task has none."""
    names = {int(key): str(name) for key, name in (model.config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def resolve(path: Path | str) -> Path:
    """A local directory as it is; a hub id as its snapshot, from the cache or downloaded.

    Raises:
        ArtifactError: Neither a directory nor a possible hub id.
        HubUnreachableError: Not cached and no network; said at once, without retries.
    """
    name, local = str(path), Path(path)
    if name and local.is_dir():
        return local
    if local.is_file():
        raise ArtifactError(f"{name!r} is a file; expected a model directory or a hub id")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ArtifactError(f"{name!r} does not exist; expected a model directory or a hub id")
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import (  # noqa: PLC0415
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    def fetch(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=local_files_only)
        )

    try:
        cached = fetch(local_files_only=True)
        # A cache that only the tokenizer was fetched into is a snapshot, too.
        if (cached / "config.json").is_file() and list(cached.glob("*.safetensors")):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ArtifactError(
            f"{name!r} is neither a model directory nor a hub id: {error}"
        ) from error
    reason = why_unreachable()
    if reason is not None:
        raise HubUnreachableError(
            f"{name!r} is no local directory, not in the hub cache, and the hub cannot be reached "
            f"({reason}); give --model a local model directory, or fill the cache on a machine "
            "with a network"
        )
    try:
        return fetch(local_files_only=False)
    except (HfHubHTTPError, OSError) as error:
        raise HubUnreachableError(f"the hub does not give {name!r}: {error}") from error


def _open_dense(
    directory: Path, kind: TaskKind, *, labels: tuple[str, ...], dropout: float
) -> tuple[CofiPreTrainedModel, list[str]]:
    """An ordinary checkpoint, and the tensors of its head that start random."""
    arch = arch_from_config(read_json(directory / "config.json"))
    model = build(CofiConfig.from_arch(arch, kind, labels=labels, dropout=dropout))
    tensors = _read_weights(directory)
    found, fresh = ours_from_checkpoint(tensors, model.state_dict(), arch.family, kind)
    model.load_state_dict({**model.state_dict(), **found})
    return model, fresh


def _stored_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names of an ordinary config.json; transformers leaves the default ones out."""
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _load_compact(directory: Path, data: Mapping[str, Any]) -> CofiPreTrainedModel:
    kind = data.get("task_kind")
    if kind not in TASK_KINDS:
        raise CheckpointError(
            f"{str(directory / 'config.json')!r} has task_kind {kind!r}, allowed: "
            f"{', '.join(TASK_KINDS)}; {_REMEDY}"
        )
    recorded = {WEIGHTS: data.get("weights_sha256"), **(data.get("tokenizer_sha256") or {})}
    known = {name: digest for name, digest in recorded.items() if digest is not None}
    check_checksums(directory, known, remedy=_REMEDY)
    ours = {key: value for key, value in data.items() if key != "schema_version"}
    try:
        model = build(CofiConfig(**ours))
        model.load_state_dict(_read_file(directory / WEIGHTS), strict=True)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{str(directory / WEIGHTS)!r} does not fit the Arch of its config.json: {error}; "
            f"{_REMEDY}"
        ) from error
    return _for_inference(model)


def _for_inference(model: CofiPreTrainedModel) -> CofiPreTrainedModel:
    model.train(False)
    return model


def _check_tokenizer_files(directory: Path) -> None:
    """Refuse a tokenizer that was changed, cannot be read, or is not there."""
    # transformers makes an empty tokenizer, to which every word is unknown, out of no files at all.
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise ArtifactError(
            f"{str(directory)!r} holds no tokenizer (none of {', '.join(_VOCABULARIES)}); "
            "copy the files of the model's tokenizer into it"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            read_json(directory / name)
    if (directory / "config.json").is_file():
        recorded = read_json(directory / "config.json").get("tokenizer_sha256") or {}
        check_checksums(directory, recorded, remedy=_REMEDY)


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of an ordinary checkpoint, sharded or not, as fp32."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors.update(_read_file(path))
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{str(path)!r} is no whole safetensors file: {error}; fetch or train it again"
        ) from error
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
