"""Distillation losses against numbers worked out by hand, and the matching of layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cofi_deploy.folding import Kept
from cofi_deploy.kinds import TASK_KINDS, TaskKind
from cofi_deploy.masks import Masks
from cofi_deploy.train.batches import Batch
from cofi_deploy.train.cut import cut
from cofi_deploy.train.distill import (
    LayerProjection,
    layer_loss,
    match_layers,
    pairwise_mse,
    prediction_loss,
    teacher_layers,
)
from cofi_deploy.train.losses import Distillation, label_loss, living_layers
from cofi_deploy.train.teacher import LiveTeacher, TeacherAnswers
from tests.builders import SMALL, float64_modules, masks_of, random_inputs, random_model

ALL_VALID = torch.ones(2, 3, dtype=torch.bool)


def soft_divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 * sum q (log q - log p) of one row of logits, in numpy."""
    p = np.exp(student / temperature) / np.exp(student / temperature).sum()
    q = np.exp(teacher / temperature) / np.exp(teacher / temperature).sum()
    return float(temperature**2 * (q * (np.log(q) - np.log(p))).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_classification_loss_is_the_mean_divergence_times_temperature_squared(temperature: float):
    student, teacher = np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[1.0, 0.5], [0.0, 3.0]])
    expected = np.mean(
        [soft_divergence(s, t, temperature) for s, t in zip(student, teacher, strict=True)]
    )
    loss = prediction_loss(
        {"logits": torch.tensor(student)},
        {"logits": torch.tensor(teacher)},
        kind="text-classification",
        valid=ALL_VALID,
        temperature=temperature,
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_divergence_of_a_two_class_example_has_its_known_value():
    # teacher uniform, student odds 1:3 at temperature 1: ln 2 ... = 0.5 ln(4/3)
    loss = prediction_loss(
        {"logits": torch.tensor([[0.0, math.log(3.0)]])},
        {"logits": torch.zeros(1, 2)},
        kind="text-classification",
        valid=ALL_VALID,
        temperature=1.0,
    )
    assert float(loss) == pytest.approx(0.5 * math.log(4.0 / 3.0), rel=1e-5)


def test_regression_learns_by_mean_squared_error_and_has_a_gradient():
    student = torch.tensor([[1.0], [4.0]], requires_grad=True)
    teacher = torch.tensor([[3.0], [3.5]])
    loss = prediction_loss(
        {"logits": student},
        {"logits": teacher},
        kind="text-regression",
        valid=ALL_VALID,
        temperature=2.0,
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx((4.0 + 0.25) / 2)
    torch.testing.assert_close(student.grad, torch.tensor([[-2.0], [0.5]]))


def test_token_loss_is_the_mean_over_valid_tokens():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    valid = np.array([[True, True, False], [True, False, False]])
    expected = np.mean(
        [
            soft_divergence(student[at], teacher[at], 2.0)
            for at in zip(*valid.nonzero(), strict=True)
        ]
    )
    loss = prediction_loss(
        {"logits": torch.tensor(student)},
        {"logits": torch.tensor(teacher)},
        kind="token-classification",
        valid=torch.tensor(valid),
        temperature=2.0,
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_question_answering_loss_is_a_softmax_over_valid_positions_of_start_and_end():
    rng = np.random.default_rng(1)
    lengths = (4, 2)
    valid = torch.tensor([[column < length for column in range(4)] for length in lengths])
    student = {name: rng.normal(size=(2, 4)) for name in ("start_logits", "end_logits")}
    teacher = {name: rng.normal(size=(2, 4)) for name in ("start_logits", "end_logits")}
    expected = np.mean(
        [
            soft_divergence(student[name][row, :length], teacher[name][row, :length], 2.0)
            for name in student
            for row, length in enumerate(lengths)
        ]
    )
    for filler in (0.0, 50.0, -50.0):
        for logits in (*student.values(), *teacher.values()):
            logits[1, 2:] = filler
        loss = prediction_loss(
            {name: torch.tensor(value) for name, value in student.items()},
            {name: torch.tensor(value) for name, value in teacher.items()},
            kind="question-answering",
            valid=valid,
            temperature=2.0,
        )
        assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_equal_predictions_cost_nothing(kind: TaskKind):
    logits = random_model(kind).outputs(random_inputs(lengths=(3, 2)))
    valid = torch.tensor([[True, True, True], [True, True, False]])
    loss = prediction_loss(logits, logits, kind=kind, valid=valid, temperature=2.0)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_gradient_of_the_prediction_loss_is_its_finite_difference(kind: TaskKind):
    with float64_modules():
        inputs = random_inputs(lengths=(3, 2))
        teacher, student = (random_model(kind, seed=seed).outputs(inputs) for seed in (1, 2))
    valid = inputs["attention_mask"].bool()
    step = 1e-3  # the losses work in fp32
    for name, logits in student.items():
        value = logits.detach().requires_grad_()
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).double()

        def loss_at(
            shift: float, name: str = name, value: Tensor = value, direction: Tensor = direction
        ) -> Tensor:
            moved = {**student, name: value + shift * direction}
            return prediction_loss(moved, teacher, kind=kind, valid=valid, temperature=2.0)

        (gradient,) = torch.autograd.grad(loss_at(0.0), value)
        with torch.no_grad():
            slope = float(loss_at(step) - loss_at(-step)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, (3, 6, 9, 12)),
        (6, (2, 3, 5, 6)),
        (24, (6, 12, 18, 24)),
        (4, (1, 2, 3, 4)),
        (3, (1, 2, 3)),
        (2, (1, 2)),
        (1, (1,)),
    ],
)
def test_teacher_layers_are_spread_evenly_up_to_the_last(depth: int, layers: tuple[int, ...]):
    assert teacher_layers(depth) == layers


