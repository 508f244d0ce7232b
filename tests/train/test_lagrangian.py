"""The sparsity constraint and its schedule."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.train.lagrangian import (
    Lagrangian,
    SparsitySchedule,
    progress_at,
    scheduled_sparsity,
    warmup_progress,
)

FRACTIONS = st.floats(0.0, 1.0)


def test_fresh_multipliers_penalise_nothing():
    assert float(Lagrangian()(torch.tensor(0.3), 0.9).detach()) == 0.0


@pytest.mark.parametrize(("linear", "quadratic"), [(2.0, 0.0), (0.0, 3.0), (-1.5, 4.0)])
def test_penalty_has_its_closed_form_and_gradients(linear: float, quadratic: float):
    lagrangian = Lagrangian().double()
    with torch.no_grad():
        lagrangian.lambda_linear.fill_(linear)
        lagrangian.lambda_quadratic.fill_(quadratic)
    sparsity = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gap = 0.3 - 0.9
    penalty = lagrangian(sparsity, 0.9)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(linear * gap + quadratic * gap**2)
    assert float(sparsity.grad) == pytest.approx(linear + 2 * quadratic * gap)
    assert float(lagrangian.lambda_linear.grad) == pytest.approx(gap)
    assert float(lagrangian.lambda_quadratic.grad) == pytest.approx(gap**2)


def test_penalty_is_zero_where_the_constraint_is_met():
    lagrangian = Lagrangian()
    with torch.no_grad():
        lagrangian.lambda_linear.fill_(-7.0)
        lagrangian.lambda_quadratic.fill_(5.0)
    assert float(lagrangian(torch.tensor(0.5), 0.5).detach()) == 0.0


@pytest.mark.parametrize(("start", "target"), [(0.1, 0.8), (0.9, 0.4)])
def test_ascent_and_descent_together_reach_the_target_from_both_sides(start: float, target: float):
    log_alpha = torch.logit(torch.tensor(start)).requires_grad_()
    lagrangian = Lagrangian()
    down = torch.optim.AdamW([log_alpha], lr=0.05, weight_decay=0.0)
    up = torch.optim.AdamW(lagrangian.parameters(), lr=0.05, weight_decay=0.0, maximize=True)
    for _ in range(800):
        lagrangian(log_alpha.sigmoid(), target).backward()
        for optimizer in (down, up):
            optimizer.step()
            optimizer.zero_grad()
    assert float(log_alpha.detach().sigmoid()) == pytest.approx(target, abs=0.03)


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
@given(last=st.floats(0.01, 1.0), progress=FRACTIONS)
def test_schedules_rise_from_0_to_the_last_target_and_can_be_turned_round(
    schedule: SparsitySchedule, last: float, progress: float
):
    words: dict[str, Any] = {"last": last, "schedule": schedule}
    assert scheduled_sparsity(0.0, **words) == 0.0
    assert scheduled_sparsity(1.0, **words) == last
    value = scheduled_sparsity(progress, **words)
    assert 0.0 <= value <= last
    assert scheduled_sparsity(min(1.0, progress + 0.01), **words) >= value
    again = scheduled_sparsity(progress_at(value, **words), **words)
    assert again == pytest.approx(value, abs=1e-9)


def test_schedules_have_their_shape_in_the_middle():
    assert scheduled_sparsity(0.5, last=0.8, schedule="linear") == pytest.approx(0.4)
    assert scheduled_sparsity(0.5, last=0.8, schedule="cubic") == pytest.approx(0.7)
    assert progress_at(0.7, last=0.8, schedule="cubic") == pytest.approx(0.5)
    assert progress_at(0.9, last=0.8, schedule="cubic") == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
@given(target=st.floats(0.01, 1.0), warmup=st.integers(1, 500))
def test_schedules_run_from_0_to_the_target_and_stay(
    schedule: SparsitySchedule, target: float, warmup: int
):
    values = [
        scheduled_sparsity(warmup_progress(step, warmup), last=target, schedule=schedule)
        for step in range(0, 2 * warmup + 1)
    ]
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert values[warmup:] == pytest.approx([target] * (warmup + 1), abs=1e-12)
    steps = [later - earlier for earlier, later in itertools.pairwise(values)]
    assert all(step >= -1e-12 for step in steps)


def test_without_warm_up_the_target_holds_from_the_first_step():
    for schedule in ("linear", "cubic"):
        value = scheduled_sparsity(warmup_progress(0, 0), last=0.7, schedule=schedule)
        assert value == pytest.approx(0.7)
