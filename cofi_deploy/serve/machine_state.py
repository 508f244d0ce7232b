"""Processors, quota, governor, clock and GPU of this machine, as plain strings and numbers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cofi_deploy.serve.conditions import Load, allowed_cpus

Conditions = dict[str, str | float | int | None]

_GPU_TIMEOUT_S = 10

# What `nvidia-smi` is asked, and the name and type that the answer gets.
_GPU_QUERIES: Mapping[str, tuple[str, type[str] | type[float]]] = {
    "name": ("gpu_name", str),
    "driver_version": ("gpu_driver", str),
    "clocks.sm": ("gpu_sm_mhz", float),
    "clocks.mem": ("gpu_memory_mhz", float),
    "temperature.gpu": ("gpu_celsius", float),
    "power.draw": ("gpu_watts", float),
    "clocks_throttle_reasons.active": ("gpu_throttle_reasons", str),
}
# What does not change while we measure.
_GPU_FIXED = frozenset({"gpu_name", "gpu_driver"})


def conditions(
    *, idle: Load | None, gpu_before: Conditions | None, root: Path = Path("/")
) -> Conditions:
    """What the measurements of a result file were made under; read when they are done.

    Keys whose value cannot be read are None; those of a GPU are absent without one.

    Args:
        idle: Load before the first measurement, while this process slept; None: not measured.
        gpu_before: What `gpu_state` said before the first measurement.
        root: Where ``/proc`` and ``/sys`` lie.
    """
    cpus = allowed_cpus()
    found: Conditions = {
        "cpus": _ranges(cpus),
        "cpu_count": len(cpus),
        "cpu_quota": cgroup_quota(root),
        "cpu_governor": _governor(cpus[0], root),
        "cpu_mhz": _mhz(cpus[0], root),
        "load_average": _load_average(root),
        "others_cores_before": None if idle is None else idle.others_cores,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    return found | _gpu_keys(gpu_before, gpu_state())


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Cores that the control group of this process may use; None without a limit.

    The smallest limit of the group and those above it.

    Source:
        Linux kernel documentation, cgroup-v2 (`cpu.max`) and CFS bandwidth control (version 1).
    """
    base = root / "sys/fs/cgroup"
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").split()
    except OSError:
        return None
    found: list[float] = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = base if not controllers else base / "cpu"
        for directory in _upwards(top, path):
            quota = _quota_v1(directory) if controllers else _quota_v2(directory)
            found += [] if quota is None else [quota]
    return min(found, default=None)


def gpu_state() -> Conditions | None:
    """Name, clocks, temperature and throttling of the first GPU; None without `nvidia-smi`."""
    try:
        answer = subprocess.run(
            [
                "nvidia-smi",
                f"--query-gpu={','.join(_GPU_QUERIES)}",
                "--format=csv,noheader,nounits",
                "--id=0",
            ],
            capture_output=True,
            text=True,
            timeout=_GPU_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    if answer.returncode != 0 or len(values) != len(_GPU_QUERIES):
        return None
    pairs = zip(_GPU_QUERIES.values(), values, strict=True)
    return {key: value if kind is str else _number(value) for (key, kind), value in pairs}


def _gpu_keys(before: Conditions | None, after: Conditions | None) -> Conditions:
    """What changes with ``_before`` and ``_after``, so that throttling shows."""
    found: Conditions = {}
    for suffix, state in (("_before", before), ("_after", after)):
        for key, value in (state or {}).items():
            found[key if key in _GPU_FIXED else key + suffix] = value
    return found


def _number(text: str) -> float | None:
    """A number, or None for the words that stand for one that the device lacks."""
    try:
        return float(text)
    except ValueError:
        return None


def _upwards(base: Path, path: str) -> list[Path]:
    """The group's directory and those above it, up to the root of the hierarchy."""
    own = base / path.lstrip("/")
    return [own, *(parent for parent in own.parents if parent == base or base in parent.parents)]


def _quota_v2(directory: Path) -> float | None:
    words = _text(directory / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(directory: Path) -> float | None:
    quota, period = (_text(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not quota or not period or int(quota) < 0:
        return None
    return int(quota) / int(period)


def _governor(cpu: int, root: Path) -> str | None:
    path = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"
    return _text(path) or None


def _mhz(cpu: int, root: Path) -> float | None:
    """Of the kernel's frequency driver, or else of `/proc/cpuinfo`."""
    khz = _text(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq")
    if khz:
        return int(khz) / 1e3
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.split(":")[1])
    return None


def _load_average(root: Path) -> float | None:
    """Of the last minute."""
    words = _text(root / "proc/loadavg").split()
    return float(words[0]) if words else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _ranges(numbers: list[int]) -> str:
    """`0-3,8` for 0, 1, 2, 3, 8: what `taskset` takes."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
