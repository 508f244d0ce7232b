"""Text in, answer out: the three models around the encoder that make `<name>_text`.

```
text -> <name>_tokenizer -> token ids -> <name> -> logits -> <name>_answer -> labels, scores, ...
```

Comes in: the source of an export and the options. Goes out: a folder for each model, with a
configuration, the packaged code (`cofi_deploy/triton_models`) and its settings. `triton.py` calls
it; `cofi_deploy.triton_repository` checks what was written.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tokenizers import Tokenizer

from cofi_deploy.artifacts import write_json
from cofi_deploy.atomic import write_bytes
from cofi_deploy.export.manifest import Source
from cofi_deploy.export.triton_config import TritonOptions, output_dims
from cofi_deploy.kinds import INPUT_NAMES, TaskKind, output_names
from cofi_deploy.triton_repository import (
    CODE_FILE,
    CONFIG_FILE,
    ModelConfig,
    import_model_config,
    served_code,
)
from cofi_deploy.triton_repository.code import Role

VERSION = "1"
SETTINGS_FILE = "settings.json"
TOKENIZER_FILE = "tokenizer.json"

# Defaults of transformers' question-answering pipeline, all in tokens.
QUESTION_MAX_LENGTH = 384
QUESTION_OVERLAP = 128
MAX_ANSWER_TOKENS = 15

_Tensors = tuple[tuple[str, str, tuple[int, ...]], ...]  # of name, type and dims


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """What flows into, between and out of the steps; dims lack the batch axis where there is one.

    A question may become many windows, so question answering has no batch axis: there the first
    axis counts questions before and after the encoder, and windows on both sides of it.
    """

    batched: bool
    texts: _Tensors
    ids: _Tensors  # what the encoder takes
    logits: _Tensors  # what it gives
    notes: _Tensors  # from the tokenizer step to the answer step
    reread: _Tensors  # texts that the answer step looks into once more
    answers: _Tensors

    @property
    def encoded(self) -> _Tensors:
        """What the tokenizer step gives."""
        return (*self.ids, *self.notes)

    @property
    def decodable(self) -> _Tensors:
        """What the answer step takes."""
        return (*self.logits, *self.notes, *self.reread)


def write_text_models(
    directory: Path, *, name: str, source: Source, options: TritonOptions
) -> None:
    """Write `<name>_tokenizer`, `<name>_answer` and `<name>_text` into ``directory``.

    Args:
        directory: The repository, not yet seen by any server.
        name: Of the encoder.
        source: Kind, labels and tokenizer of the model.
        options: How the server runs the encoder and reads and answers text.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    flow = _flow(source.kind, len(source.labels))
    _write_step(
        directory / f"{name}_tokenizer",
        tokenizer_settings(source, options),
        _step_config(f"{name}_tokenizer", flow, flow.texts, flow.encoded, options),
        role="tokenizer",
    )
    _write_tokenizer(source, directory / f"{name}_tokenizer" / VERSION / TOKENIZER_FILE)
    _write_step(
        directory / f"{name}_answer",
        answer_settings(source, options),
        _step_config(f"{name}_answer", flow, flow.decodable, flow.answers, options),
        role="answer",
    )
    (directory / f"{name}_text" / VERSION).mkdir(parents=True)
    _write_config(directory / f"{name}_text", _ensemble_config(name, flow, options))


