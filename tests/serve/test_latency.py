"""Timing with a clock of our own: what is measured, when it ends, and what it can bear."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.latency import (
    MAX_ROUNDS,
    OperatingPoint,
    Samples,
    Schedule,
    noise,
    percentiles,
    ratio_of_medians,
    relative_spread,
    time_interleaved,
)

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
    assert ratio_of_medians(samples, "slow", "fast", seed=0).value == 4.0


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


def test_percentiles_are_of_the_sorted_durations():
    got = percentiles(np.arange(101.0))
    assert got == {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0}


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        drift = 1 + 0.1 * np.sin(np.arange(80) / 10)  # hits both, as another process would
        ms = {
            "dense": 10 * drift * rng.lognormal(0, 0.05, 80),
            "pruned": 2 * drift * rng.lognormal(0, 0.05, 80),
        }
        got = ratio_of_medians(Samples(ms=ms), "dense", "pruned", seed=seed)
        assert got.low <= got.value <= got.high
        covered += got.low <= 5.0 <= got.high
    assert covered >= 34


@settings(max_examples=5, deadline=None)
@given(st.floats(0.01, 100.0), st.integers(0, 1000))
def test_the_ratio_does_not_depend_on_the_unit(factor, seed):
    rng = np.random.default_rng(1)
    ms = {"a": rng.lognormal(1, 0.1, 12), "b": rng.lognormal(0, 0.1, 12)}
    scaled = {name: values * factor for name, values in ms.items()}
    one = ratio_of_medians(Samples(ms=ms), "a", "b", seed=seed)
    other = ratio_of_medians(Samples(ms=scaled), "a", "b", seed=seed)
    assert other.value == pytest.approx(one.value)
    assert (other.low, other.high) == pytest.approx((one.low, one.high))


def test_a_disturbed_measurement_is_told_in_a_sentence():
    quiet = np.full(40, 10.0)
    disturbed = np.where(np.arange(40) % 2, 10.0, 20.0)
    samples = Samples(ms={"quiet": quiet, "disturbed": disturbed})
    assert noise(samples, "quiet") is None
    message = noise(samples, "disturbed")
    assert message is not None
    assert message.startswith(
        "too noisy: the middle half of 40 runs spreads over 67% of the median"
    )


def test_texts_of_different_length_are_no_noise():
    durations = np.tile([1.0, 5.0, 20.0], 10)
    assert relative_spread(durations) > 1
    assert relative_spread(durations, variants=3) == 0.0


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
