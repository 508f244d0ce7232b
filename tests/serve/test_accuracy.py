"""A split through a runner comes back in order, scored, and compared with PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.accuracy import (
    agreement,
    compare,
    disagreements,
    max_abs_logit_diff,
    mean_abs_logit_diff,
    score_split,
)
from cofi_deploy.serve.runner import open_runner


@pytest.fixture(scope="module")
def encoded(task, pruned):
    return task.encode("validation", load_tokenizer(pruned.tokenizer), limit=30)


def test_batching_by_length_changes_neither_order_nor_answers(task, pruned, encoded):
    with open_runner(pruned.artifacts["torch"], "torch", threads=1) as runner:
        one_by_one = [
            runner.infer({name: encoded.batch([index])[name] for name in runner.input_names})[
                "logits"
            ][0]
            for index in range(len(encoded))
        ]
        scored = score_split(runner, task, encoded, batch_size=7)
    for alone, batched in zip(one_by_one, scored.outputs, strict=True):
        np.testing.assert_allclose(batched["logits"], alone, atol=1e-5)
    assert scored.predictions == [int(logits.argmax()) for logits in one_by_one]
    assert scored.wall_s > 0


def test_the_metric_is_the_tasks_own(task, pruned, encoded):
    with open_runner(pruned.artifacts["torch"], "torch", threads=1) as runner:
        scored = score_split(runner, task, encoded)
    gold = [example.label for example in encoded.examples]
    right = np.mean([one == label for one, label in zip(scored.predictions, gold, strict=True)])
    assert scored.metrics["accuracy"] == pytest.approx(right)


def test_another_runtime_is_compared_with_pytorch(task, pruned, encoded):
    answers = {}
    for runtime in ("torch", "onnxruntime-cpu"):
        with open_runner(pruned.artifacts[runtime], runtime, threads=1) as runner:
            answers[runtime] = score_split(runner, task, encoded)
    parity = compare(answers["torch"], answers["onnxruntime-cpu"])
    assert parity.agreement == 1.0
    assert 0 <= parity.max_abs_logit_diff < 1e-4


def test_the_largest_difference_is_found_in_any_output():
    first = [{"start_logits": np.zeros(3), "end_logits": np.zeros(3)}]
    second = [{"start_logits": np.zeros(3), "end_logits": np.array([0.0, -2.5, 1.0])}]
    assert max_abs_logit_diff(first, second) == 2.5


def test_the_mean_difference_weighs_every_logit_alike():
    first = [{"logits": np.zeros(1)}, {"logits": np.zeros(3)}]
    second = [{"logits": np.array([4.0])}, {"logits": np.array([0.0, -2.0, 2.0])}]
    assert mean_abs_logit_diff(first, second) == 2.0
    assert mean_abs_logit_diff(first, first[::-1]) is None


def test_agreement_is_the_share_of_equal_predictions():
    assert agreement(["a", "b", "c", "d"], ["a", "x", "c", "d"]) == 0.75
    assert disagreements(["a", "b"], ["a", "x"]) == [1]


def test_scores_that_differ_in_their_last_bits_agree():
    assert agreement([3.14159, 2.0], [3.14160, 2.1]) == 0.5