def tokenizer_settings(source: Source, options: TritonOptions) -> dict[str, Any]:
    """What `triton_models/tokenizer.py` reads."""
    tokenizer = source.tokenizer
    longest = min(tokenizer.model_max_length, source.arch.max_positions, *_last(options))
    if source.kind == "question-answering":
        longest = min(longest, QUESTION_MAX_LENGTH)
    buckets = {min(length, longest) for length in options.length_buckets} | {longest}
    return {
        "kind": source.kind,
        "max_length": longest,
        "length_buckets": sorted(buckets),
        "max_characters": options.max_characters,
        "max_windows": options.max_batch_size,
        "overlap": min(longest // 2, QUESTION_OVERLAP),
        "truncation_side": tokenizer.truncation_side,
        "pad_id": source.arch.pad_token_id,
        "cls_id": tokenizer.cls_token_id,
        "unk_id": tokenizer.unk_token_id,
    }


def answer_settings(source: Source, options: TritonOptions) -> dict[str, Any]:
    """What `triton_models/answer.py` reads."""
    return {
        "kind": source.kind,
        "labels": list(source.labels),
        "aggregation": options.aggregation,
        "top_k": options.top_k,
        "max_answer_tokens": MAX_ANSWER_TOKENS,
    }


def _last(options: TritonOptions) -> list[int]:
    """The longest bucket: an engine may take less than the model could."""
    return sorted(options.length_buckets)[-1:]


def _flow(kind: TaskKind, labels: int) -> _Flow:
    batched = kind != "question-answering"
    windows = () if batched else (-1,)
    dims = (*windows, *output_dims(kind, labels))
    return _Flow(
        batched=batched,
        texts=_TEXTS[kind],
        ids=tuple((name, "INT64", (*windows, -1)) for name in INPUT_NAMES),
        logits=tuple((name, "FP32", dims) for name in output_names(kind)),
        notes=_NOTES.get(kind, ()),
        reread=_TEXTS[kind][-1:] if kind in _NOTES else (),
        answers=_answers(kind, labels),
    )


_TEXTS: dict[TaskKind, _Tensors] = {
    "text-classification": (("text", "STRING", (-1,)),),  # a text, or a text and its pair
    "text-regression": (("text", "STRING", (-1,)),),
    "token-classification": (("text", "STRING", (1,)),),
    "question-answering": (("question", "STRING", (-1,)), ("context", "STRING", (-1,))),
}
_NOTES: dict[TaskKind, _Tensors] = {
    "token-classification": (("token_roles", "INT8", (-1,)), ("spans", "INT32", (-1, 2))),
    "question-answering": (
        ("candidates", "INT8", (-1, -1)),
        ("spans", "INT32", (-1, -1, 2)),
        ("owners", "INT64", (-1,)),
    ),
}


def _answers(kind: TaskKind, labels: int) -> _Tensors:
    if kind == "text-classification":
        return (("labels", "STRING", (labels,)), ("scores", "FP32", (labels,)))
    if kind == "text-regression":
        return (("scores", "FP32", (1,)),)
    dims = (-1,) if kind == "token-classification" else (-1, -1)
    strings = ("labels", "words") if kind == "token-classification" else ("answers",)
    return (
        *((name, "STRING", dims) for name in strings),
        ("scores", "FP32", dims),
        ("starts", "INT64", dims),
        ("ends", "INT64", dims),
    )


def _write_step(folder: Path, settings: dict[str, Any], config: ModelConfig, *, role: Role) -> None:
    (folder / VERSION).mkdir(parents=True)
    shutil.copyfile(served_code(role), folder / VERSION / CODE_FILE)
    write_json(folder / VERSION / SETTINGS_FILE, settings)
    _write_config(folder, config)


def _write_tokenizer(source: Source, path: Path) -> None:
    """Write tokenizer.json without the padding and truncation that the last call left in it."""
    tokenizer = Tokenizer.from_str(source.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_bytes(path, tokenizer.to_str().encode())


def _write_config(folder: Path, config: ModelConfig) -> None:
    text = text_format.MessageToString(config)
    write_bytes(folder / CONFIG_FILE, text.encode())


def _step_config(
    name: str, flow: _Flow, inputs: _Tensors, outputs: _Tensors, options: TritonOptions
) -> ModelConfig:
    """Configuration of a Python model."""
    pb = import_model_config()
    config = pb.ModelConfig(
        name=name,
        backend="python",
        default_model_filename=CODE_FILE,
        max_batch_size=options.max_batch_size if flow.batched else 0,
        metric_tags=options.metric_tags,
    )
    _add_tensors(config.input, inputs)
    _add_tensors(config.output, outputs)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=options.instances)
    # Requests with strings are never merged: when the bytes of one string tensor are malformed,
    # Triton's Python backend (seen in 2.51) answers all requests of the batch with that error.
    if flow.batched and not any(data_type == "STRING" for _, data_type, _ in inputs):
        config.dynamic_batching.max_queue_delay_microseconds = 0
    return config


def _ensemble_config(name: str, flow: _Flow, options: TritonOptions) -> ModelConfig:
    """Configuration of `<name>_text`; a tensor has one name in all steps."""
    config = import_model_config().ModelConfig(
        name=f"{name}_text",
        platform="ensemble",
        max_batch_size=options.max_batch_size if flow.batched else 0,
        metric_tags=options.metric_tags,
    )
    _add_tensors(config.input, flow.texts)
    _add_tensors(config.output, flow.answers)
    for model, inputs, outputs in (
        (f"{name}_tokenizer", flow.texts, flow.encoded),
        (name, flow.ids, flow.logits),
        (f"{name}_answer", flow.decodable, flow.answers),
    ):
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        for tensor, _, _ in inputs:
            step.input_map[tensor] = tensor
        for tensor, _, _ in outputs:
            step.output_map[tensor] = tensor
    return config


def _add_tensors(field: Any, tensors: _Tensors) -> None:
    """Fill `input` or `output` of a configuration."""
    pb = import_model_config()
    for name, data_type, dims in tensors:
        field.add(name=name, data_type=pb.DataType.Value(f"TYPE_{data_type}"), dims=dims)
