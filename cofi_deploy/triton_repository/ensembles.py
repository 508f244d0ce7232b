"""Does an ensemble connect models that are there, with tensors that fit?

Comes in: the configurations of all models of a repository. Goes out: sentences about steps without
a model, inputs without a tensor, edges whose types or shapes differ, and circles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cofi_deploy.triton_repository.fields import is_ensemble
from cofi_deploy.triton_repository.schema import ModelConfig, type_name

# Every configuration of a model: `config.pbtxt` and those in `configs`.
Models = Mapping[str, Sequence[ModelConfig]]


@dataclass(frozen=True, kw_only=True)
class _End:
    """One end of an edge: the tensor of a model."""

    where: str
    data_type: str
    shape: tuple[int, ...]  # batch axis included


def ensemble_problems(config: ModelConfig, models: Models) -> Iterator[str]:
    """What is wrong with one ensemble; nothing for any other model."""
    if not is_ensemble(config):
        return
    steps = config.ensemble_scheduling.step
    missing = sorted({step.model_name for step in steps} - set(models))
    if missing:
        yield f"a step runs {missing[0]!r}, which the repository has not: {', '.join(models)}"
        return
    if _reaches_itself(config.name, config, models):
        yield f"its steps lead back to {config.name!r} itself"
        return
    yield from _flow_problems(config)
    for step in steps:
        for model in models[step.model_name]:
            yield from _step_problems(config, step, model)
    yield from _edge_problems(config, models)


def _reaches_itself(name: str, config: ModelConfig, models: Models) -> bool:
    seen: set[str] = set()
    waiting = [config]
    while waiting:
        for step in waiting.pop().ensemble_scheduling.step:
            if step.model_name == name:
                return True
            if step.model_name not in seen:
                seen.add(step.model_name)
                waiting.extend(models.get(step.model_name, ()))
    return False


def _flow_problems(config: ModelConfig) -> Iterator[str]:
    """Every tensor has one producer, and the steps can run in some order."""
    available = {item.name for item in config.input}
    consumed: set[str] = set()
    waiting = list(config.ensemble_scheduling.step)
    while ready := [step for step in waiting if set(step.input_map.values()) <= available]:
        waiting = [step for step in waiting if step not in ready]
        for step in ready:
            consumed |= set(step.input_map.values())
            for tensor in step.output_map.values():
                if tensor in available:
                    yield f"tensor {tensor!r} has two producers, the second is {step.model_name!r}"
                available.add(tensor)
    for step in waiting:
        lacking = sorted(set(step.input_map.values()) - available)
        yield f"step {step.model_name!r} needs {lacking}, which no step before it gives"
    for item in config.output:
        if item.name not in available:
            yield f"output {item.name!r} is given by no step"
    for item in config.input:
        if item.name not in consumed:
            yield f"input {item.name!r} is used by no step"


def _step_problems(config: ModelConfig, step: ModelConfig, model: ModelConfig) -> Iterator[str]:
    what = f"step {step.model_name!r}"
    required = {item.name for item in model.input if not item.optional}
    unknown = set(step.input_map) - {item.name for item in model.input}
    for name in sorted(required - set(step.input_map)):
        yield f"{what} gives no tensor to input {name!r}"
    for name in sorted(unknown):
        yield f"{what} gives a tensor to {name!r}, which is no input of the model"
    for name in sorted(set(step.output_map) - {item.name for item in model.output}):
        yield f"{what} takes {name!r}, which is no output of the model"
    # A step without batching gets the batch axis as an ordinary one.
    if 0 < model.max_batch_size < config.max_batch_size:
        yield (
            f"max_batch_size is {config.max_batch_size}, but {what} takes {model.max_batch_size}; "
            "an ensemble may not take larger batches than its steps"
        )


def _edge_problems(config: ModelConfig, models: Models) -> Iterator[str]:
    """Types and shapes at both ends of every edge, for every configuration of the models."""
    producers = {item.name: [_end("the ensemble", config, item)] for item in config.input}
    consumers = {item.name: [_end("the ensemble", config, item)] for item in config.output}
    for step in config.ensemble_scheduling.step:
        for model in models[step.model_name]:
            _add_ends(consumers, step.input_map, model, model.input)
            _add_ends(producers, step.output_map, model, model.output)
    for tensor, ends in producers.items():
        for producer in ends:
            for consumer in consumers.get(tensor, ()):
                yield from _difference(tensor, producer, consumer)


def _add_ends(
    ends: dict[str, list[_End]],
    mapping: Mapping[str, str],
    model: ModelConfig,
    items: Iterable[ModelConfig],
) -> None:
    for item in items:
        if item.name in mapping:
            end = _end(repr(model.name), model, item)
            ends.setdefault(mapping[item.name], []).append(end)


def _end(where: str, config: ModelConfig, item: ModelConfig) -> _End:
    batch = (-1,) if config.max_batch_size > 0 else ()
    return _End(where=where, data_type=type_name(item.data_type), shape=(*batch, *item.dims))


def _difference(tensor: str, producer: _End, consumer: _End) -> Iterator[str]:
    if producer.data_type != consumer.data_type:
        yield (
            f"tensor {tensor!r} is {producer.data_type} from {producer.where}, but "
            f"{consumer.where} takes {consumer.data_type}"
        )
    same = len(producer.shape) == len(consumer.shape) and all(
        -1 in {a, b} or a == b for a, b in zip(producer.shape, consumer.shape, strict=True)
    )
    if not same:
        yield (
            f"tensor {tensor!r} has shape {list(producer.shape)} from {producer.where}, but "
            f"{consumer.where} takes {list(consumer.shape)}"
        )