@given(depth=st.integers(1, 48), count=st.integers(1, 12))
def test_teacher_layers_are_distinct_ascending_and_end_at_the_top(depth: int, count: int):
    layers = teacher_layers(depth, count)
    assert len(layers) == min(depth, count)
    assert list(layers) == sorted(set(layers))
    assert layers[0] >= 1
    assert layers[-1] == depth


def test_free_matching_takes_the_cheapest_in_any_order():
    costs = torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.5, 0.3], [2.0, 2.0, 1.0]])
    assert match_layers(costs, "free") == [1, 0, 2]


@pytest.mark.parametrize(
    ("costs", "matches"),
    [
        # Free would be 1, 0, 2; from the top: 2, then the best below 2, then what is left below.
        ([[3.0, 1.0, 2.0], [0.1, 0.5, 0.3], [2.0, 2.0, 1.0]], [0, 0, 2]),
        # The top takes 1, so 2 is closed to the others.
        ([[9.0, 8.0, 0.0], [9.0, 8.0, 0.0], [5.0, 1.0, 4.0]], [0, 0, 1]),
        # The reference's failing case: the lowest is taken at the top and serves all below.
        ([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0], [0.0, 1.0, 2.0]], [0, 0, 0]),
        ([[0.0, 9.0, 9.0, 9.0], [9.0, 9.0, 0.0, 9.0], [9.0, 9.0, 9.0, 0.0]], [0, 2, 3]),
        # One living layer for four teacher layers.
        ([[1.0], [2.0], [3.0], [4.0]], [0, 0, 0, 0]),
        ([[1.0, 2.0], [1.0, 2.0], [9.0, 2.0], [9.0, 2.0]], [0, 0, 0, 1]),
    ],
)
def test_monotonic_matching_goes_down_from_the_top(costs: list[list[float]], matches: list[int]):
    assert match_layers(torch.tensor(costs), "monotonic") == matches


