"""The one model: an `Encoder` with the head of a task, opened by transformers' Auto classes.

Dense, masked or compact, decided by its `Arch` and by the masks it is given. Next file:
`families.py`.
"""

from __future__ import annotations

from typing import Any

import torch
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
from cofi_deploy.encoder import Activation, Encoder, EncoderOutput, activation_of
from cofi_deploy.errors import CheckpointError
from cofi_deploy.folding import Kept, slice_columns
from cofi_deploy.kinds import TaskKind
from cofi_deploy.masks import Masks


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
        self.pooler_activation = activation_of(self.arch.pooler_activation)
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
        self.pooler_activation = activation_of(self.arch.pooler_activation)
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


def _pooler(arch: Arch) -> nn.Linear | None:
    return None if arch.pooler is None else nn.Linear(arch.hidden, arch.pooler)


def _pool(pooler: nn.Linear, activation: Activation, encoded: EncoderOutput) -> Tensor:
    return activation(_consume(pooler, encoded.last[:, 0], encoded.kept))


def _consume(linear: nn.Linear, x: Tensor, kept: Kept | None) -> Tensor:
    """Apply a map that reads the residual stream, on its kept dimensions only."""
    weight = linear.weight if kept is None else slice_columns(linear.weight, kept)
    return products.linear(x, weight, linear.bias)
