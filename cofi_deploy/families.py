"""Ordinary Hugging Face checkpoints <-> our encoder, strictly: every tensor accounted for.

By the names in `family_tables.py`. Next: `loading.py` opens either an ordinary checkpoint or a
compact model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.errors import CheckpointError, ConfigError, did_you_mean
from cofi_deploy.family_tables import FAMILIES, Family
from cofi_deploy.kinds import TaskKind

_CLASS_SUFFIXES: dict[TaskKind, str] = {
    "text-classification": "ForSequenceClassification",
    "text-regression": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}

# Settings that are no sizes.
_NO_SIZES = frozenset({"activation", "layer_norm_eps"})

# Tensors that our encoder has no use for: index buffers, and the heads of another task (a
# classifier is random for a new task anyway).
_IGNORED = re.compile(
    r"^((\w+\.)?embeddings\.(position_ids|token_type_ids)|(classifier|pre_classifier|qa_outputs|(\w+\.)?pooler)\..*)$"
)
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))


def arch_from_config(config: Mapping[str, Any]) -> Arch:
    """Dense `Arch` of an ordinary checkpoint's config.json.

    Raises:
        ConfigError: The family is unknown, or uses something that our encoder does not compute.
        CheckpointError: A size is missing or no positive number.
    """
    name = str(config.get("model_type"))
    family = _family(name)
    _check_supported(config)
    _check_sizes(config, family)
    values: dict[str, Any] = {ours: config.get(key) for ours, key in family.settings.items()}
    hidden, heads = values["hidden"], values["heads"]
    if hidden % heads:
        size = family.settings["hidden"]
        raise ConfigError(f"{size} {hidden} is not a multiple of {heads} attention heads")
    ffn, layers, head_size = values["ffn"], values["layers"], hidden // heads
    pad = _pad_token_id(config, family)
    offset = pad + 1 if family.counts_tokens else 0
    embedding = values.get("embedding")
    return Arch(
        family=name,
        vocab_size=values["vocab_size"],
        max_positions=_max_positions(values["max_positions"], offset),
        type_vocab_size=values.get("type_vocab_size", 0),
        hidden=hidden,
        head_size=head_size,
        layers=(LayerArch(heads=heads, ffn=ffn),) * layers,
        dense=DenseShape(layers=layers, hidden=hidden, heads=heads, ffn=ffn, head_size=head_size),
        pooler=hidden,
        activation=str(values["activation"] or "gelu"),
        layer_norm_eps=float(values.get("layer_norm_eps") or 1e-12),
        pad_token_id=pad,
        embedding=None if embedding == hidden else embedding,
        position_offset=offset,
        pooler_activation=family.pooler_activation,
    )


def config_from_arch(
    arch: Arch, kind: TaskKind, *, labels: tuple[str, ...] = (), dropout: float = 0.1
) -> dict[str, Any]:
    """config.json of an ordinary checkpoint of the family, with the sizes of a dense ``arch``."""
    family = _family(arch.family)
    names = labels or (("LABEL_0",) if kind == "text-regression" else ("LABEL_0", "LABEL_1"))
    values: dict[str, Any] = {
        "hidden": arch.dense.hidden,
        "heads": arch.dense.heads,
        "ffn": arch.dense.ffn,
        "layers": arch.dense.layers,
        "vocab_size": arch.vocab_size,
        "max_positions": arch.position_rows,
        "type_vocab_size": arch.type_vocab_size,
        "activation": arch.activation,
        "layer_norm_eps": arch.layer_norm_eps,
        "embedding": arch.dense.hidden if arch.embedding is None else arch.embedding,
    }
    config: dict[str, Any] = {
        "architectures": [family.classes + _CLASS_SUFFIXES[kind]],
        "model_type": arch.family,
        **{theirs: values[ours] for ours, theirs in family.settings.items()},
        "pad_token_id": arch.pad_token_id,
        **dict.fromkeys(family.dropouts, dropout),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if kind == "text-regression":
        config["problem_type"] = "regression"
    return config


def kind_from_config(config: Mapping[str, Any]) -> TaskKind | None:
    """Which task an ordinary checkpoint's head is for; None for a bare or pre-training encoder."""
    name = next(iter(config.get("architectures") or []), "")
    kinds = (
        kind
        for family in FAMILIES.values()
        for kind, suffix in _CLASS_SUFFIXES.items()
        if name == family.classes + suffix
    )
    kind = next(kinds, None)
    if kind == "text-classification" and len(config.get("id2label") or {0: "", 1: ""}) == 1:
        return "text-regression"
    return kind


