"""The optimizer loop that all stages share: one step after another, checkpointed, resumable.

A `Stage` says what is trained and what the loss is; `run_stage` does the rest. Where several
processes train, they step together: losses and gradients are added up, everything else is done
alike by all, and the first one logs, scores and saves.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cofi_deploy.errors import DivergedError
from cofi_deploy.train.checkpoint import read_state, restore_checkpoint, save_checkpoint
from cofi_deploy.train.processes import (
    add_up,
    any_of,
    copy_from_main,
    is_main,
    known_to_all,
    on_main,
    own_random_stream,
    together,
    world_size,
)

if TYPE_CHECKING:
    from cofi_deploy.train.progress import RunProgress

LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What the loops of all stages of a run have in common.

    Attributes:
        evaluations: On the selection split, evenly spread over a stage.
        lr_warmup: Share of a stage's steps in which the learning rate rises.
        max_grad_norm: Gradients of the weights above it are scaled down.
        samples_per_step: For the samples per second that are reported.
        seed: Of the random numbers of all processes but the first.
        scaler: Loss scaling of fp16, None elsewhere.
    """

    evaluations: int
    lr_warmup: float
    max_grad_norm: float
    samples_per_step: int
    seed: int = 0
    scaler: torch.amp.GradScaler | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage trains.

    Attributes:
        name: As in run.json and metrics.jsonl.
        steps: Optimizer steps.
        modules: Everything with a state, by name; ``weights`` is the model.
        optimizers: By name; the learning rate of ``weights`` follows `linear_lr`.
        lr_setting: Name of the setting that holds the peak of that learning rate.
        generators: Random number generators besides torch's own.
        loss: Named losses of a step; ``loss`` is what is minimised. Floats are logged only.
            Where processes share a batch, what is named ``loss...`` is this process's addend.
        after_step: Called after the optimizers have stepped.
        notes: More to write beside the losses into metrics.jsonl.
        evaluate: Metrics on the selection split; ``metric`` is the primary one.
        pace: What it has in common with the other stages of the run.
        keep_best: Restore the weights of the best evaluation at the end.
        schedule: Which part this stage is of a longer schedule of the learning rate.
    """

    name: str
    steps: int
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    lr_setting: str
    loss: Callable[[int], Mapping[str, Tensor | float]]
    evaluate: Callable[[], dict[str, float]]
    pace: Pace
    generators: Mapping[str, torch.Generator] = field(default_factory=dict)
    after_step: Callable[[], None] = lambda: None
    notes: Callable[[], Mapping[str, object]] = dict
    keep_best: bool = False
    schedule: Part | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Steps from ``begin`` up to ``end`` of ``whole``, which several stages share."""

    begin: int
    end: int
    whole: int


class Interruption:
    """Turns the first Ctrl-C or SIGTERM into "finish this step, write a checkpoint, stop".

    A context manager, so that a signal before or after training does what it did before.
    """

    def __init__(self) -> None:
        """Not asked to stop."""
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Take over both signals; the second one stops at once."""
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt when a signal came; called where nothing would be lost."""
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        # A launcher passes on to its processes what the terminal may have told them already.
        if self.asked and world_size() == 1:
            raise KeyboardInterrupt
        self.asked = True


interruption = Interruption()


