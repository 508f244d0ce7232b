"""A model's `config.pbtxt`, built as Triton's own protobuf message and never as text.

Comes in: what the model takes and gives, and `TritonOptions`. Goes out: a `ModelConfig` message;
`triton.py` writes it, `cofi_deploy.triton_repository` checks it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from cofi_deploy.arch import Arch
from cofi_deploy.kinds import INPUT_NAMES, TaskKind, output_names
from cofi_deploy.triton_repository import ModelConfig, import_model_config

LABELS_FILE = "labels.txt"
WARMUP_FOLDER = "warmup"  # where Triton looks for the files named in model_warmup

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How a server runs the model."""

    backend: str = "onnxruntime"
    max_batch_size: int = 32  # requests are merged up to this many rows
    instances: int = 1  # copies of the model that run at the same time
    max_queue_delay_us: int = 200  # microseconds that a request may wait for others to join it
    device: Device = "cpu"
    threads: int | None = None  # of each instance on the CPU; None: share the cores
    warmup_lengths: tuple[int, ...] = (16, 128)  # tokens; run before the model reports ready

    def problems(self) -> list[str]:
        """What is out of range, one entry for each."""
        found = [
            f"{name} is {value}, allowed: {least} or more"
            for name, value, least in (
                ("max_batch_size", self.max_batch_size, 1),
                ("instances", self.instances, 1),
                ("max_queue_delay_us", self.max_queue_delay_us, 0),
                ("threads", 1 if self.threads is None else self.threads, 1),
                ("warmup_lengths", min(self.warmup_lengths, default=1), 1),
            )
            if value < least
        ]
        if self.device not in {"cpu", "gpu"}:
            found.append(f"device is {self.device!r}, allowed: cpu, gpu")
        return found

    @property
    def intra_op_threads(self) -> int:
        """Threads of one instance; 0 means all cores, which only a single instance may have."""
        if self.threads is not None:
            return self.threads
        if self.instances == 1:
            return 0
        return max(1, (os.cpu_count() or 1) // self.instances)


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the configuration says about the model itself."""

    name: str
    file: str  # in the version folder
    kind: TaskKind
    labels: tuple[str, ...]
    arch: Arch
    source_sha256: str


def model_config(model: ServedModel, options: TritonOptions) -> ModelConfig:
    """The message behind `config.pbtxt`.

    Args:
        model: What is served.
        options: How it is served; for its warm-up lengths the files of `warmup_file` must exist.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    pb = import_model_config()
    config = pb.ModelConfig(
        name=model.name,
        backend=options.backend,
        max_batch_size=options.max_batch_size,
        default_model_filename=model.file,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
    )
    for name in INPUT_NAMES:
        config.input.add(name=name, data_type=pb.TYPE_INT64, dims=[-1])
    dims = output_dims(model.kind, len(model.labels))
    for name in output_names(model.kind):
        output = config.output.add(name=name, data_type=pb.TYPE_FP32, dims=dims)
        if model.kind == "text-classification":
            output.label_filename = LABELS_FILE
    config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us
    kind = pb.ModelInstanceGroup.Kind.Value(f"KIND_{options.device.upper()}")
    config.instance_group.add(kind=kind, count=options.instances)
    for key, value in _parameters(model, options).items():
        config.parameters[key].string_value = value
    for length in options.warmup_lengths:
        for batch in sorted({1, options.max_batch_size}):
            _add_warmup(pb, config, length, batch)
    return config


def output_dims(kind: TaskKind, labels: int) -> list[int]:
    """Shape of an output without the batch axis; -1 is the sequence."""
    dims: Mapping[TaskKind, list[int]] = {
        "text-classification": [labels],
        "text-regression": [1],
        "token-classification": [-1, labels],
        "question-answering": [-1],
    }
    return dims[kind]


def warmup_file(name: str, length: int) -> str:
    """File that holds the warm-up data of an input at a length."""
    return f"{name}_{length}"


def _parameters(model: ServedModel, options: TritonOptions) -> dict[str, str]:
    parameters = {
        "cofi_deploy_arch": json.dumps(model.arch.to_json()),
        "cofi_deploy_source_sha256": model.source_sha256,
        "cofi_deploy_task_kind": model.kind,
    }
    if options.device == "cpu":
        parameters["intra_op_thread_count"] = str(options.intra_op_threads)
    return parameters


def _add_warmup(pb: ModuleType, config: ModelConfig, length: int, batch: int) -> None:
    """One sample; Triton repeats its single row ``batch`` times."""
    sample = config.model_warmup.add(name=f"length_{length}_batch_{batch}", batch_size=batch)
    for name in INPUT_NAMES:
        item = sample.inputs[name]
        item.data_type = pb.TYPE_INT64
        item.dims.append(length)
        item.input_data_file = warmup_file(name, length)
