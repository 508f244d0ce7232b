"""benchmarks/alignment.py compares like with like: parameters are equal, only widths differ."""

from __future__ import annotations

import pytest

from tests.scripts import load_script

SIZES = load_script("alignment").SIZES


@pytest.mark.parametrize("name", SIZES)
def test_the_ffn_of_a_group_has_the_same_parameters_in_every_alignment(name: str):
    group, _, multiple = name.partition("-")
    (hidden, widths), (any_hidden, any_widths) = SIZES[name], SIZES[f"{group}-any"]
    assert hidden * sum(widths) == pytest.approx(any_hidden * sum(any_widths), rel=0.004)
    if multiple != "any":
        assert {size % int(multiple) for size in (hidden, *widths)} == {0}
