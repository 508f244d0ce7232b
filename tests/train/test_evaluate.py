"""Scoring a model on a split: the task's metric, masks included, without side effects."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cofi_deploy.kinds import TASK_KINDS, TaskKind, output_names
from cofi_deploy.train.cut import cut
from cofi_deploy.train.evaluate import evaluate
from tests.builders import SMALL, masks_of, random_model, random_split

LENGTHS = [1 + (3 * index) % 11 for index in range(90)]


def recording_task(kind: TaskKind) -> SimpleNamespace:
    """The part of a `Task` that is used; keeps what it was asked to score."""
    seen: list[dict[str, np.ndarray]] = []

    def score(_encoded, outputs) -> dict[str, float]:
        seen.extend(outputs)
        return {"accuracy": 0.75, "f1": 0.5}

    return SimpleNamespace(kind=kind, metric_name="f1", score=score, seen=seen)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_masked_and_cut_models_are_scored_on_the_same_outputs(kind: TaskKind):
    encoded, model = random_split(LENGTHS, kind), random_model(kind)
    masks = masks_of(SMALL, hidden=20, heads=[1, 0, 3], ffn=[20, 3, 0])
    masked, small = recording_task(kind), recording_task(kind)
    scores = evaluate(model, masked, encoded, masks)
    evaluate(cut(model, masks), small, encoded)
    assert scores == {"accuracy": 0.75, "f1": 0.5, "metric": 0.5}
    assert len(masked.seen) == len(LENGTHS)
    for length, mine, theirs in zip(LENGTHS, masked.seen, small.seen, strict=True):
        assert set(mine) == set(output_names(kind))
        for name, value in mine.items():
            if "text" not in kind:
                assert value.shape[0] == length
            np.testing.assert_allclose(value, theirs[name], atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_scoring_and_the_mode_comes_back(training: bool):
    kind: TaskKind = "text-classification"
    encoded, model = random_split(LENGTHS, kind), random_model(kind, dropout=0.5)
    first, second = recording_task(kind), recording_task(kind)
    for task in (first, second):
        evaluate(model.train(training), task, encoded)
        assert model.training == training
    for one, other in zip(first.seen, second.seen, strict=True):
        assert np.array_equal(one["logits"], other["logits"])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