@dataclass(kw_only=True)
class Standing:
    """Where a stage stands: what a checkpoint keeps beside weights and optimizers.

    Attributes:
        step: Optimizer steps done.
        seconds: Time that they took, earlier processes included.
        metrics: Of the last evaluation.
        best: Metrics of the best evaluation so far; empty before the first.
        best_tensors: The weights at that evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_tensors: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, model: nn.Module) -> None:
        """Keep a copy of the weights if they score at least as well: later wins ties."""
        if not self.best or self.metrics["metric"] >= self.best["metric"]:
            self.best = self.metrics
            self.best_tensors = {key: t.detach().clone() for key, t in model.state_dict().items()}


def run_stage(
    stage: Stage,
    checkpoint: Path,
    progress: RunProgress,
    *,
    resume: bool = False,
    interval_s: float = 120.0,
) -> dict[str, float]:
    """Train a stage to its end.

    Args:
        stage: What to train; changed in place.
        checkpoint: Directory of the resumable state.
        progress: Told about every step.
        resume: Restore the checkpoint and continue from its step.
        interval_s: Seconds between two checkpoints.

    Returns:
        ``seconds`` and ``samples_per_s`` of all steps, and the metrics of the best evaluation
        with ``keep_best``, else of the last.

    Raises:
        DivergedError: Loss or gradients are not finite; the last checkpoint stays.
    """
    with together():
        standing = _restore(stage, checkpoint) if resume else Standing()
    copy_from_main(
        [value for each in stage.modules.values() for value in each.state_dict().values()]
    )
    progress.start(stage.name, done=standing.step)
    marks = _evaluation_steps(stage)
    clock = saved = time.monotonic()
    for step in range(standing.step, stage.steps):
        values = _step(stage, step)
        standing.step = step + 1
        if standing.step % LOG_EVERY == 0 or standing.step == stage.steps:
            with together():
                progress.log(step=standing.step, **values, **stage.notes())
        progress.advance(standing.step, {"loss": values["loss"]})
        if standing.step in marks:
            _evaluate(stage, standing, progress)
        now = time.monotonic()
        standing.seconds, clock = standing.seconds + now - clock, now
        stop, due = any_of(interruption.asked, is_main() and now - saved >= interval_s)
        if stop or due:
            on_main(lambda: save_stage(stage, checkpoint, standing))
            clock = saved = time.monotonic()
        if stop:
            interruption.asked = False
            raise known_to_all(KeyboardInterrupt())
    if stage.keep_best and standing.best:
        stage.modules["weights"].load_state_dict(standing.best_tensors)
    rate = stage.pace.samples_per_step * stage.steps / max(standing.seconds, 1e-9)
    metrics = standing.best if stage.keep_best else standing.metrics
    return {**metrics, "seconds": standing.seconds, "samples_per_s": rate}


def save_stage(stage: Stage, checkpoint: Path, standing: Standing) -> None:
    """Write a checkpoint of ``stage``."""
    scaler = stage.pace.scaler
    state = {
        "stage": stage.name,
        "step": standing.step,
        "seconds": standing.seconds,
        "metrics": standing.metrics,
        "best": standing.best,
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    save_checkpoint(
        checkpoint,
        state,
        modules=stage.modules,
        optimizers=stage.optimizers,
        generators=stage.generators,
        extra={f"extra/{key}": tensor for key, tensor in standing.best_tensors.items()},
    )


def linear_lr(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak learning rate: up over ``warmup`` of the steps, then down to zero."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (steps - step) / max(1.0, steps - rising))


def _evaluation_steps(stage: Stage) -> set[int]:
    count = stage.pace.evaluations
    return {math.ceil(stage.steps * number / count) for number in range(1, count + 1)}


def _evaluate(stage: Stage, standing: Standing, progress: RunProgress) -> None:
    standing.metrics = on_main(stage.evaluate)
    with together():
        progress.log(step=standing.step, split="selection", **standing.metrics)
    if stage.keep_best:
        standing.offer(stage.modules["weights"])


def _step(stage: Stage, step: int) -> dict[str, float]:
    optimizer = stage.optimizers["weights"]
    part = stage.schedule or Part(begin=0, end=stage.steps, whole=stage.steps)
    for group in optimizer.param_groups:
        factor = linear_lr(part.begin + step, part.whole, stage.pace.lr_warmup)
        group["lr"] = group["peak_lr"] * factor
    own_random_stream(stage.pace.seed, stage.name, step)
    scaler = stage.pace.scaler or torch.amp.GradScaler(enabled=False)
    with together():
        values = stage.loss(step)
        scaler.scale(torch.as_tensor(values["loss"])).backward()  # type: ignore[no-untyped-call]
    values = _whole_batch(values, stage)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(_parameters(optimizer), stage.pace.max_grad_norm)
    others = [each for each in stage.optimizers.values() if each is not optimizer]
    numbers = _numbers({**values, "norm": norm + _grad_norm(others, norm)})
    gradient_norm = numbers.pop("norm")
    if not math.isfinite(numbers["loss"]):
        raise known_to_all(_diverged("loss", numbers["loss"], stage, step))
    # The scaler of fp16 skips such a step by itself; elsewhere it would spoil the weights, and
    # with them the next checkpoint.
    if stage.pace.scaler is None and not math.isfinite(gradient_norm):
        raise known_to_all(_diverged("gradient norm", gradient_norm, stage, step))
    for each in stage.optimizers.values():
        scaler.step(each)
    scaler.update()
    for each in stage.optimizers.values():
        each.zero_grad(set_to_none=True)
    stage.after_step()
    return numbers


def _whole_batch(
    values: Mapping[str, Tensor | float], stage: Stage
) -> Mapping[str, Tensor | float]:
    """Add up gradients and losses over the processes that share the batch."""
    if world_size() == 1:
        return values
    names = [name for name in values if name.startswith("loss")]
    losses = torch.stack([torch.as_tensor(values[name]).detach().float() for name in names])
    parameters = [p for each in stage.optimizers.values() for p in _parameters(each)]
    # Masks are the same everywhere, so the same parameters have a gradient everywhere.
    add_up([*(p.grad for p in parameters if p.grad is not None), losses])
    return {**values, **dict(zip(names, losses.unbind(), strict=True))}


def _numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Scalars as floats: one copy from a GPU for all of them, which waits for it once."""
    tensors = {name: each.detach() for name, each in values.items() if isinstance(each, Tensor)}
    read = dict(zip(tensors, torch.stack([*tensors.values()]).tolist(), strict=True))
    return {name: read.get(name, each) for name, each in values.items()}


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _grad_norm(optimizers: Sequence[Optimizer], like: Tensor) -> Tensor:
    gradients = [p.grad for each in optimizers for p in _parameters(each) if p.grad is not None]
    return torch.stack([like.new_zeros(()), *(each.norm() for each in gradients)]).sum()


def _diverged(what: str, value: float, stage: Stage, step: int) -> DivergedError:
    peak = stage.optimizers["weights"].param_groups[0]["peak_lr"]
    return DivergedError(
        f"{what} is {value} at step {step + 1} of stage {stage.name!r}; the last good checkpoint "
        f"is kept: lower {stage.lr_setting} (the rate peaks at {peak:g}) and train again"
    )


def _restore(stage: Stage, checkpoint: Path) -> Standing:
    best_tensors = restore_checkpoint(
        checkpoint,
        modules=stage.modules,
        optimizers=stage.optimizers,
        generators=stage.generators,
    )
    state = read_state(checkpoint) or {}
    if stage.pace.scaler is not None and state.get("scaler"):
        stage.pace.scaler.load_state_dict(state["scaler"])
    return Standing(
        step=state["step"],
        seconds=state["seconds"],
        metrics=state["metrics"],
        best=state["best"],
        best_tensors=best_tensors,
    )