@given(
    teachers=st.integers(1, 6),
    candidates=st.integers(1, 12),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_monotonic_matching_is_greedy_strict_and_never_out_of_range(
    teachers: int, candidates: int, seed: int
):
    costs = torch.rand(teachers, candidates, generator=torch.Generator().manual_seed(seed))
    chosen = match_layers(costs, "monotonic")
    assert len(chosen) == teachers
    limit = candidates
    for row, choice in zip(reversed(costs.tolist()), reversed(chosen), strict=True):
        allowed = range(limit) if limit > 0 else range(1)
        assert choice in allowed
        assert row[choice] == min(row[index] for index in allowed)
        limit = choice


@pytest.mark.parametrize(
    ("teachers", "candidates", "matches"),
    [(4, 12, [2, 5, 8, 11]), (4, 4, [0, 1, 2, 3]), (4, 2, [0, 0, 1, 1]), (4, 1, [0, 0, 0, 0])],
)
def test_fixed_matching_spreads_evenly_whatever_the_cost(
    teachers: int, candidates: int, matches: list[int]
):
    costs = torch.rand(teachers, candidates, generator=torch.Generator().manual_seed(0))
    assert match_layers(costs, "fixed") == matches


@given(rows=st.integers(1, 4), columns=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pairwise_costs_equal_direct_mean_squared_errors(rows: int, columns: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, 7, 5, generator=generator) for count in (rows, columns))
    costs = pairwise_mse(a, b)
    for row in range(rows):
        for column in range(columns):
            direct = float((a[row] - b[column]).square().mean())
            assert float(costs[row, column]) == pytest.approx(direct, rel=1e-4, abs=1e-5)


def test_pairwise_costs_keep_their_precision_under_autocast():
    # Close candidates differ by less than bf16 resolves in the product.
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 40, 32, generator=generator)
    b = a + torch.tensor([0.10, 0.05, 0.15])[:, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = pairwise_mse(a, b)
    torch.testing.assert_close(costs, torch.tensor([[0.01, 0.0025, 0.0225]]), rtol=1e-3, atol=1e-5)


def test_layer_loss_is_the_mean_over_teacher_layers_of_the_matched_errors():
    projection = LayerProjection(2)
    teacher = torch.tensor([[[1.0, 1.0]], [[4.0, 4.0]]])
    # One row of two tokens; the second is padding, and far off.
    student = [
        torch.tensor([[token, [99.0, -99.0]]]) for token in ([1.0, 2.0], [9.0, 9.0], [4.0, 2.0])
    ]
    loss, matched = layer_loss(
        student,
        teacher,
        projection,
        None,
        valid=torch.tensor([[True, False]]),
        alive=[True, True, True],
        matching="monotonic",
    )
    assert matched == [0, 2]
    assert float(loss.detach()) == pytest.approx((0.5 + 2.0) / 2)


@pytest.mark.parametrize(
    ("alive", "matching", "expected"),
    [
        ([True, False, True], "free", [2, 2]),
        ([False, True, False], "monotonic", [1, 1]),
        ([True, False, False], "fixed", [0, 0]),
        ([False, False, False], "monotonic", [2, 2]),
    ],
)
def test_only_living_layers_are_matched_and_the_last_when_none_lives(
    alive: list[bool], matching: str, expected: list[int]
):
    projection = LayerProjection(2)
    teacher = torch.full((2, 3, 2), 5.0)
    student = [torch.full((1, 3, 2), value) for value in (1.0, 5.0, 2.0)]
    valid = torch.ones(1, 3, dtype=torch.bool)
    _, matched = layer_loss(
        student, teacher, projection, None, valid=valid, alive=alive, matching=matching
    )
    assert matched == expected


def test_a_layer_lives_by_either_of_its_sublayers():
    masks = masks_of(SMALL, heads=[0, 2, 0], ffn=[4, 0, 5], ffn_off=[2])
    assert living_layers(random_model("text-classification"), Kept.of(masks)) == [True, True, False]
    compact = cut(random_model("text-classification"), masks)
    assert living_layers(compact, None) == [True, True, False]


def test_gradient_of_the_layer_loss_is_its_finite_difference():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    student = [
        torch.randn(2, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    ]
    valid = torch.tensor([[True, True, True, True], [True, False, False, False]])
    projection = LayerProjection(4).double()

    def loss(*values: Tensor) -> Tensor:
        states, weight, bias = values[:3], values[3], values[4]
        parameters = {"linear.weight": weight, "linear.bias": bias}

        def project(x: Tensor, kept: Kept | None) -> Tensor:
            return torch.func.functional_call(projection, parameters, (x, kept))

        return layer_loss(
            states, teacher, project, None, valid=valid, alive=[True] * 3, matching="fixed"
        )[0]

    weight, bias = projection.linear.weight, projection.linear.bias
    assert torch.autograd.gradcheck(loss, [*student, weight, bias])


def test_projection_starts_as_the_identity_and_reads_kept_dimensions_only():
    projection, states = LayerProjection(SMALL.hidden), torch.randn(5, SMALL.hidden)
    assert torch.equal(projection(states, None), states)
    masks = masks_of(SMALL, hidden=10)
    kept = Kept.of(masks)
    expected = torch.zeros(5, SMALL.hidden)
    expected[:, kept.hidden] = states[:, kept.hidden]
    assert torch.equal(projection(states[:, kept.hidden], kept), expected)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_masked_and_cut_students_have_the_same_losses(kind: TaskKind):
    masks = masks_of(SMALL, hidden=17, heads=[2, 0, 1], ffn=[5, 20, 0], seed=4)
    with float64_modules():
        teacher, student = random_model(kind, seed=1), random_model(kind, seed=2)
        projection, batch = random_projection(), random_batch(kind)
        answers = LiveTeacher(teacher, (1, 3)).answers(batch)
        masks = Masks(**{name: value.double() for name, value in vars(masks).items()})
        before, matched = distillation(kind)(student, projection, batch, answers, masks)
        compact = cut(student, masks)
        projection.cut(masks)
        after, matched_after = distillation(kind)(compact, projection, batch, answers)
    assert matched == matched_after
    assert projection.linear.in_features == projection.linear.weight.shape[1] == 17
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_padding_has_no_influence_on_any_loss(kind: TaskKind):
    teacher, student = random_model(kind, seed=1), random_model(kind, seed=2)
    masks, projection = masks_of(SMALL, hidden=15, heads=[1, 2, 0]), random_projection()
    losses = []
    for width, filler in ((9, 0), (9, 33), (14, 7)):
        batch = random_batch(kind, width=width, filler=filler)
        answers = LiveTeacher(teacher, (1, 3)).answers(batch)
        losses.append(distillation(kind)(student, projection, batch, answers, masks)[0])
    assert set(losses[0]) == {"loss", "loss_prediction", "loss_layer", "loss_label"}
    for other in losses[1:]:
        for name, value in losses[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_weights_of_the_losses_add_up():
    kind: TaskKind = "text-classification"
    teacher, student = random_model(kind, seed=1), random_model(kind, seed=2)
    batch, projection = random_batch(kind), random_projection()
    answers = LiveTeacher(teacher, (1, 2, 3)).answers(batch)
    losses, _ = distillation(kind)(student, projection, batch, answers)
    total = (
        0.5 * losses["loss_prediction"] + 2.0 * losses["loss_layer"] + 0.25 * losses["loss_label"]
    )
    torch.testing.assert_close(losses["loss"], total)


def test_losses_of_weight_zero_are_not_computed():
    kind: TaskKind = "text-classification"
    student, batch = random_model(kind), random_batch(kind)
    # No states at all: touching them would fail.
    answers = TeacherAnswers(
        LiveTeacher(random_model(kind), (1,)).answers(batch).outputs, torch.empty(0)
    )
    only = Distillation(
        kind=kind,
        temperature=2.0,
        prediction_weight=1.0,
        layer_weight=0.0,
        label_weight=0.0,
        matching="free",
    )
    losses, matched = only(student, random_projection(), batch, answers)
    assert matched == []
    assert float(losses["loss_layer"]) == 0.0
    assert "loss_label" not in losses
    torch.testing.assert_close(losses["loss"], losses["loss_prediction"])


def test_label_losses_have_their_values_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    loss = label_loss({"logits": logits}, {"labels": torch.tensor([1, 0])}, "text-classification")
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)
    scores = torch.tensor([[1.0], [2.0]])
    loss = label_loss({"logits": scores}, {"labels": torch.tensor([3.0, 2.5])}, "text-regression")
    assert float(loss) == pytest.approx((4.0 + 0.25) / 2)
    tokens = torch.tensor([[[0.0, math.log(3.0)], [9.0, 0.0]]])
    loss = label_loss(
        {"logits": tokens}, {"labels": torch.tensor([[1, -100]])}, "token-classification"
    )
    assert float(loss) == pytest.approx(math.log(4 / 3), rel=1e-5)


def distillation(kind: TaskKind) -> Distillation:
    return Distillation(
        kind=kind,
        temperature=2.0,
        prediction_weight=0.5,
        layer_weight=2.0,
        label_weight=0.25,
        matching="monotonic",
    )


def random_projection() -> LayerProjection:
    projection = LayerProjection(SMALL.hidden)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in projection.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    return projection


def random_batch(kind: TaskKind, *, width: int = 9, filler: int = 0) -> Batch:
    """Four features of 9, 4, 1 and 7 tokens; ``filler`` stands where padding is."""
    inputs = random_inputs(width=9)
    mask = torch.zeros(4, width, dtype=torch.long)
    mask[:, :9] = inputs["attention_mask"]
    wide = {name: torch.full((4, width), filler) for name in inputs}
    for name, value in wide.items():
        value[:, :9][mask[:, :9] == 1] = inputs[name][mask[:, :9] == 1]
    wide |= {"attention_mask": mask, "token_type_ids": wide["token_type_ids"] % 2}
    targets = {
        "text-classification": {"labels": torch.tensor([2, 0, 1, 1])},
        "text-regression": {"labels": torch.tensor([0.5, 4.0, -1.0, 2.5])},
        "token-classification": {"labels": torch.where(mask == 1, wide["token_type_ids"], -100)},
        "question-answering": {
            "start_positions": torch.tensor([3, 2, 0, 6]),
            "end_positions": torch.tensor([8, 3, 0, 6]),
        },
    }[kind]
    return Batch(np.arange(4), wide, targets, mask.bool())
