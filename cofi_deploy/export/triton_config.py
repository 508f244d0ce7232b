"""A model's `config.pbtxt`, built as Triton's own protobuf message and never as text.

Comes in: what the model takes and gives, and `TritonOptions`. Goes out: a `ModelConfig` message
for each backend that can run the same version folders; `triton.py` writes them,
`cofi_deploy.triton_repository` checks them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from cofi_deploy.exports import SessionChoice
from cofi_deploy.kinds import INPUT_NAMES, TaskKind, output_names
from cofi_deploy.triton_repository import ModelConfig, import_model_config, server_version

LABELS_FILE = "labels.txt"
WARMUP_FOLDER = "warmup"  # where Triton looks for the files named in model_warmup

# What a backend opens in a version folder; TensorRT has a file for each kind of GPU.
FILES = {"onnxruntime": "model.onnx", "python": "model.py", "openvino": "model.xml"}

# Requests of equal length are merged; a text is padded to the next of these.
LENGTH_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# Of Triton's ONNX Runtime backend; without a level it does all that there is.
_GRAPH_LEVELS = {"ORT_DISABLE_ALL": 2, "ORT_ENABLE_BASIC": -1, "ORT_ENABLE_EXTENDED": 1}

Device = Literal["cpu", "gpu", "auto"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu", "auto")
Aggregation = Literal["simple", "first", "average", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = ("simple", "first", "average", "max")


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How a server runs the model, and how it reads and answers text."""

    backend: str = "onnxruntime"
    max_batch_size: int = 32  # requests are merged up to this many rows
    instances: int = 1  # copies of the model that run at the same time
    threads: int | None = None  # of each instance on the CPU; None: share the cores
    max_queue_delay_us: int = 200  # microseconds that a request may wait for others to join it
    preferred_batch_sizes: tuple[int, ...] = ()  # Triton's advice: none, unless profiles are tuned
    # auto: a GPU where the server has one; None: gpu for TensorRT, cpu for the others
    device: Device | None = None
    warmup_lengths: tuple[int, ...] = (16, 128)  # tokens; run before the model reports ready
    response_cache: bool = False  # also needs `tritonserver --cache-config local,size=...`
    metric_tags: Mapping[str, str] = field(default_factory=dict)  # labels of every metric
    versions: int = 1  # how many of the newest versions are served at the same time
    server: str | None = None  # oldest server that must load it, "2.51" or the release "25.10"
    length_buckets: tuple[int, ...] = LENGTH_BUCKETS  # tokens
    max_characters: int = 100_000  # of a text; longer ones are refused
    top_k: int = 1  # answers to a question
    aggregation: Aggregation = "simple"  # of the words of an entity

    def problems(self) -> list[str]:
        """What is out of range, one entry for each."""
        return [*self._too_small(), *self._unknown(), *self._contradictions()]

    @property
    def runs_on(self) -> Device:
        """The device, with the backend's default filled in."""
        return self.device or ("gpu" if self.backend == "tensorrt" else "cpu")

    @property
    def merges_requests(self) -> bool:
        """False for OpenVINO: its backend can only run full batches of one fixed size.

        There a request is run as it is, and throughput comes from several instances.
        """
        return self.backend != "openvino"

    @property
    def intra_op_threads(self) -> int:
        """Threads of one instance; 0 means all cores, which only a single instance may have."""
        if self.threads is not None:
            return self.threads
        if self.instances == 1:
            return 0
        return max(1, (os.cpu_count() or 1) // self.instances)

    def _too_small(self) -> Iterator[str]:
        for name, value, least in (
            ("max_batch_size", self.max_batch_size, 1),
            ("instances", self.instances, 1),
            ("max_queue_delay_us", self.max_queue_delay_us, 0),
            ("threads", 1 if self.threads is None else self.threads, 1),
            ("warmup_lengths", min(self.warmup_lengths, default=1), 1),
            ("length_buckets", min(self.length_buckets, default=0), 1),
            ("versions", self.versions, 1),
            ("max_characters", self.max_characters, 1),
            ("top_k", self.top_k, 1),
        ):
            if value < least:
                yield f"{name} is {value}, allowed: {least} or more"

    def _unknown(self) -> Iterator[str]:
        if self.device is not None and self.device not in DEVICES:
            yield f"device is {self.device!r}, allowed: {', '.join(DEVICES)}"
        if self.server is not None and server_version(self.server) is None:
            yield (
                f"server is {self.server!r}, expected a version such as '2.51' or a release such "
                "as '25.10'"
            )
        if self.aggregation not in AGGREGATIONS:
            yield f"aggregation is {self.aggregation!r}, allowed: {', '.join(AGGREGATIONS)}"

    def _contradictions(self) -> Iterator[str]:
        largest = max(1, self.max_batch_size)
        for size in self.preferred_batch_sizes:
            if not 1 <= size <= largest:
                yield f"preferred_batch_sizes has {size}, allowed: 1 to {largest}"
        only = {"tensorrt": "gpu", "openvino": "cpu"}.get(self.backend)
        if only and self.device in DEVICES and self.device != only:
            yield f"device is {self.device!r}, but backend {self.backend!r} runs on the {only} only"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One TensorRT engine in a version folder."""

    file: str
    compute_capability: str  # "8.9"
    version: str  # of TensorRT
    # One for each optimization profile: {"min" | "max": [batch, length]}.
    profiles: tuple[Mapping[str, list[int]], ...]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the configuration says about the model itself."""

    name: str
    kind: TaskKind
    labels: int  # number of classes; 0 for regression and question answering
    plans: tuple[Plan, ...] = ()  # for backend tensorrt; all have equally many profiles
    session: SessionChoice | None = None  # of a tuned ONNX export


def model_config(model: ServedModel, options: TritonOptions) -> ModelConfig:
    """The message behind `config.pbtxt`, for the backend in ``options``.

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
        max_batch_size=options.max_batch_size if options.merges_requests else 0,
        version_policy=pb.ModelVersionPolicy(
            latest=pb.ModelVersionPolicy.Latest(num_versions=options.versions)
        ),
        metric_tags=options.metric_tags,
    )
    _add_files(config, model, options)
    _add_tensors(pb, config, model)
    if options.merges_requests:
        config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us
        config.dynamic_batching.preferred_batch_size.extend(sorted(options.preferred_batch_sizes))
    _add_instances(pb, config, model, options)
    if options.response_cache:
        config.response_cache.enable = True
    for length in options.warmup_lengths:
        _add_warmups(pb, config, length)
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


def _add_files(config: ModelConfig, model: ServedModel, options: TritonOptions) -> None:
    """The file in every version folder; TensorRT picks by compute capability, else the first."""
    if options.backend != "tensorrt":
        config.default_model_filename = FILES[options.backend]
        return
    config.default_model_filename = model.plans[0].file
    if len(model.plans) > 1:
        for plan in model.plans:
            config.cc_model_filenames[plan.compute_capability] = plan.file


def _add_tensors(pb: ModuleType, config: ModelConfig, model: ServedModel) -> None:
    batch = [] if config.max_batch_size else [-1]  # Triton leaves the axis out where it batches
    for name in INPUT_NAMES:
        # Our Python code pads requests of all lengths together; other backends merge equal ones.
        config.input.add(
            name=name,
            data_type=pb.TYPE_INT64,
            dims=[*batch, -1],
            allow_ragged_batch=config.backend == "python",
        )
    dims = output_dims(model.kind, model.labels)
    for name in output_names(model.kind):
        output = config.output.add(name=name, data_type=pb.TYPE_FP32, dims=[*batch, *dims])
        if model.kind == "text-classification":
            output.label_filename = LABELS_FILE


def _add_instances(
    pb: ModuleType, config: ModelConfig, model: ServedModel, options: TritonOptions
) -> None:
    kind = pb.ModelInstanceGroup.Kind.Value(f"KIND_{options.runs_on.upper()}")
    group = config.instance_group.add(kind=kind, count=options.instances)
    if options.backend == "tensorrt":
        group.profile.extend(str(index) for index in range(len(model.plans[0].profiles)))
    for key, value in _thread_parameters(options).items():
        config.parameters[key].string_value = value
    if model.session is not None and options.backend == "onnxruntime" and options.runs_on == "cpu":
        _add_session(config, model.session, options)


def _add_session(config: ModelConfig, session: SessionChoice, options: TritonOptions) -> None:
    """What the artifact was tuned to, as far as the server's backend knows it.

    It knows neither spinning nor denormals nor single optimisers; threads that were asked for, or
    that several instances share, stay.
    """
    if session.threads is not None and options.threads is None and options.instances == 1:
        config.parameters["intra_op_thread_count"].string_value = str(session.threads)
    if session.settings.get("enable_mem_pattern") is False:
        config.parameters["enable_mem_pattern"].string_value = "0"
    level = _GRAPH_LEVELS.get(session.settings.get("graph_optimization_level", ""))
    if level is not None:
        config.optimization.graph.level = level


def _thread_parameters(options: TritonOptions) -> dict[str, str]:
    """Thread counts in each backend's own words; a GPU needs none."""
    threads = options.intra_op_threads
    if options.runs_on == "gpu":
        return {}
    if options.backend != "openvino":
        return {"intra_op_thread_count": str(threads)}
    # Instances share one compiled model, whose threads are divided among its streams.
    parameters = {"NUM_STREAMS": str(options.instances)}
    if threads:
        parameters["INFERENCE_NUM_THREADS"] = str(threads * options.instances)
    return parameters


def _add_warmups(pb: ModuleType, config: ModelConfig, length: int) -> None:
    """A single request and a full batch, for which Triton repeats its row."""
    batch = [] if config.max_batch_size else [1]
    for size in sorted({1, config.max_batch_size or 1}):
        sample = config.model_warmup.add(name=f"length_{length}_batch_{size}", batch_size=size)
        for name in INPUT_NAMES:
            item = sample.inputs[name]
            item.data_type = pb.TYPE_INT64
            item.dims.extend([*batch, length])
            item.input_data_file = warmup_file(name, length)
