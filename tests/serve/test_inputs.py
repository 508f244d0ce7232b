"""Inputs are checked once for every runtime, and refused with tensor, value and limit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.errors import RunnerError
from cofi_deploy.serve.inputs import InputLimits, check_inputs, random_inputs

LIMITS = InputLimits(
    names=("input_ids", "attention_mask", "token_type_ids"),
    vocab_size=50,
    max_positions=12,
    token_types=2,
)


def changed(**tensors):
    return {**random_inputs(LIMITS, 2, 6, seed=0), **tensors}


def ids(value: int, shape: tuple[int, ...] = (2, 6)):
    return np.full(shape, value, dtype=np.int64)


@given(batch=st.integers(1, 4), length=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_random_inputs_are_always_allowed(batch, length, seed):
    inputs = random_inputs(LIMITS, batch, length, seed=seed)
    check_inputs(inputs, LIMITS)
    assert {array.shape for array in inputs.values()} == {(batch, length)}


def test_missing_and_unknown_names_are_told_together():
    inputs = changed(ids=ids(1))
    del inputs["input_ids"]
    message = (
        "input 'input_ids' is missing, input 'ids' is unknown; "
        "allowed: input_ids, attention_mask, token_type_ids"
    )
    with pytest.raises(RunnerError, match=re.escape(message)):
        check_inputs(inputs, LIMITS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param(
            {"input_ids": ids(1).astype(np.int32)},
            "input 'input_ids' has dtype int32, allowed: int64",
            id="dtype",
        ),
        pytest.param(
            {"attention_mask": ids(1, (6,))},
            "input 'attention_mask' has shape (6,), allowed: (batch, sequence), both at least 1",
            id="rank",
        ),
        pytest.param(
            {"input_ids": ids(1, (2, 0))},
            "input 'input_ids' has shape (2, 0), allowed: (batch, sequence), both at least 1",
            id="empty",
        ),
        pytest.param(
            {"input_ids": ids(1, (2, 13))},
            "input 'input_ids' is 13 tokens long, allowed: up to 12; truncate the text",
            id="too long",
        ),
        pytest.param(
            {"input_ids": ids(50)},
            "input 'input_ids' holds the value 50, allowed: 0 to 49",
            id="outside the vocabulary",
        ),
        pytest.param(
            {"input_ids": ids(-1)},
            "input 'input_ids' holds the value -1, allowed: 0 to 49",
            id="negative",
        ),
        pytest.param(
            {"attention_mask": ids(2)},
            "input 'attention_mask' holds the value 2, allowed: 0 to 1",
            id="mask",
        ),
        pytest.param(
            {"token_type_ids": ids(3)},
            "input 'token_type_ids' holds the value 3, allowed: 0 to 1",
            id="type",
        ),
        pytest.param(
            {"input_ids": [[1, 2]]},
            "input 'input_ids' is a list, allowed: a numpy array",
            id="list",
        ),
        pytest.param(
            {"attention_mask": ids(1, (2, 5))},
            "input 'attention_mask' has shape (2, 5), but 'input_ids' has (2, 6); "
            "all inputs share one shape (batch, sequence)",
            id="shapes",
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_what_is_allowed(tensors, message):
    with pytest.raises(RunnerError, match=re.escape(message)):
        check_inputs(changed(**tensors), LIMITS)
