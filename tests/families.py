"""A tiny randomly initialised transformers model of every family and kind, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from cofi_deploy.arch import Arch
from cofi_deploy.families import arch_from_config
from cofi_deploy.kinds import TaskKind
from tests.builders import LABELS, VOCABULARY

BERT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
}
DISTILBERT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 40,
}
# How transformers' classes begin, and settings that differ as in the published checkpoints.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", BERT_SIZES),
    "distilbert": ("DistilBert", DISTILBERT_SIZES),
    "electra": ("Electra", {**BERT_SIZES, "embedding_size": 10}),
    "electra as wide as its embedding": ("Electra", {**BERT_SIZES, "embedding_size": 24}),
    "roberta": ("Roberta", {**BERT_SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", {**BERT_SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
}
SUFFIXES: dict[TaskKind, str] = {
    "text-classification": "ForSequenceClassification",
    "text-regression": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}


def hf_config(
    model: str, kind: TaskKind = "text-classification", **changes: Any
) -> PretrainedConfig:
    """Configuration of one of `MODELS`."""
    start, sizes = MODELS[model]
    labels = LABELS[kind] or (("LABEL_0",) if kind == "text-regression" else ("a", "b"))
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    config = getattr(transformers, f"{start}Config")
    return config(**{**sizes, **names, **changes})


def hf_model(
    model: str, kind: TaskKind = "text-classification", *, suffix: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A model of transformers in which every tensor matters; ``suffix`` chooses another head."""
    cls = getattr(transformers, MODELS[model][0] + (suffix or SUFFIXES[kind]))
    made = cls(hf_config(model, kind, **changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


def dense_arch_of(model: str, **changes: Any) -> Arch:
    """Our `Arch` of one of `MODELS`."""
    return arch_from_config(hf_config(model, **changes).to_dict())


def padded_inputs(
    arch: Arch, *, lengths: Sequence[int] = (9, 4, 1, 7), width: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Right-padded random ids and types; padding has the id that the family pads with."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, arch.vocab_size, shape, generator=generator)
    types = torch.randint(0, 2, shape, generator=generator)
    return {
        "input_ids": ids.where(mask, arch.pad_token_id),
        "attention_mask": mask.long(),
        "token_type_ids": types.where(mask, 0),
    }


def hf_inputs(arch: Arch, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' model of the family takes: token types only where it has several."""
    if arch.type_vocab_size > 1:
        return inputs
    return {name: value for name, value in inputs.items() if name != "token_type_ids"}
