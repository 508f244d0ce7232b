"""The one encoder: dense, masked or compact, decided by its `Arch` and by the masks it is given.

Post-LayerNorm, BERT's architecture and its relatives': where families differ, the `Arch` has a
size or a name for it. Head counts are constants of each layer, never inferred from
tensor shapes: a graph that reshapes with -1 lets optimizers fuse with a wrong count in silence.
A vanished sublayer is the identity: no residual, no LayerNorm. Next file: `families.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from cofi_deploy import products
from cofi_deploy.arch import Arch
from cofi_deploy.embeddings import Embeddings
from cofi_deploy.errors import CheckpointError
from cofi_deploy.folding import (
    AttentionWeights,
    FfnWeights,
    Kept,
    NormWeights,
    fold_attention,
    fold_ffn,
    slice_columns,
)
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import Masks

# Added to the scores of padding. Finite, so that a row of nothing but padding gives no NaN, and
# inside fp16's range (65504); exp(-1e4) is exactly 0 in fp32, so padding has no influence.
MASKED_SCORE = -1e4

Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class CofiConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Hugging Face configuration that carries an `Arch` as JSON."""

    model_type = "cofi"

    def __init__(
        self,
        arch: dict[str, Any] | None = None,
        task_kind: TaskKind = "text-classification",
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Store plain JSON values only; `arch` is None solely for transformers' empty configs."""
        self.arch = arch
        self.task_kind = task_kind
        self.dropout = dropout
        super().__init__(**kwargs)
        if arch is not None:
            # What pipelines and exporters of other tools look up.
            self.hidden_size = arch["hidden"]
            self.num_hidden_layers = len(arch["layers"])
            self.vocab_size = arch["vocab_size"]
            self.max_position_embeddings = arch["max_positions"]
            self.pad_token_id = arch["pad_token_id"]

    @classmethod
    def from_arch(
        cls,
        arch: Arch,
        kind: TaskKind,
        *,
        labels: tuple[str, ...] = (),
        dropout: float = 0.1,
    ) -> CofiConfig:
        """Configuration of a model for one task; regression and QA have no labels."""
        names = labels or (("LABEL_0",) if kind == "text-regression" else ("LABEL_0", "LABEL_1"))
        problem = {
            "text-regression": "regression",
            "text-classification": "single_label_classification",
        }
        return cls(
            arch=arch.to_json(),
            task_kind=kind,
            dropout=dropout,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            problem_type=problem.get(kind),
            architectures=[MODEL_CLASSES[kind].__name__],
        )

    @property
    def structure(self) -> Arch:
        """The `Arch` object.

        Raises:
            CheckpointError: The configuration carries none.
        """
        if self.arch is None:
            raise CheckpointError(
                "config.json has no entry 'arch'; this is not a model that cofi-deploy wrote"
            )
        return Arch.from_json(self.arch)


class EncoderOutput(NamedTuple):
    """What the encoder gives; ``kept`` is None unless masks were applied."""

    last: Float[Tensor, "batch sequence kept_hidden"]
    states: tuple[Tensor, ...]  # embeddings, then each layer's output
    kept: Kept | None


class Encoder(nn.Module):
    """Embeddings and layers of an `Arch`."""

    def __init__(self, arch: Arch, dropout: float) -> None:
        """Allocate what the architecture keeps; weights are initialised by the model."""
        super().__init__()
        self.embeddings = Embeddings(arch, dropout)
        self.layers = nn.ModuleList(
            Layer(arch, index, dropout) for index in range(len(arch.layers))
        )

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"],
        token_type_ids: Int[Tensor, "batch sequence"],
        masks: Masks | None = None,
    ) -> EncoderOutput:
        """Run all layers; with ``masks``, on the sub-network that they leave."""
        kept = None if masks is None else Kept.of(masks)
        x = self.embeddings(input_ids, token_type_ids, kept)
        bias = (
            1.0 - attention_mask[:, None, None, :].to(x.dtype)
        ) * MASKED_SCORE  # (batch, 1, 1, sequence)
        states = [x]
        for layer in self.layers:
            x = layer(x, bias, kept)
            states.append(x)
        return EncoderOutput(x, tuple(states), kept)


class Layer(nn.Module):
    """One attention and one feed-forward sublayer, either of which may be gone."""

    def __init__(self, arch: Arch, index: int, dropout: float) -> None:
        """Only the kept sublayers get modules."""
        super().__init__()
        shape = arch.layers[index]
        self.attention = Attention(arch, index, dropout) if shape.heads else None
        self.ffn = FeedForward(arch, index, dropout) if shape.ffn else None

    def forward(self, x: Tensor, bias: Tensor, kept: Kept | None) -> Tensor:
        """States (batch, sequence, kept hidden) to states of the same shape."""
        if self.attention is not None:
            x = self.attention(x, bias, kept)
        if self.ffn is not None:
            x = self.ffn(x, kept)
        return x


