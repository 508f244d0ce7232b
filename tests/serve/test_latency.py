"""Timing with a clock of our own: what is measured, and when it ends."""

from __future__ import annotations

import gc
import re

import pytest

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.conditions import Counters
from cofi_deploy.serve.latency import MAX_ROUNDS, OperatingPoint, Schedule, time_interleaved

MS = 1_000_000


class Clock:
    """Nanoseconds that pass only when a subject says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def subject(self, *ms: float):
        """A callable that takes the given milliseconds, in turn."""
        calls = [0]

        def run() -> None:
            self.now += round(ms[calls[0] % len(ms)] * MS)
            calls[0] += 1

        return run


def test_durations_are_those_of_the_subjects():
    clock = Clock()
    samples = time_interleaved(
        {"slow": clock.subject(8.0), "fast": clock.subject(2.0)},
        Schedule(min_repeats=7, max_seconds=0.0),
        clock=clock,
    )
    assert samples.ms["slow"].tolist() == [8.0] * 7
    assert samples.ms["fast"].tolist() == [2.0] * 7


def test_every_round_runs_each_subject_once_in_changing_order():
    clock = Clock()
    calls: list[str] = []

    def subject(name: str):
        def run() -> None:
            calls.append(name)
            clock.now += MS

        return run

    schedule = Schedule(min_repeats=40, max_seconds=0.0, seed=5)
    samples = time_interleaved({name: subject(name) for name in "abc"}, schedule, clock=clock)
    timed = calls[sum(samples.warmup_runs.values()) :]
    rounds = [tuple(timed[at : at + 3]) for at in range(0, len(timed), 3)]
    assert len(rounds) == 40
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) == 6


@pytest.mark.parametrize(("settle_ms", "expected"), [(0.0, {2.0, 9.0}), (10.0, {2.0})])
def test_settled_subjects_are_timed_when_threads_of_others_rest(settle_ms: float, expected):
    clock = Clock()
    spinning = {"whose": "", "until": 0}

    def subject(name: str):
        def run() -> None:
            is_disturbed = spinning["whose"] != name and clock.now < spinning["until"]
            clock.now += (9 if is_disturbed else 2) * MS
            if not is_disturbed:
                spinning.update(whose=name, until=clock.now + 7 * MS)

        return run

    schedule = Schedule(min_repeats=20, max_seconds=0.0, settle_ms=settle_ms)
    subjects = {name: subject(name) for name in "abc"}
    samples = time_interleaved(subjects, schedule, clock=clock)
    assert {ms for each in samples.ms.values() for ms in each} == expected
    assert [len(ms) for ms in samples.ms.values()] == [20] * 3


def test_warm_up_ends_when_the_subject_is_stable():
    clock = Clock()
    slow_start = clock.subject(*[100.0] * 6, *[10.0] * 1000)
    samples = time_interleaved(
        {"a": slow_start}, Schedule(min_repeats=5, max_seconds=4.0), clock=clock
    )
    assert samples.warmup_runs["a"] >= 12
    assert set(samples.ms["a"]) == {10.0}


def test_measuring_ends_by_time_but_not_before_the_minimum():
    clock = Clock()
    by_time = time_interleaved(
        {"a": clock.subject(100.0)}, Schedule(min_repeats=3, max_seconds=2.0), clock=clock
    )
    assert len(by_time.ms["a"]) == 20
    by_count = time_interleaved(
        {"a": clock.subject(100.0)}, Schedule(min_repeats=30, max_seconds=2.0), clock=clock
    )
    assert len(by_count.ms["a"]) == 30


def test_a_fast_subject_ends_at_the_largest_number_of_rounds():
    clock = Clock()
    samples = time_interleaved(
        {"a": clock.subject(0.001)}, Schedule(min_repeats=3, max_seconds=60.0), clock=clock
    )
    assert len(samples.ms["a"]) == MAX_ROUNDS


def test_several_inputs_are_each_timed_equally_often():
    clock = Clock()
    seen: list[int] = []
    samples = time_interleaved(
        {"a": clock.subject(1.0)},
        Schedule(min_repeats=2, max_seconds=0.0),
        variants=4,
        before_round=seen.append,
        clock=clock,
    )
    assert len(samples.ms["a"]) == 12
    assert seen == [0, *range(12)]


def test_garbage_collection_is_off_while_timing_and_on_afterwards():
    clock = Clock()
    states: list[bool] = []

    def subject() -> None:
        states.append(gc.isenabled())
        clock.now += MS

    samples = time_interleaved(
        {"a": subject}, Schedule(min_repeats=4, max_seconds=0.0), clock=clock
    )
    assert states[samples.warmup_runs["a"] :] == [False] * 4
    assert gc.isenabled()


def test_nothing_to_time_is_refused():
    with pytest.raises(UsageError, match="got 0 subjects, allowed: 1 and up"):
        time_interleaved({}, Schedule())


def test_a_schedule_without_a_median_is_refused():
    message = "got min_repeats 1 and max_seconds 3, allowed: 2 and up, 0 and up"
    with pytest.raises(UsageError, match=re.escape(message)):
        Schedule(min_repeats=1, max_seconds=3)


def test_what_went_on_is_read_after_warm_up_and_after_the_last_round():
    clock = Clock()
    runs = [0]
    read_at: list[int] = []

    def subject() -> None:
        runs[0] += 1
        clock.now += 100 * MS

    def counters() -> Counters:
        read_at.append(runs[0])
        return Counters(at_s=clock.now / 1e9, own_s=0.0, busy_s=0.5, stolen_s=0.0, switches=0)

    schedule = Schedule(min_repeats=7, max_seconds=0.0)
    samples = time_interleaved({"a": subject}, schedule, clock=clock, counters=counters)
    warmup = samples.warmup_runs["a"]
    assert read_at == [warmup, warmup + 7]
    assert samples.load is not None
    assert samples.load.window_s == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        pytest.param("1x128", OperatingPoint(batch_size=1, seq_len=128), id="shape"),
        pytest.param("32xtask", OperatingPoint(batch_size=32, seq_len="task"), id="task"),
        pytest.param(
            "onnxruntime-cpu@1x128",
            OperatingPoint(batch_size=1, seq_len=128, runtime="onnxruntime-cpu"),
            id="runtime",
        ),
    ],
)
def test_operating_points_are_read_and_written(text, point):
    assert OperatingPoint.parse(text) == point
    assert str(point) == text


@pytest.mark.parametrize("text", ["", "128", "0x128", "1x0", "1x", "axb", "1x-5", "1x128x2", "²x1"])
def test_an_operating_point_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"operating point is {text!r}, allowed: BATCH")):
        OperatingPoint.parse(text)
