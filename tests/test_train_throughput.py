"""The script that times training steps: its sums, without running them."""

from __future__ import annotations

import pytest

from tests.scripts import load_script

script = load_script("train_throughput")


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("addmm", "matrix products"),
        ("_to_copy", "other"),
        ("copy_", "copies and casts"),
        ("index_select", "choosing rows and columns"),
        ("_softmax_backward_data", "softmax"),
        ("native_layer_norm_backward", "LayerNorm"),
        ("linalg_vector_norm", "optimizer and clipping"),
        ("_fused_adamw_", "optimizer and clipping"),
        ("mse_loss_backward", "layer loss"),
        ("add_", "sums and elementwise products"),
        ("gelu_backward", "activation"),
    ],
)
def test_operators_are_counted_by_what_they_are_for(operator: str, kind: str):
    assert script._kind(operator) == kind


def test_the_rate_of_each_tenth_is_samples_over_its_seconds():
    seconds = [1.0] * 10 + [0.5] * 10
    assert list(script._by_tenth(seconds, 32)) == [32.0] * 5 + [64.0] * 5
    assert list(script._by_tenth([2.0], 32)) == [16.0]


def test_seconds_are_differences_of_the_ends_of_steps():
    steps = script._Steps()
    steps.ends = [1.0, 3.0, 3.5]
    assert steps.seconds == [2.0, 0.5]