class Attention(nn.Module):
    """Multi-head self-attention with residual and LayerNorm."""

    def __init__(self, arch: Arch, index: int, dropout: float) -> None:
        """``index`` is the layer's place, needed to look its masks up."""
        super().__init__()
        self.index = index
        self.heads = arch.layers[index].heads
        self.head_size = arch.head_size
        width = self.heads * self.head_size
        self.query = nn.Linear(arch.hidden, width)
        self.key = nn.Linear(arch.hidden, width)
        self.value = nn.Linear(arch.hidden, width)
        self.output = nn.Linear(width, arch.hidden)
        self.norm = nn.LayerNorm(arch.hidden, eps=arch.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def weights(self) -> AttentionWeights:
        """The layer's own parameters, unfolded."""
        return AttentionWeights(
            self.query.weight,
            self.query.bias,
            self.key.weight,
            self.key.bias,
            self.value.weight,
            self.value.bias,
            self.output.weight,
            self.output.bias,
            NormWeights(self.norm.weight, self.norm.bias),
        )

    def forward(self, x: Tensor, bias: Tensor, kept: Kept | None) -> Tensor:
        """Attend, add, normalise; the identity when the masks leave no head."""
        weights: AttentionWeights | None = self.weights()
        heads = self.heads
        if kept is not None:
            weights = fold_attention(self.weights(), kept, self.index, self.head_size)
            heads = kept.heads[self.index].numel()
        if weights is None:
            return x
        context = self._context(x, bias, weights, heads)
        out = products.linear(context, weights.output, weights.output_bias)
        return _layer_norm(self.dropout(out) + x, weights.norm, self.norm.eps)

    def _context(self, x: Tensor, bias: Tensor, weights: AttentionWeights, heads: int) -> Tensor:
        batch, length = x.shape[:2]
        shape = (batch, length, heads, self.head_size)
        projections = [
            (weights.query, weights.query_bias),
            (weights.key, weights.key_bias),
            (weights.value, weights.value_bias),
        ]
        query, key, value = (
            part.view(shape).transpose(1, 2) for part in products.linears(x, projections)
        )  # (batch, heads, sequence, head_size) each
        query = query * (1.0 / math.sqrt(self.head_size))
        scores = query @ key.transpose(-1, -2) + bias  # (batch, heads, sequence, sequence)
        context: Tensor = self.dropout(scores.softmax(dim=-1)) @ value
        return context.transpose(1, 2).reshape(batch, length, heads * self.head_size)


class FeedForward(nn.Module):
    """Two linear maps around an activation, with residual and LayerNorm."""

    def __init__(self, arch: Arch, index: int, dropout: float) -> None:
        """``index`` is the layer's place, needed to look its masks up."""
        super().__init__()
        self.index = index
        self.activation = _activation(arch.activation)
        self.up = nn.Linear(arch.hidden, arch.layers[index].ffn)
        self.down = nn.Linear(arch.layers[index].ffn, arch.hidden)
        self.norm = nn.LayerNorm(arch.hidden, eps=arch.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def weights(self) -> FfnWeights:
        """The layer's own parameters, unfolded."""
        norm = NormWeights(self.norm.weight, self.norm.bias)
        return FfnWeights(self.up.weight, self.up.bias, self.down.weight, self.down.bias, norm)

    def forward(self, x: Tensor, kept: Kept | None) -> Tensor:
        """Feed forward, add, normalise; the identity when the masks leave no unit."""
        weights: FfnWeights | None = self.weights()
        if kept is not None:
            weights = fold_ffn(self.weights(), kept, self.index)
        if weights is None:
            return x
        inner = self.activation(products.linear(x, weights.up, weights.up_bias))
        out = self.dropout(products.linear(inner, weights.down, weights.down_bias))
        return _layer_norm(out + x, weights.norm, self.norm.eps)


class CofiPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Shared by all heads: the encoder, initialisation and defaults of optional inputs."""

    config_class = CofiConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    _no_split_modules = ["Layer"]  # noqa: RUF012 - declared as a list by the base class

    def __init__(self, config: CofiConfig) -> None:
        """Build the encoder of ``config``'s Arch."""
        super().__init__(config)
        self.arch = config.structure
        self.encoder = Encoder(self.arch, config.dropout)

    @property
    def kind(self) -> TaskKind:
        """What the model's head is for."""
        kind: TaskKind = self.config.task_kind
        return kind

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masks: Masks | None = None,
    ) -> EncoderOutput:
        """Run the encoder; a missing mask means no padding, missing types mean one segment."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        output: EncoderOutput = self.encoder(input_ids, attention_mask, token_type_ids, masks)
        return output

    def head(self, encoded: EncoderOutput) -> dict[str, Tensor]:
        """Named outputs of the task's head; see `kinds.output_names`."""
        raise NotImplementedError

    def outputs(self, inputs: dict[str, Tensor], masks: Masks | None = None) -> dict[str, Tensor]:
        """Encoder and head in one call: named input tensors to named output tensors."""
        return self.head(self.encode(**inputs, masks=masks))

    def _init_weights(self, module: nn.Module) -> None:
        """BERT's initialisation: normal with deviation 0.02, zero biases."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


class CofiModel(CofiPreTrainedModel):  # type: ignore[no-untyped-call]
    """The bare encoder, for embeddings; pooled output where the Arch has a pooler."""

    def __init__(self, config: CofiConfig) -> None:
        """Encoder, and the pooler if there is one."""
        super().__init__(config)
        self.pooler = _pooler(self.arch)
        self.pooler_activation = _activation(self.arch.pooler_activation)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Hidden states of the last layer and, with a pooler, of the first token."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids)
        pooled = (
            None if self.pooler is None else _pool(self.pooler, self.pooler_activation, encoded)
        )
        return BaseModelOutputWithPooling(last_hidden_state=encoded.last, pooler_output=pooled)


class CofiForSequenceClassification(CofiPreTrainedModel):  # type: ignore[no-untyped-call]
    """Classification, or regression with one logit: pooler, activation, dropout, linear."""

    def __init__(self, config: CofiConfig) -> None:
        """Encoder, pooler and classifier; the pooler's output is never pruned."""
        super().__init__(config)
        self.num_labels = len(config.id2label or ())
        self.pooler = _pooler(self.arch)
        self.pooler_activation = _activation(self.arch.pooler_activation)
        width = self.arch.hidden if self.arch.pooler is None else self.arch.pooler
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def head(self, encoded: EncoderOutput) -> dict[str, Tensor]:
        """``logits`` (batch, labels)."""
        if self.pooler is None:
            raise CheckpointError("a classifier needs an Arch with a pooler, got pooler None")
        pooled = _pool(self.pooler, self.pooler_activation, encoded)
        return {"logits": self.classifier(self.dropout(pooled))}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits, and the loss when labels (batch,) are given."""
        logits = self.head(self.encode(input_ids, attention_mask, token_type_ids))["logits"]
        loss = None
        if labels is not None and self.kind == "text-regression":
            loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class CofiForTokenClassification(CofiPreTrainedModel):  # type: ignore[no-untyped-call]
    """A label for each token: dropout and linear, no pooler."""

    def __init__(self, config: CofiConfig) -> None:
        """Encoder and classifier."""
        super().__init__(config)
        self.num_labels = len(config.id2label or ())
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.arch.hidden, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def head(self, encoded: EncoderOutput) -> dict[str, Tensor]:
        """``logits`` (batch, sequence, labels)."""
        return {"logits": _consume(self.classifier, self.dropout(encoded.last), encoded.kept)}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> TokenClassifierOutput:
        """Logits, and the loss when labels (batch, sequence) are given; -100 is ignored."""
        logits = self.head(self.encode(input_ids, attention_mask, token_type_ids))["logits"]
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


class CofiForQuestionAnswering(CofiPreTrainedModel):  # type: ignore[no-untyped-call]
    """Start and end of the answer: one linear map to two logits for each token."""

    def __init__(self, config: CofiConfig) -> None:
        """Encoder and span classifier."""
        super().__init__(config)
        self.classifier = nn.Linear(self.arch.hidden, 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def head(self, encoded: EncoderOutput) -> dict[str, Tensor]:
        """``start_logits`` and ``end_logits``, (batch, sequence) each."""
        start, end = _consume(self.classifier, encoded.last, encoded.kept).unbind(dim=-1)
        return {"start_logits": start, "end_logits": end}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> QuestionAnsweringModelOutput:
        """Span logits."""
        logits = self.head(self.encode(input_ids, attention_mask, token_type_ids))
        start, end = logits["start_logits"], logits["end_logits"]
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


MODEL_CLASSES: dict[TaskKind, type[CofiPreTrainedModel]] = {
    "text-classification": CofiForSequenceClassification,
    "text-regression": CofiForSequenceClassification,
    "token-classification": CofiForTokenClassification,
    "question-answering": CofiForQuestionAnswering,
}


def build(config: CofiConfig) -> CofiPreTrainedModel:
    """A model of ``config``'s kind with freshly initialised weights."""
    return MODEL_CLASSES[config.task_kind](config)


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"activation is {name!r}, allowed: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _layer_norm(x: Tensor, norm: NormWeights, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, eps)


def _pooler(arch: Arch) -> nn.Linear | None:
    return None if arch.pooler is None else nn.Linear(arch.hidden, arch.pooler)


def _pool(pooler: nn.Linear, activation: Activation, encoded: EncoderOutput) -> Tensor:
    return activation(_consume(pooler, encoded.last[:, 0], encoded.kept))


def _consume(linear: nn.Linear, x: Tensor, kept: Kept | None) -> Tensor:
    """Apply a map that reads the residual stream, on its kept dimensions only."""
    weight = linear.weight if kept is None else slice_columns(linear.weight, kept)
    return products.linear(x, weight, linear.bias)
