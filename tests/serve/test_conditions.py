"""What others did while we measured: invented counters, then a really busy machine."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from cofi_deploy.serve.conditions import (
    Counters,
    Load,
    allowed_cpus,
    load_between,
    load_while_idle,
    read_counters,
)

BUSY = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


def counters(at: float, own: float, busy: float | None, stolen: float | None = 0.0, switches=0):
    return Counters(at_s=at, own_s=own, busy_s=busy, stolen_s=stolen, switches=switches)


def load(others: float | None, *, window: float = 10.0, stolen: float = 0.0, switches=0.0) -> Load:
    return Load(
        window_s=window,
        cores=2,
        own_cores=1.0,
        others_cores=others,
        stolen_cores=None if others is None else stolen,
        switches_per_s=switches,
    )


def test_others_used_what_was_busy_and_not_ours():
    before = counters(100.0, 5.0, 50.0, 1.0, 20)
    after = counters(110.0, 13.0, 70.0, 2.0, 70)
    got = load_between(before, after, cores=2)
    assert got.window_s == 10.0
    assert got.own_cores == pytest.approx(0.8)
    assert got.others_cores == pytest.approx(1.2)
    assert got.stolen_cores == pytest.approx(0.1)
    assert got.others_share == pytest.approx(0.65)
    assert got.switches_per_s == pytest.approx(5.0)


def test_coarse_ticks_make_no_negative_load():
    got = load_between(counters(0.0, 0.0, 0.0), counters(1.0, 1.0, 0.99), cores=2)
    assert got.others_cores == 0.0


def test_a_kernel_that_does_not_tell_leaves_others_unknown():
    got = load_between(counters(0, 0, None, None), counters(1, 1, None, None), cores=2)
    assert (got.others_cores, got.stolen_cores, got.others_share) == (None, None, None)
    assert got.too_busy(threads=1) is None


def test_a_busy_machine_is_told_with_its_numbers():
    assert load(1.2).too_busy(threads=2) == (
        "this machine is too busy to measure: other processes used 1.2 of 2 cores; "
        "stop other work and measure again"
    )
    assert load(0.19).too_busy(threads=2) is None


def test_a_hypervisor_that_keeps_processors_back_is_told():
    assert load(0.3, stolen=0.4).too_busy(threads=2) == (
        "this machine is too busy to measure: other processes used 0.3 of 2 cores and the "
        "hypervisor kept back 0.4 of 2 cores; stop other work and measure again"
    )


def test_lost_processors_are_the_evidence_where_nothing_else_is_known():
    assert load(None, switches=101.0).too_busy(threads=2) == (
        "this machine is too busy to measure: threads lost their processor 101 times a second "
        "(allowed: 100); stop other work and measure again"
    )
    assert load(None, switches=99.0).too_busy(threads=2) is None
    assert load(0.0, switches=500.0).too_busy(threads=2) is None


def test_a_window_too_short_for_the_kernels_ticks_is_not_judged():
    assert load(2.0, window=0.4).too_busy(threads=1) is None
    assert not load(2.0, window=0.4).is_too_busy_to_compare()


@pytest.mark.parametrize(("others", "comparable"), [(1.45, True), (1.55, False), (None, True)])
def test_models_are_not_compared_on_a_machine_that_mostly_did_something_else(others, comparable):
    assert load(others).is_too_busy_to_compare() is not comparable


def test_the_keys_of_a_row_are_plain_numbers():
    assert load(0.5, stolen=0.1, switches=3.0).keys() == {
        "own_cores": 1.0,
        "others_cores": 0.5,
        "others_share": 0.3,
        "switches_per_s": 3.0,
    }


def stat(*lines: str) -> str:
    return "\n".join(["cpu  9999 0 0 0 0 0 0 0 0 0", *lines, "intr 1 2 3", ""])


def test_only_the_processors_that_we_may_use_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("cofi_deploy.serve.conditions.allowed_cpus", lambda: [1, 3])
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    path = tmp_path / "stat"
    path.write_text(
        stat(
            "cpu0 1000 0 0 0 0 0 0 0 0 0",
            "cpu1 100 10 20 5000 300 1 2 40 77 0",
            "cpu2 1000 0 0 0 0 0 0 0 0 0",
            "cpu3 200 0 0 5000 0 0 0 60 0 0",
            "cpu10 1000 0 0 0 0 0 0 0 0 0",
        )
    )
    got = read_counters(path)
    assert got.busy_s == pytest.approx(1.33 + 2.0)
    assert got.stolen_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(stat(), id="no processors"),
        pytest.param(stat(*(f"cpu{n} 1 2 3" for n in range(4096))), id="few fields"),
        pytest.param(stat(*(f"cpu{n} 0 0 0 0 0 0 0 0 0 0" for n in range(4096))), id="zeros"),
    ],
)
def test_a_file_that_does_not_tell_is_no_reading(text, tmp_path):
    path = tmp_path / "stat"
    path.write_text(text)
    got = read_counters(path)
    assert (got.busy_s, got.stolen_s) == (None, None)


def test_no_file_is_no_reading(tmp_path):
    assert read_counters(tmp_path / "missing").busy_s is None


def test_the_idle_load_is_that_of_the_time_slept():
    readings = iter([counters(0.0, 0.0, 0.0), counters(2.0, 0.0, 3.0)])
    slept: list[float] = []
    got = load_while_idle(2.0, read=lambda: next(readings), sleep=slept.append)
    assert slept == [2.0]
    assert got.others_cores == pytest.approx(1.5)


@pytest.fixture
def stranger():
    """A busy process that is not below this one: its parent has gone."""
    answer = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" >/dev/null 2>&1 & echo $!', sys.executable, BUSY],
        capture_output=True,
        text=True,
        check=True,
    )
    process = psutil.Process(int(answer.stdout))
    yield process
    process.kill()


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def used_by(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def watch(process: psutil.Process, seconds: float) -> tuple[Load, float]:
    """Load while a process ran, and the cores that it had of its own account."""
    time.sleep(0.2)  # the interpreter starts
    start, before, used = time.perf_counter(), read_counters(), used_by(process)
    time.sleep(seconds)
    after = read_counters()
    return load_between(before, after), (used_by(process) - used) / (time.perf_counter() - start)


def test_a_busy_stranger_makes_the_machine_too_busy(stranger):
    got, cores = watch(stranger, 0.7)
    if got.others_cores is None:
        pytest.skip("this kernel does not tell what processors do")
    assert cores > 0
    assert got.others_cores >= 0.9 * cores - 0.05
    expected = f"other processes used {got.others_cores:.1f} of {len(allowed_cpus())} cores"
    if cores > 0.1 * len(allowed_cpus()) + 0.1:
        assert expected in (got.too_busy(threads=1) or "")


def test_what_our_own_child_uses_is_ours(child):
    got, cores = watch(child, 0.7)
    assert cores > 0
    assert got.own_cores >= 0.9 * cores - 0.05
