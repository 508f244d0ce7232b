"""Which steps of one pruning lead to which member of a family."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.config import TrainSettings
from cofi_deploy.train.plan import planned_stages, pruning_parts

SPARSITIES = st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True).map(
    lambda found: tuple(each / 100 for each in sorted(found))
)


@dataclass(frozen=True)
class OneStepAnEpoch:
    """Stands in for the batches, so that epochs are steps."""

    encoded: tuple[int, ...] = (0,)

    def steps(self, epochs: float) -> int:
        return round(epochs)


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(
        **{"warmup_epochs": 100.0, "prune_epochs": 10.0, "distill_epochs": 0.0, **changes}
    )


@pytest.mark.parametrize(
    ("schedule", "ends"), [("linear", [50, 75, 110]), ("cubic", [21, 37, 110])]
)
def test_a_member_is_cut_where_the_schedule_passes_its_target(schedule: str, ends: list[int]):
    chosen = settings(sparsities=(0.4, 0.6, 0.8), sparsity_schedule=schedule)
    parts = list(pruning_parts(chosen, OneStepAnEpoch()).values())
    assert [part.end for part in parts] == ends
    assert [part.begin for part in parts] == [0, *ends[:-1]]
    assert {part.whole for part in parts} == {110}


@given(
    sparsities=SPARSITIES,
    schedule=st.sampled_from(["linear", "cubic"]),
    warmup=st.integers(0, 300),
    rest=st.integers(1, 300),
)
def test_parts_follow_each_other_and_none_is_empty(
    sparsities: tuple[float, ...], schedule: str, warmup: int, rest: int
):
    chosen = settings(
        sparsities=sparsities,
        sparsity_schedule=schedule,
        warmup_epochs=float(warmup),
        prune_epochs=float(rest),
    )
    parts = list(pruning_parts(chosen, OneStepAnEpoch()).values())
    assert parts[0].begin == 0
    assert all(one.end == next_one.begin for one, next_one in itertools.pairwise(parts))
    assert all(part.begin < part.end for part in parts)
    assert parts[-1].end == parts[-1].whole == max(parts[-1].end, warmup + rest)


def test_the_family_prunes_as_many_steps_as_its_last_member_alone():
    family = planned_stages(
        settings(sparsities=(0.6, 0.8, 0.9)), OneStepAnEpoch(), trains_teacher=False, cached=False
    )
    alone = planned_stages(
        settings(sparsities=(0.9,)), OneStepAnEpoch(), trains_teacher=False, cached=False
    )
    pruning = [steps for name, (steps, _) in family.items() if name.startswith("prune")]
    assert len(pruning) == 3
    assert sum(pruning) == alone["prune-0.9"][0] == 110
