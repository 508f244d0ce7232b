"""`Arch`: the one description of an encoder, dense or pruned, that travels through every stage.

It is written into `config.json` when a model is cut, copied into ONNX metadata, `engine.json` and
the Triton repository, and compared whenever an artifact is opened. Next file: `masks.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cofi_deploy.errors import CheckpointError

ARCH_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LayerArch:
    """What one layer keeps.

    ``heads == 0`` means that the attention sublayer is gone, ``ffn == 0`` that the feed-forward
    sublayer is gone: the sublayer is then the identity, without residual and without LayerNorm.
    """

    heads: int
    ffn: int


@dataclass(frozen=True, kw_only=True)
class LayerFlops:
    """Floating-point operations of one layer's sublayers, two per multiply-add."""

    attention: int
    ffn: int


@dataclass(frozen=True, kw_only=True)
class DenseShape:
    """The sizes of the model that was pruned: what sparsity is counted against."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    head_size: int

    @property
    def prunable_parameters(self) -> int:
        """Weights and biases of attention and FFN; LayerNorms, embeddings and heads excluded.

        For BERT-base 85,017,600 (cofi-spec 2.1).
        """
        per_layer = LayerArch(heads=self.heads, ffn=self.ffn)
        return self.layers * layer_parameters(per_layer, self.hidden, self.head_size)


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Kept sizes of a BERT-like, post-LayerNorm encoder; immutable, JSON round trip exact.

    What families of models differ in stands here as sizes and names, so that whoever computes with
    an `Arch` need not know them.

    Attributes:
        family: As ``model_type`` of Hugging Face; says what to write, never what to compute.
        vocab_size: Rows of the word table.
        max_positions: Tokens of the longest sequence.
        type_vocab_size: Rows of the table of token types, 0 where there is none. With fewer than
            two there is nothing to choose: the input ``token_type_ids`` is then ignored.
        hidden: Kept width of the residual stream, equal in all layers.
        head_size: Of every attention head.
        layers: Kept sizes of each layer.
        dense: Sizes before pruning.
        pooler: Width of the pooler's output (never pruned), None where the model has no pooler.
        activation: Between the two maps of each feed-forward sublayer.
        layer_norm_eps: Of every LayerNorm.
        pad_token_id: Row of the word table that padding reads.
        embedding: Width of the embedding tables where a linear map leads from them into the
            residual stream (ELECTRA; never pruned); None where they are as wide as that.
        position_offset: Rows of the position table before that of the first token. 0: every token
            has a position, padding too. ``pad_token_id + 1`` (RoBERTa): only tokens other than
            padding are counted, and padding reads the row before the first one's.
        pooler_activation: Behind the pooler's linear map.
    """

    family: str
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    hidden: int
    head_size: int
    layers: tuple[LayerArch, ...]
    dense: DenseShape
    pooler: int | None = None
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    embedding: int | None = None
    position_offset: int = 0
    pooler_activation: str = "tanh"

    def __post_init__(self) -> None:
        """Refuse sizes that no cut can produce."""
        problems = list(self._problems())
        if problems:
            raise CheckpointError("this is no valid Arch: " + "; ".join(problems))

    def _problems(self) -> Iterable[str]:
        if len(self.layers) != self.dense.layers:
            yield f"{len(self.layers)} layers, but the dense model has {self.dense.layers}"
        if not 1 <= self.hidden <= self.dense.hidden:
            yield f"hidden is {self.hidden}, allowed: 1 to {self.dense.hidden}"
        if self.head_size != self.dense.head_size:
            dense = self.dense.head_size
            yield f"head_size is {self.head_size}, but heads of the dense one have {dense}"
        if not 0 <= self.pad_token_id < self.vocab_size:
            yield f"pad_token_id is {self.pad_token_id}, allowed: 0 to {self.vocab_size - 1}"
        if self.position_offset not in {0, self.pad_token_id + 1}:
            allowed = f"0 or pad_token_id + 1 = {self.pad_token_id + 1}"
            yield f"position_offset is {self.position_offset}, allowed: {allowed}"
        for index, layer in enumerate(self.layers):
            if not 0 <= layer.heads <= self.dense.heads:
                yield f"layer {index} has {layer.heads} heads, allowed: 0 to {self.dense.heads}"
            if not 0 <= layer.ffn <= self.dense.ffn:
                yield f"layer {index} has FFN width {layer.ffn}, allowed: 0 to {self.dense.ffn}"

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden if self.embedding is None else self.embedding

    @property
    def position_rows(self) -> int:
        """Rows of the position table."""
        return self.max_positions + self.position_offset

    @property
    def token_types(self) -> int:
        """How many values ``token_type_ids`` may take; two where they are ignored."""
        return max(2, self.type_vocab_size)

    @property
    def prunable_parameters(self) -> int:
        """Weights and biases of the kept attention and FFN sublayers."""
        return sum(layer_parameters(layer, self.hidden, self.head_size) for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Realized sparsity: 1 - kept / prunable parameters, a fraction."""
        return 1.0 - self.prunable_parameters / self.dense.prunable_parameters

    @property
    def is_dense(self) -> bool:
        """True when nothing was pruned."""
        full = LayerArch(heads=self.dense.heads, ffn=self.dense.ffn)
        return self.hidden == self.dense.hidden and all(layer == full for layer in self.layers)

    def flops(self, batch: int, length: int) -> int:
        """Floating-point operations of one forward pass of the layers, two per multiply-add.

        Counts the matrix products of attention and FFN; leaves out softmax, LayerNorm, embeddings
        and the task's head, which together are below 2 % for a dense BERT-base at length 128.
        """
        return sum(layer.attention + layer.ffn for layer in self.flops_by_sublayer(batch, length))

    def flops_by_sublayer(
        self, batch: int, length: int, *, first_token_only: bool = False
    ) -> tuple[LayerFlops, ...]:
        """What `flops` counts, for each layer; a sublayer that is gone has none.

        Args:
            batch: Texts.
            length: Tokens of each.
            first_token_only: Of a graph that computes no other token from the last attention on,
                because its head reads no other, and goes without that one's keys and values (see
                `export/graph.py`).
        """
        last = self.last_attention if first_token_only else len(self.layers)
        found: list[LayerFlops] = []
        for index, layer in enumerate(self.layers):
            is_whole = index < last
            rows = batch * length if is_whole else batch
            maps = 2 * rows * self.hidden * 4 * layer.heads * self.head_size
            reach = self.head_size if is_whole else self.hidden  # of a head, towards each token
            inner = 2 * rows * length * 2 * layer.heads * reach  # scores and context
            ffn = 2 * rows * self.hidden * 2 * layer.ffn
            found.append(LayerFlops(attention=maps + inner, ffn=ffn))
        return tuple(found)

    @property
    def last_attention(self) -> int:
        """Index of the last layer that has heads; -1 where none has."""
        return max((index for index, layer in enumerate(self.layers) if layer.heads), default=-1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object, ``schema_version`` included."""
        return {"schema_version": ARCH_SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Arch:
        """Rebuild an `Arch`; every key must be known and present.

        Raises:
            CheckpointError: A newer schema, or a missing, unknown or impossible entry.
        """
        version = data.get("schema_version")
        if version != ARCH_SCHEMA_VERSION:
            raise CheckpointError(
                f"Arch has schema_version {version!r}, but this cofi-deploy reads "
                f"{ARCH_SCHEMA_VERSION}; upgrade cofi-deploy or export the model again"
            )
        fields = {key: value for key, value in data.items() if key != "schema_version"}
        try:
            fields["layers"] = tuple(LayerArch(**layer) for layer in fields["layers"])
            fields["dense"] = DenseShape(**fields["dense"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"Arch has a missing or unknown entry: {error}") from error


def layer_parameters(layer: LayerArch, hidden: int, head_size: int) -> int:
    """Weights and biases of one layer's attention and FFN; LayerNorms excluded."""
    width = layer.heads * head_size
    attention = 4 * width * hidden + 3 * width + hidden if layer.heads else 0
    ffn = 2 * layer.ffn * hidden + layer.ffn + hidden if layer.ffn else 0
    return attention + ffn
