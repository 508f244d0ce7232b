"""The optimizer loop: learning rates, divergence, best weights, interruption."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from cofi_deploy.errors import DivergedError
from cofi_deploy.train.checkpoint import read_state
from cofi_deploy.train.loop import (
    Pace,
    Stage,
    Standing,
    interruption,
    linear_lr,
    run_stage,
    save_stage,
)
from cofi_deploy.train.progress import RunProgress

PEAK_LR = 0.1


class Toy:
    """A stage that fits one linear layer; metrics and losses can be scripted."""

    def __init__(self, *, steps=10, metrics=(0.5,), bad_loss=None, bad_gradient=None):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.metrics = iter(metrics)
        self.bad_loss = bad_loss or {}
        self.bad_gradient = bad_gradient
        self.rates = []
        self.seen = []
        groups = [{"params": list(self.model.parameters()), "peak_lr": PEAK_LR}]
        self.optimizer = AdamW(groups, lr=PEAK_LR)
        self.stage = Stage(
            name="toy",
            steps=steps,
            modules={"weights": self.model},
            optimizers={"weights": self.optimizer},
            lr_setting="toy_lr",
            loss=self.loss,
            evaluate=self.evaluate,
            keep_best=True,
            pace=Pace(
                evaluations=len(metrics), lr_warmup=0.2, max_grad_norm=1.0, samples_per_step=4
            ),
        )

    def loss(self, step):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        loss = (self.model(torch.randn(4, 2)) - 3.0).square().mean()
        if step in self.bad_loss:
            loss = loss * self.bad_loss[step]
        if step == self.bad_gradient:
            loss = loss + (self.model.weight * 0.0).sum().sqrt()  # 0, with a gradient of NaN
        return {"loss": loss}

    def evaluate(self):
        self.seen.append(self.model.weight.detach().clone())
        return {"metric": next(self.metrics), "number": len(self.seen)}


@pytest.fixture
def run(tmp_path):
    def run_toy(toy, **options):
        planned = {"toy": (toy.stage.steps, 1.0)}
        with RunProgress(tmp_path / "metrics.jsonl", planned) as progress:
            return run_stage(toy.stage, tmp_path / "checkpoint", progress, **options)

    return run_toy


@given(st.integers(1, 400), st.floats(0.0, 0.9))
def test_the_learning_rate_rises_linearly_then_falls_linearly_to_zero(steps, warmup):
    rising = warmup * steps
    for step in range(steps):
        if step < rising:
            expected = (step + 1) / (rising + 1)
        else:
            expected = (steps - step) / max(1.0, steps - rising)
        factor = linear_lr(step, steps, warmup)
        assert factor == pytest.approx(min(1.0, expected))
        assert 0.0 < factor <= 1.0
    assert linear_lr(steps, steps, warmup) == 0.0


def test_without_warm_up_the_first_step_has_the_peak():
    assert [linear_lr(step, 4, 0.0) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_every_step_uses_the_scheduled_rate(run):
    toy = Toy()
    run(toy)
    assert toy.rates == pytest.approx([PEAK_LR * linear_lr(step, 10, 0.2) for step in range(10)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_loss_that_is_not_finite_names_the_step_and_what_to_lower(run, tmp_path, value):
    toy = Toy(bad_loss={6: value})
    words = (
        f"loss is {value} at step 7 of stage 'toy'; the last good checkpoint is kept: lower toy_lr"
    )
    with pytest.raises(DivergedError, match=re.escape(words) + r" \(the rate peaks at 0.1\)"):
        run(toy, interval_s=0.0)
    assert read_state(tmp_path / "checkpoint")["step"] == 6
    again = Toy()
    run(again, resume=True)
    assert torch.isfinite(again.model.weight).all()


def test_gradients_that_are_not_finite_never_reach_the_weights(run, tmp_path):
    toy = Toy(bad_gradient=4)
    with pytest.raises(DivergedError, match="gradient norm is nan at step 5 of stage 'toy'"):
        run(toy, interval_s=0.0)
    assert torch.isfinite(toy.model.weight).all()
    assert read_state(tmp_path / "checkpoint")["step"] == 4


def test_the_weights_of_the_best_evaluation_are_kept(run):
    toy = Toy(metrics=(0.2, 0.9, 0.3))
    results = run(toy)
    assert torch.equal(toy.model.weight, toy.seen[1])
    assert (results["metric"], results["number"]) == (0.9, 2)


def test_the_later_of_two_equal_evaluations_is_kept(run):
    toy = Toy(metrics=(0.9, 0.9, 0.3))
    assert run(toy)["number"] == 2


def test_the_best_weights_survive_a_resumption(run, tmp_path):
    first = Toy(metrics=(0.9, 0.1), bad_loss={8: float("nan")})
    with pytest.raises(DivergedError):
        run(first, interval_s=0.0)
    second = Toy(metrics=(0.1, 0.2))
    results = run(second, resume=True)
    assert results["metric"] == 0.9
    assert torch.equal(second.model.weight, first.seen[0])


def test_a_resumption_at_the_last_step_still_has_its_metrics(run, tmp_path):
    toy = Toy()
    results = run(toy, interval_s=0.0)
    assert read_state(tmp_path / "checkpoint")["step"] == 10
    again = run(Toy(), resume=True)
    assert again["metric"] == results["metric"]
    assert again["seconds"] == pytest.approx(results["seconds"], rel=0.5, abs=0.1)


def test_no_checkpoint_is_written_before_its_time(run, tmp_path):
    run(Toy(), interval_s=1e9)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_ends_the_step_writes_a_checkpoint_and_stops(run, tmp_path, number):
    toy = Toy()
    loss = toy.loss

    def signalled(step):
        if step == 3:
            os.kill(os.getpid(), number)
        return loss(step)

    object.__setattr__(toy.stage, "loss", signalled)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruption:
        run(toy)
    assert read_state(tmp_path / "checkpoint")["step"] == 4
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_second_signal_stops_at_once():
    with interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with interruption:
        assert not interruption.asked


def test_a_stage_may_be_saved_before_its_first_step(tmp_path):
    save_stage(Toy().stage, tmp_path / "checkpoint", Standing())
    state = read_state(tmp_path / "checkpoint")
    assert (state["stage"], state["step"], state["best"]) == ("toy", 0, {})