def ours_from_checkpoint(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    family: str,
    kind: TaskKind,
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename an ordinary state dict to our names.

    Args:
        tensors: As stored, with or without the family's prefix.
        expected: State dict of the dense model to be filled; names and shapes bind.
        family: Decides what the tensors are called.
        kind: The task, which decides what the head is called.

    Returns:
        Our state dict, and the names of head tensors (pooler, classifier) that the checkpoint
        lacks and that therefore keep their fresh initialisation.

    Raises:
        CheckpointError: An encoder tensor is missing, has another shape, or is unknown.
    """
    names = _family(family)
    stored = {_modern(name): tensor for name, tensor in tensors.items()}
    is_bare = not any(name.startswith(names.prefix) for name in stored)
    found: dict[str, Tensor] = {}
    fresh: list[str] = []
    problems: list[str] = []
    used: set[str] = set()
    for ours, target in expected.items():
        theirs = checkpoint_name(ours, family, kind)
        theirs = theirs.removeprefix(names.prefix) if is_bare else theirs
        tensor = stored.get(theirs)
        is_head = not ours.startswith("encoder.")
        if tensor is None or (is_head and tensor.shape != target.shape):
            (fresh if is_head else problems).append(ours if is_head else f"{theirs} is missing")
            continue
        used.add(theirs)
        if tensor.shape != target.shape:
            got, want = tuple(tensor.shape), tuple(target.shape)
            problems.append(f"{theirs} has shape {got}, config.json says {want}")
        found[ours] = tensor
    unknown = [name for name in stored if name not in used and not _is_ignored(name, names)]
    problems += [f"{name} is unknown" for name in unknown]
    if problems:
        listed = "; ".join(problems[:10])
        raise CheckpointError(
            f"{len(problems)} tensors do not fit the {names.title} architecture: {listed}"
        )
    return found, fresh


def checkpoint_name(ours: str, family: str, kind: TaskKind) -> str:
    """Name in an ordinary checkpoint with a head of one of our tensors."""
    names = _family(family)
    stem, _, leaf = ours.rpartition(".")
    if stem == "pooler":
        return f"{names.pooler}.{leaf}"
    if stem == "classifier":
        per_sequence = _CLASS_SUFFIXES[kind] == "ForSequenceClassification"
        other = "qa_outputs" if kind == "question-answering" else "classifier"
        return f"{names.classifier if per_sequence else other}.{leaf}"
    number = re.search(r"\.layers\.(\d+)\.", ours)
    pattern = re.sub(r"\.layers\.\d+\.", ".layers.{}.", stem)
    theirs = names.modules[pattern].format(number.group(1) if number else "")
    return f"{names.prefix}{theirs}.{leaf}"


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"model family {name!r} is not supported; {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def _check_supported(config: Mapping[str, Any]) -> None:
    position = config.get("position_embedding_type") or "absolute"
    if position != "absolute":
        raise ConfigError(f"position_embedding_type is {position!r}, allowed: 'absolute'")
    for name in ("is_decoder", "add_cross_attention"):
        if config.get(name):
            raise ConfigError(f"{name} is true, allowed: false; only encoders can be pruned")


def _check_sizes(config: Mapping[str, Any], family: Family) -> None:
    for name in (theirs for ours, theirs in family.settings.items() if ours not in _NO_SIZES):
        value = config.get(name)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"config.json has {name} {value!r}, allowed: a whole number above 0; "
                "fetch or train the model again"
            )


def _pad_token_id(config: Mapping[str, Any], family: Family) -> int:
    value = config.get("pad_token_id")
    if value is None:
        return family.pad_token_id
    if not isinstance(value, int) or not 0 <= value < config["vocab_size"]:
        raise CheckpointError(
            f"config.json has pad_token_id {value!r}, allowed: 0 to {config['vocab_size'] - 1}; "
            "fetch or train the model again"
        )
    return value


def _max_positions(rows: int, offset: int) -> int:
    if rows <= offset:
        raise CheckpointError(
            f"config.json has max_position_embeddings {rows}, allowed: more than {offset}, the "
            "rows up to that of padding; fetch or train the model again"
        )
    return rows - offset


def _is_ignored(name: str, family: Family) -> bool:
    return bool(_IGNORED.match(name)) or name.split(".", maxsplit=1)[0] in family.pretraining


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
