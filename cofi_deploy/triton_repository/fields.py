"""Does a configuration make sense by itself, whatever files lie beside it?

Comes in: a `ModelConfig`. Goes out: sentences about fields that a server would refuse or
misunderstand: what they say, and what is allowed. Next files: `warmup.py`, `tensors.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cofi_deploy.errors import did_you_mean
from cofi_deploy.triton_repository.schema import (
    BACKENDS,
    ModelConfig,
    import_model_config,
    type_name,
    version_folders,
)

logger = logging.getLogger(__name__)

THREAD_PARAMETERS = ("intra_op_thread_count", "INFERENCE_NUM_THREADS", "NUM_STREAMS")


def field_problems(config: ModelConfig, folder: Path) -> Iterator[str]:
    """Everything that the schema lets through and a server would not."""
    if config.name and config.name != folder.name:
        yield f"name is {config.name!r}, but the folder is called {folder.name!r}"
    yield from _kind_problems(config)
    yield from _batch_problems(config)
    yield from _instance_problems(config)
    yield from _version_problems(config, folder)
    yield from _tensor_problems(config)
    yield from _thread_problems(config)
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        yield "response_cache is enabled, which a decoupled model cannot have; remove one of them"


def is_ensemble(config: ModelConfig) -> bool:
    """True for a model that only connects others."""
    return bool(config.platform == "ensemble")


def warn_about_threads(config: ModelConfig) -> None:
    """Say when the instances ask for more threads than this machine has cores.

    Only a warning: the repository may be for another machine.
    """
    instances = sum(group.count for group in config.instance_group)
    cores = os.cpu_count() or 1
    if "intra_op_thread_count" in config.parameters:
        # 0 asks for all cores, which is right for one instance only.
        threads = _number(config, "intra_op_thread_count") or cores
    elif together := _number(config, "INFERENCE_NUM_THREADS"):
        threads = together // max(1, instances)  # OpenVINO's instances share them
    else:
        return
    if instances * threads > cores:
        logger.warning(
            "%r has %d instances of %d threads, this machine has %d cores; fewer are faster here",
            config.name,
            instances,
            threads,
            cores,
        )


def _kind_problems(config: ModelConfig) -> Iterator[str]:
    if is_ensemble(config):
        if not config.ensemble_scheduling.step:
            yield "platform is 'ensemble', but ensemble_scheduling has no step"
        for name in ("instance_group", "dynamic_batching"):
            if _has(config, name):
                yield f"{name} is set, but an ensemble only connects its steps; remove it"
        return
    if config.platform:
        yield f"platform is {config.platform!r}, allowed: 'ensemble', or backend in its place"
    elif config.backend not in BACKENDS:
        yield f"backend is {config.backend!r}, {did_you_mean(config.backend, BACKENDS)}"


def _batch_problems(config: ModelConfig) -> Iterator[str]:
    size = config.max_batch_size
    if size < 0:
        yield f"max_batch_size is {size}, allowed: 0 (no batching) or more"
    if config.HasField("dynamic_batching") and size == 0:
        yield "dynamic_batching needs max_batch_size 1 or more, got 0"
    if config.backend == "openvino" and size > 0:
        yield (
            f"max_batch_size is {size}, but Triton's OpenVINO backend then refuses all smaller "
            "batches; set 0 and give the batch axis in dims"
        )
    for preferred in config.dynamic_batching.preferred_batch_size:
        if not 1 <= preferred <= max(1, size):
            yield f"preferred_batch_size is {preferred}, allowed: 1 to {max(1, size)}"


def _instance_problems(config: ModelConfig) -> Iterator[str]:
    kinds = import_model_config().ModelInstanceGroup.Kind
    for group in config.instance_group:
        kind = kinds.Name(group.kind)
        if group.count < 1:
            yield f"instance_group has count {group.count}, allowed: 1 or more"
        if config.backend == "tensorrt" and kind not in {"KIND_GPU", "KIND_AUTO"}:
            yield f"instance_group has kind {kind}, but tensorrt runs on KIND_GPU only"
        if config.backend == "openvino" and kind == "KIND_GPU":
            yield "instance_group has kind KIND_GPU, but openvino runs on KIND_CPU"
        if any(gpu < 0 for gpu in group.gpus):
            yield f"instance_group names gpus {list(group.gpus)}, allowed: 0 or more"
        if kind == "KIND_CPU" and group.gpus:
            yield f"instance_group has kind KIND_CPU, but names gpus {list(group.gpus)}"
        if group.profile and config.backend != "tensorrt":
            yield f"instance_group names profiles, which backend {config.backend!r} has not"


def _version_problems(config: ModelConfig, folder: Path) -> Iterator[str]:
    policy = config.version_policy
    present = [int(path.name) for path in version_folders(folder)]
    if policy.HasField("latest") and policy.latest.num_versions < 1:
        yield "version_policy serves the latest 0 versions, allowed: 1 or more"
    if policy.HasField("specific"):
        wrong = [version for version in policy.specific.versions if version < 1]
        if wrong or not policy.specific.versions:
            yield f"version_policy serves versions {wrong}, allowed: 1 or more"
        for version in sorted(set(policy.specific.versions) - set(present)):
            found = ", ".join(map(str, present))
            yield f"version_policy serves version {version}, the folder has {found}"


def _tensor_problems(config: ModelConfig) -> Iterator[str]:
    for role, items in (("input", config.input), ("output", config.output)):
        names = [item.name for item in items]
        if not names:
            yield f"it has no {role}; a complete configuration names every tensor"
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{role} {name!r} is there twice"
        for item in items:
            if not item.dims or any(dim != -1 and dim < 1 for dim in item.dims):
                yield (
                    f"{role} {item.name!r} has dims {list(item.dims)}, allowed: one number or "
                    "more, each -1 (any) or from 1"
                )
            if type_name(item.data_type) == "TYPE_INVALID":
                yield f"{role} {item.name!r} has no data_type"


def _thread_problems(config: ModelConfig) -> Iterator[str]:
    for name in THREAD_PARAMETERS:
        if name in config.parameters and _number(config, name) is None:
            value = config.parameters[name].string_value
            yield f"parameter {name!r} is {value!r}, allowed: a whole number, 0 or more"


def _number(config: ModelConfig, name: str) -> int | None:
    if name not in config.parameters:
        return None
    value = config.parameters[name].string_value
    return int(value) if value.isascii() and value.isdecimal() else None


def _has(config: ModelConfig, name: str) -> bool:
    return any(field.name == name for field, _ in config.ListFields())
