"""What sets families of encoders apart in their checkpoints: names and constants, no code.

BERT's entry covers MiniLM, BGE, E5 and their like. A new family is an entry here as long as it
computes what `Arch` can say. Next: `families.py`, which reads and writes checkpoints by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Modules, ours on the left; `{}` is the layer's number.
_BERT_MODULES = {
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
}
_DISTILBERT_MODULES = {
    "encoder.embeddings.word": "embeddings.word_embeddings",
    "encoder.embeddings.position": "embeddings.position_embeddings",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
    "encoder.layers.{}.attention.query": "transformer.layer.{}.attention.q_lin",
    "encoder.layers.{}.attention.key": "transformer.layer.{}.attention.k_lin",
    "encoder.layers.{}.attention.value": "transformer.layer.{}.attention.v_lin",
    "encoder.layers.{}.attention.output": "transformer.layer.{}.attention.out_lin",
    "encoder.layers.{}.attention.norm": "transformer.layer.{}.sa_layer_norm",
    "encoder.layers.{}.ffn.up": "transformer.layer.{}.ffn.lin1",
    "encoder.layers.{}.ffn.down": "transformer.layer.{}.ffn.lin2",
    "encoder.layers.{}.ffn.norm": "transformer.layer.{}.output_layer_norm",
}

# Settings of config.json, ours on the left.
_BERT_SETTINGS = {
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
_DISTILBERT_SETTINGS = {
    "hidden": "dim",
    "heads": "n_heads",
    "ffn": "hidden_dim",
    "layers": "n_layers",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "activation": "activation",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Names and constants of one family of checkpoints.

    Attributes:
        title: As people write it.
        classes: How transformers' model classes begin.
        prefix: Of the encoder's tensors in a checkpoint that has a head.
        modules: Our encoder's modules -> theirs, without the prefix.
        pooler: Their name of the dense layer of a sequence classifier's head.
        classifier: Their name of the last layer of a sequence classifier's head.
        pooler_activation: Behind the former.
        settings: Our name of a setting -> theirs in config.json; what is left out is not written.
        dropouts: Their settings that hold a dropout probability.
        pretraining: Modules of pre-training heads, which are left aside.
        pad_token_id: Where config.json has none.
        counts_tokens: Positions count tokens other than padding, from ``pad_token_id + 1``.
    """

    title: str
    classes: str
    prefix: str
    modules: Mapping[str, str] = field(default_factory=lambda: _BERT_MODULES)
    pooler: str = "classifier.dense"
    classifier: str = "classifier.out_proj"
    pooler_activation: str = "tanh"
    settings: Mapping[str, str] = field(default_factory=lambda: _BERT_SETTINGS)
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    pretraining: tuple[str, ...] = ()
    pad_token_id: int = 0
    counts_tokens: bool = False


FAMILIES: dict[str, Family] = {
    "bert": Family(
        title="BERT",
        classes="Bert",
        prefix="bert.",
        pooler="bert.pooler.dense",
        classifier="classifier",
        pretraining=("cls",),
    ),
    "distilbert": Family(
        title="DistilBERT",
        classes="DistilBert",
        prefix="distilbert.",
        modules=_DISTILBERT_MODULES,
        pooler="pre_classifier",
        classifier="classifier",
        pooler_activation="relu",
        settings=_DISTILBERT_SETTINGS,
        dropouts=("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
        pretraining=("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    ),
    "electra": Family(
        title="ELECTRA",
        classes="Electra",
        prefix="electra.",
        modules={**_BERT_MODULES, "encoder.embeddings.project": "embeddings_project"},
        pooler_activation="gelu",
        settings={**_BERT_SETTINGS, "embedding": "embedding_size"},
        pretraining=("discriminator_predictions", "generator_predictions", "generator_lm_head"),
    ),
    "roberta": Family(
        title="RoBERTa",
        classes="Roberta",
        prefix="roberta.",
        pretraining=("lm_head",),
        pad_token_id=1,
        counts_tokens=True,
    ),
    "xlm-roberta": Family(
        title="XLM-RoBERTa",
        classes="XLMRoberta",
        prefix="roberta.",
        pretraining=("lm_head",),
        pad_token_id=1,
        counts_tokens=True,
    ),
}
