"""Ordinary Hugging Face checkpoints <-> our encoder, strictly: every tensor accounted for.

BERT's architecture covers BERT, MiniLM, BGE, E5 and their like. Next: `loading.py` opens either
an ordinary checkpoint or a compact model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.errors import CheckpointError, ConfigError, did_you_mean
from cofi_deploy.kinds import TaskKind

FAMILIES = ("bert",)

_HF_CLASSES: dict[TaskKind, str] = {
    "text-classification": "BertForSequenceClassification",
    "text-regression": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
}

# Ours on the left; `{}` is the layer's number. The head is mapped by `_head_name`.
_BERT_NAMES = {
    "encoder.embeddings.word": "embeddings.word_embeddings",
    "encoder.embeddings.position": "embeddings.position_embeddings",
    "encoder.embeddings.token_type": "embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
    "encoder.layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "encoder.layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "encoder.layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "encoder.layers.{}.attention.output": "encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention.norm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.ffn.up": "encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.ffn.down": "encoder.layer.{}.output.dense",
    "encoder.layers.{}.ffn.norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
}

# Tensors of a checkpoint that our encoder has no use for: pre-training heads, index buffers, and
# the heads of another task (a classifier head is random for a new task anyway).
_IGNORED = re.compile(
    r"^(cls\..*|(bert\.)?embeddings\.position_ids|classifier\..*|qa_outputs\..*|(bert\.)?pooler\..*)$"
)
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))


def arch_from_config(config: Mapping[str, Any]) -> Arch:
    """Dense `Arch` of an ordinary checkpoint's config.json.

    Raises:
        ConfigError: The family is unknown, or uses something that our encoder does not compute.
        CheckpointError: A size is missing or no positive number.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError(
            f"model family {family!r} is not supported; {did_you_mean(family, FAMILIES)}"
        )
    position = config.get("position_embedding_type", "absolute")
    if position != "absolute":
        raise ConfigError(f"position_embedding_type is {position!r}, allowed: 'absolute'")
    for name in ("is_decoder", "add_cross_attention"):
        if config.get(name):
            raise ConfigError(f"{name} is true, allowed: false; only encoders can be pruned")
    _check_sizes(config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads:
        raise ConfigError(f"hidden_size {hidden} is not a multiple of {heads} attention heads")
    ffn, layers = config["intermediate_size"], config["num_hidden_layers"]
    head_size = hidden // heads
    return Arch(
        family=family,
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        type_vocab_size=config["type_vocab_size"],
        hidden=hidden,
        head_size=head_size,
        layers=(LayerArch(heads=heads, ffn=ffn),) * layers,
        dense=DenseShape(layers=layers, hidden=hidden, heads=heads, ffn=ffn, head_size=head_size),
        pooler=hidden,
        activation=str(config.get("hidden_act", "gelu")),
        layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        pad_token_id=int(config.get("pad_token_id") or 0),
    )


def config_from_arch(
    arch: Arch, kind: TaskKind, *, labels: tuple[str, ...] = (), dropout: float = 0.1
) -> dict[str, Any]:
    """config.json of an ordinary BERT checkpoint with the sizes of a dense ``arch``."""
    names = labels or (("LABEL_0",) if kind == "text-regression" else ("LABEL_0", "LABEL_1"))
    config: dict[str, Any] = {
        "architectures": [_HF_CLASSES[kind]],
        "model_type": arch.family,
        "hidden_size": arch.dense.hidden,
        "num_hidden_layers": arch.dense.layers,
        "num_attention_heads": arch.dense.heads,
        "intermediate_size": arch.dense.ffn,
        "vocab_size": arch.vocab_size,
        "max_position_embeddings": arch.max_positions,
        "type_vocab_size": arch.type_vocab_size,
        "hidden_act": arch.activation,
        "layer_norm_eps": arch.layer_norm_eps,
        "pad_token_id": arch.pad_token_id,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if kind == "text-regression":
        config["problem_type"] = "regression"
    return config


def kind_from_config(config: Mapping[str, Any]) -> TaskKind | None:
    """Which task an ordinary checkpoint's head is for; None for a bare or pre-training encoder."""
    name = next(iter(config.get("architectures") or []), "")
    if name == "BertForSequenceClassification":
        one = len(config.get("id2label") or {0: "", 1: ""}) == 1
        return "text-regression" if one else "text-classification"
    for kind, class_name in _HF_CLASSES.items():
        if name == class_name:
            return kind
    return None


def ours_from_bert(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: TaskKind
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename a BERT state dict to our names.

    Args:
        tensors: As stored, with or without the ``bert.`` prefix.
        expected: State dict of the dense model to be filled; names and shapes bind.
        kind: The task, which decides what the head is called.

    Returns:
        Our state dict, and the names of head tensors (pooler, classifier) that the checkpoint
        lacks and that therefore keep their fresh initialisation.

    Raises:
        CheckpointError: An encoder tensor is missing, has another shape, or is unknown.
    """
    stored = {_modern(name): tensor for name, tensor in tensors.items()}
    prefix = "bert." if any(name.startswith("bert.") for name in stored) else ""
    found: dict[str, Tensor] = {}
    fresh: list[str] = []
    problems: list[str] = []
    used: set[str] = set()
    for ours, target in expected.items():
        theirs = bert_name(ours, kind, prefix)
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
    unknown = [name for name in stored if name not in used and not _IGNORED.match(name)]
    problems += [f"{name} is unknown" for name in unknown]
    if problems:
        listed = "; ".join(problems[:10])
        raise CheckpointError(f"{len(problems)} tensors do not fit the BERT architecture: {listed}")
    return found, fresh


def bert_name(ours: str, kind: TaskKind, prefix: str = "bert.") -> str:
    """Name in an ordinary BERT checkpoint of one of our tensors."""
    stem, _, leaf = ours.rpartition(".")
    if stem == "classifier":
        head = "qa_outputs" if kind == "question-answering" else "classifier"
        return f"{head}.{leaf}"
    number = re.search(r"\.layers\.(\d+)\.", ours)
    pattern = re.sub(r"\.layers\.\d+\.", ".layers.{}.", stem)
    theirs = _BERT_NAMES[pattern].format(number.group(1) if number else "")
    return f"{prefix}{theirs}.{leaf}"


def _check_sizes(config: Mapping[str, Any]) -> None:
    for name in _SIZES:
        value = config.get(name)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"config.json has {name} {value!r}, allowed: a whole number above 0; "
                "fetch or train the model again"
            )


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
