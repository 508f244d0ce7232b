"""Conditions of a measurement, read from files and a program that stand in for a machine."""

from __future__ import annotations

import os

import pytest

from cofi_deploy.serve.conditions import Load, allowed_cpus
from cofi_deploy.serve.machine_state import cgroup_quota, conditions, gpu_state

KEYS = {
    "cpus",
    "cpu_count",
    "cpu_quota",
    "cpu_governor",
    "cpu_mhz",
    "load_average",
    "others_cores_before",
    "omp_num_threads",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes the files of an invented machine without a GPU; returns its root."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def write(**files: str):
        for path, text in files.items():
            place = tmp_path / path.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path

    return write


def put(root, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_this_machine_has_every_key_as_a_plain_value():
    got = conditions(idle=None, gpu_before=None)
    assert got.keys() >= KEYS
    assert all(value is None or isinstance(value, str | int | float) for value in got.values())
    assert got["cpu_count"] == len(os.sched_getaffinity(0))


def test_what_can_be_read_is_told(machine, monkeypatch):
    monkeypatch.setattr("cofi_deploy.serve.machine_state.allowed_cpus", lambda: [0, 1, 2, 5, 8, 9])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    root = machine()
    put(root, "proc/loadavg", "0.42 0.1 0.2 1/99 12345\n")
    put(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    put(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3100500\n")
    idle = Load(
        window_s=1.0,
        cores=6,
        own_cores=0.0,
        others_cores=0.25,
        stolen_cores=0.0,
        switches_per_s=0.0,
    )
    assert conditions(idle=idle, gpu_before=None, root=root) == {
        "cpus": "0-2,5,8-9",
        "cpu_count": 6,
        "cpu_quota": None,
        "cpu_governor": "performance",
        "cpu_mhz": 3100.5,
        "load_average": 0.42,
        "others_cores_before": 0.25,
        "omp_num_threads": "3",
    }


def test_a_machine_that_tells_nothing_has_empty_conditions(machine, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    got = conditions(idle=None, gpu_before=None, root=machine())
    told = {key for key, value in got.items() if value is not None}
    assert told == {"cpus", "cpu_count"}
    assert got["cpu_count"] == len(allowed_cpus())


def test_the_clock_of_a_virtual_machine_is_that_of_cpuinfo(machine):
    root = machine(proc__cpuinfo="processor\t: 0\ncpu MHz\t\t: 2445.406\n")
    assert conditions(idle=None, gpu_before=None, root=root)["cpu_mhz"] == 2445.406


def test_the_smallest_quota_on_the_way_up_counts(machine):
    root = machine(proc__self__cgroup="0::/pods/mine\n")
    assert cgroup_quota(root) is None
    put(root, "sys/fs/cgroup/pods/mine/cpu.max", "max 100000\n")
    assert cgroup_quota(root) is None
    put(root, "sys/fs/cgroup/pods/cpu.max", "150000 100000\n")
    assert cgroup_quota(root) == 1.5
    put(root, "sys/fs/cgroup/pods/mine/cpu.max", "50000 100000\n")
    assert cgroup_quota(root) == 0.5


def test_a_quota_of_version_1_is_read(machine):
    root = machine(proc__self__cgroup="5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n")
    put(root, "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n")
    put(root, "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(root) is None
    put(root, "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "250000\n")
    assert cgroup_quota(root) == 2.5


def nvidia_smi(root, line: str, status: int = 0) -> None:
    """The absent program, which answers what the real one would."""
    path = root / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\necho '{line}'\nexit {status}\n")
    path.chmod(0o755)


def test_clocks_temperature_and_throttling_of_a_gpu_are_told_before_and_after(machine):
    root = machine()
    nvidia_smi(root, "NVIDIA L4, 570.1, 2040, 6251, 41, 30.5, 0x0000000000000000")
    before = gpu_state()
    nvidia_smi(root, "NVIDIA L4, 570.1, 1200, 6251, 84, [N/A], 0x0000000000000020")
    got = conditions(idle=None, gpu_before=before, root=root)
    assert {key: value for key, value in got.items() if key.startswith("gpu_")} == {
        "gpu_name": "NVIDIA L4",
        "gpu_driver": "570.1",
        "gpu_sm_mhz_before": 2040.0,
        "gpu_sm_mhz_after": 1200.0,
        "gpu_memory_mhz_before": 6251.0,
        "gpu_memory_mhz_after": 6251.0,
        "gpu_celsius_before": 41.0,
        "gpu_celsius_after": 84.0,
        "gpu_watts_before": 30.5,
        "gpu_watts_after": None,
        "gpu_throttle_reasons_before": "0x0000000000000000",
        "gpu_throttle_reasons_after": "0x0000000000000020",
    }


@pytest.mark.parametrize(
    ("line", "status"),
    [("NVIDIA-SMI has failed because it could not communicate", 9), ("No devices found", 0)],
)
def test_a_driver_that_does_not_answer_is_no_gpu(machine, line, status):
    nvidia_smi(machine(), line, status)
    assert gpu_state() is None
