"""The optimizer loop that all stages share: one step after another, checkpointed, resumable.

A `Stage` says what is trained and what the loss is; `run_stage` does the rest.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cofi_deploy.errors import DivergedError
from cofi_deploy.train.checkpoint import read_state, restore_checkpoint, save_checkpoint
from cofi_deploy.train.progress import RunProgress

LOG_EVERY = 10
CHECKPOINT_INTERVAL_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage trains.

    Attributes:
        name: As in run.json and metrics.jsonl.
        steps: Optimizer steps.
        modules: Everything with a state, by name; ``weights`` is the model.
        optimizers: By name; the learning rate of ``weights`` follows ``lr_factor``.
        generators: Random number generators besides torch's own.
        loss: Named losses of a step; ``loss`` is what is minimised. Floats are logged only.
        after_step: Called after the optimizers have stepped.
        notes: More to write beside the losses into metrics.jsonl.
        evaluate: Metrics on the selection split; ``metric`` is the primary one.
        keep_best: Restore the weights of the best evaluation at the end.
    """

    name: str
    steps: int
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    loss: Callable[[int], Mapping[str, Tensor | float]]
    evaluate: Callable[[], dict[str, float]]
    evaluations: int
    lr_warmup: float
    max_grad_norm: float
    samples_per_step: int
    generators: Mapping[str, torch.Generator] = field(default_factory=dict)
    after_step: Callable[[], None] = lambda: None
    notes: Callable[[], Mapping[str, object]] = dict
    keep_best: bool = False
    scaler: torch.amp.GradScaler | None = None


class Interruption:
    """Turns the first Ctrl-C or SIGTERM into "finish this step, write a checkpoint, stop"."""

    def __init__(self) -> None:
        """Not asked to stop."""
        self.asked = False

    def install(self) -> None:
        """Take over both signals; the second Ctrl-C stops at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._ask)
            signal.signal(signal.SIGTERM, self._ask)

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt when a signal came; a checkpoint has been written by then."""
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


interruption = Interruption()


class BestWeights:
    """The weights of the best evaluation so far."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.metric = -math.inf
        self.tensors: dict[str, Tensor] = {}

    def offer(self, metric: float, model: nn.Module) -> None:
        """Keep a copy if ``metric`` is at least as good as before: later wins ties."""
        if metric >= self.metric:
            self.metric = metric
            self.tensors = {key: t.detach().clone() for key, t in model.state_dict().items()}


def run_stage(
    stage: Stage, checkpoint: Path, progress: RunProgress, *, resume_from: int | None = None
) -> dict[str, float]:
    """Train a stage to its end.

    Args:
        stage: What to train; changed in place.
        checkpoint: Directory of the resumable state.
        progress: Told about every step.
        resume_from: Step of the checkpoint to restore and continue from; None: a fresh start.

    Returns:
        ``seconds`` and ``samples_per_s`` of the steps run here, and ``metric``, the best one with
        ``keep_best``, else the last.

    Raises:
        DivergedError: The loss is not finite; the last checkpoint stays.
    """
    best = BestWeights()
    start = 0
    if resume_from is not None:
        _restore(stage, checkpoint, best)
        start = resume_from
    progress.start(stage.name, done=start)
    marks = {math.ceil(stage.steps * k / stage.evaluations) for k in range(1, stage.evaluations + 1)}
    began = saved = time.monotonic()
    metrics: dict[str, float] = {}
    for step in range(start, stage.steps):
        values = _step(stage, step)
        done = step + 1
        if done % LOG_EVERY == 0 or done == stage.steps:
            progress.log(step=done, **values, **stage.notes())
        progress.advance(done, {"loss": values["loss"]})
        if done in marks:
            metrics = stage.evaluate()
            progress.log(step=done, split="selection", **metrics)
            if stage.keep_best:
                best.offer(metrics["metric"], stage.modules["weights"])
        if interruption.asked or time.monotonic() - saved > CHECKPOINT_INTERVAL_S:
            save_stage(stage, checkpoint, done, best)
            saved = time.monotonic()
            interruption.stop_if_asked()
    seconds = time.monotonic() - began
    if stage.keep_best and best.tensors:
        stage.modules["weights"].load_state_dict(best.tensors)
        metrics["metric"] = best.metric
    rate = stage.samples_per_step * (stage.steps - start) / max(seconds, 1e-9)
    return {**metrics, "seconds": seconds, "samples_per_s": rate}


def save_stage(stage: Stage, checkpoint: Path, step: int, best: BestWeights | None = None) -> None:
    """Write a checkpoint of ``stage`` after ``step`` steps."""
    best = best or BestWeights()
    state = {
        "stage": stage.name,
        "step": step,
        "best_metric": best.metric if best.tensors else None,
    }
    save_checkpoint(
        checkpoint,
        state,
        modules=stage.modules,
        optimizers=stage.optimizers,
        generators=stage.generators,
        extra={f"extra/{key}": tensor for key, tensor in best.tensors.items()},
    )


def linear_lr(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak learning rate: up over ``warmup`` of the steps, then down to zero."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (steps - step) / max(1.0, steps - rising))


def _step(stage: Stage, step: int) -> dict[str, float]:
    optimizer = stage.optimizers["weights"]
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * linear_lr(step, stage.steps, stage.lr_warmup)
    losses = stage.loss(step)
    loss = losses["loss"]
    values = {
        name: float(value.detach() if isinstance(value, Tensor) else value)
        for name, value in losses.items()
    }
    if not isinstance(loss, Tensor) or not math.isfinite(values["loss"]):
        lr = optimizer.param_groups[0]["lr"]
        raise DivergedError(
            f"loss is {values['loss']} at step {step + 1} of stage {stage.name!r}, learning rate "
            f"{lr:.3g}; the last good checkpoint is kept: lower the learning rate and start again, "
            "or --resume from it"
        )
    scaler = stage.scaler or torch.amp.GradScaler(enabled=False)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, stage.max_grad_norm)
    for each in stage.optimizers.values():
        scaler.step(each)
    scaler.update()
    for each in stage.optimizers.values():
        each.zero_grad(set_to_none=True)
    stage.after_step()
    return values


def _restore(stage: Stage, checkpoint: Path, best: BestWeights) -> None:
    tensors = restore_checkpoint(
        checkpoint,
        modules=stage.modules,
        optimizers=stage.optimizers,
        generators=stage.generators,
    )
    state = read_state(checkpoint) or {}
    if tensors and state.get("best_metric") is not None:
        best.metric, best.tensors = float(state["best_metric"]), tensors
