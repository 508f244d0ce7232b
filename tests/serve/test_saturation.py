"""Where more clients stop helping, and what clients of real sessions are answered."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cofi_deploy.serve.conditions import Load
from cofi_deploy.serve.inputs import random_inputs
from cofi_deploy.serve.latency import OperatingPoint, Schedule
from cofi_deploy.serve.runner import open_runner
from cofi_deploy.serve.saturation import Clients, Setting, climb, saturate
from cofi_deploy.serve.timed_inputs import batches_for

ONE = Setting(clients=1, batch_size=1)


def test_clients_are_doubled_until_it_stops_helping_and_then_the_batch():
    asked = []

    def rate(setting: Setting) -> float:
        asked.append((setting.clients, setting.batch_size))
        return 100 * min(setting.clients, 4) * min(setting.batch_size, 2) ** 0.5

    assert climb(ONE, rate, max_clients=64) == Setting(clients=4, batch_size=2)
    assert asked == [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (4, 4)]


def test_a_gain_below_five_percent_is_none():
    assert climb(ONE, lambda setting: 100 + 2 * setting.clients, max_clients=8) == ONE


def test_clients_and_batches_have_an_end():
    best = climb(ONE, lambda setting: setting.clients * setting.batch_size, max_clients=8)
    assert best == Setting(clients=8, batch_size=64)
    large = Setting(clients=1, batch_size=100)
    assert climb(large, lambda setting: setting.batch_size, max_clients=1) == large


def sleeper(seconds: float, lock: threading.Lock | None = None):
    """A runner whose requests take a time of their own, or wait for each other."""

    def call() -> None:
        if lock is None:
            time.sleep(seconds)
        else:
            with lock:
                time.sleep(seconds)

    return SimpleNamespace(threads=1, input_names=("a",), bind=lambda _: call)


@pytest.mark.parametrize(("lock", "expected"), [(None, 4 * 3 / 0.02), (threading.Lock(), 3 / 0.02)])
def test_the_rates_of_concurrent_clients_are_added(lock, expected):
    setting = Setting(clients=4, batch_size=3)
    clients = Clients(sleeper(0.02, lock), [{"a": np.zeros(1)}], setting)
    got = clients.rate(0.2)
    clients.close()
    # A sleep never ends early, but late on a busy machine.
    assert 0.2 * expected < got < 1.35 * expected


def test_an_error_of_a_client_is_raised():
    def call() -> None:
        raise ValueError("no more memory")

    runner = SimpleNamespace(threads=1, input_names=("a",), bind=lambda _: call)
    clients = Clients(runner, [{"a": np.zeros(1)}], Setting(clients=2, batch_size=1))
    with pytest.raises(ValueError, match="no more memory"):
        clients.rate(0.0)
    clients.close()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime-cpu", "openvino"])
def test_concurrent_callers_of_one_session_get_their_own_answers(pruned, limits, runtime):
    inputs = [random_inputs(limits, 1 + place % 3, 5 + place, seed=place) for place in range(8)]
    artifact = pruned.artifacts[runtime]
    with open_runner(artifact, runtime, threads=1, streams=4) as runner:
        expected = [runner.infer(one) for one in inputs]
        wrong: list[int] = []
        barrier = threading.Barrier(4)

        def ask(first: int) -> None:
            barrier.wait()
            for place in [*range(first, 8), *range(first)] * 5:
                for name, values in runner.infer(inputs[place]).items():
                    if not np.allclose(values, expected[place][name], atol=1e-5):
                        wrong.append(place)

        threads = [threading.Thread(target=ask, args=(2 * place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def saturated(subjects, limits):
    point = OperatingPoint(batch_size=1, seq_len=4, runtime="onnxruntime-cpu", threads=1)
    return saturate(
        [subjects["dense"], subjects["pruned"]],
        point,
        lambda _, at, limits: batches_for(at, limits, None, seed=0),
        Schedule(min_repeats=2, max_seconds=0.0),
        max_clients=2,
    )


def test_saturation_compares_each_subject_at_its_own_best(subjects, limits, monkeypatch):
    def found(start, rate, most):
        assert rate(start) > 0
        assert most == 2
        return Setting(clients=2, batch_size=4)

    monkeypatch.setattr("cofi_deploy.serve.saturation.climb", found)
    keys = saturated(subjects, limits).keys
    assert keys.keys() == {"dense", "pruned"}
    assert keys["dense"].keys() == {
        "saturated_sequences_per_s",
        "clients",
        "saturated_batch_size",
    }
    assert (keys["pruned"]["clients"], keys["pruned"]["saturated_batch_size"]) == (2, 4)
    assert keys["pruned"]["saturated_speedup_low"] <= keys["pruned"]["saturated_speedup_high"]


def test_a_busy_machine_has_no_throughput(subjects, limits, monkeypatch):
    busy = Load(
        window_s=5.0,
        cores=2,
        own_cores=0.5,
        others_cores=1.6,
        stolen_cores=0.0,
        switches_per_s=0.0,
    )
    monkeypatch.setattr("cofi_deploy.serve.saturation.load_between", lambda *_: busy)
    got = saturated(subjects, limits)
    assert got.keys["dense"]["saturated_sequences_per_s"] is None
    assert got.keys["pruned"]["saturated_speedup"] is None
    assert got.keys["pruned"]["saturated_speedup_low"] is None
    assert got.notes == [
        "saturated onnxruntime-cpu@1x4: this machine is too busy to measure: other processes used "
        "1.6 of 2 cores; stop other work and measure again"
    ]
