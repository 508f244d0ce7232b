"""`Target`: names that a sparsity and a speedup have in stages, runs and result rows."""

from __future__ import annotations

import pytest

from cofi_deploy.targets import Target, speedup_told


@pytest.mark.parametrize(
    ("target", "share", "name", "label", "keys"),
    [
        (Target("sparsity", 0.95), 0.95, "0.95", "s95", {"target_sparsity": 0.95}),
        (Target("speedup", 10.0), 0.9, "10x", "x10", {"target_speedup": 10.0}),
        (Target("speedup", 2.5), 0.6, "2.5x", "x2.5", {"target_speedup": 2.5}),
    ],
)
def test_a_target_has_a_share_and_names(target, share, name, label, keys):
    assert target.share == pytest.approx(share)
    assert (target.name, target.label, target.keys) == (name, label, keys)
    assert Target.of({"metric": 0.9, **target.keys}) == target


def test_of_a_model_without_latency_nothing_is_told():
    assert speedup_told({}) == ""
