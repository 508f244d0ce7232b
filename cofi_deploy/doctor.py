"""`doctor`: what this machine has, what it lacks, and the line that installs it.

In: nothing but the machine. Out: one JSON-able report (`examine`) and its terminal form (`render`).
Every probe tries the real thing (opens a session, lists the devices) instead of trusting that an
installed package works; a probe that fails becomes a line of the report, never a crash.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cofi_deploy.artifacts import SCHEMA_VERSION
from cofi_deploy.doctor_probes import Finding, runtime_findings, version_of
from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.hub import hub_endpoint, why_unreachable
from cofi_deploy.results import machine, versions
from cofi_deploy.serve.triton_container import find_engine
from cofi_deploy.serve.triton_environment import find_environment, planned_environment
from cofi_deploy.serve.triton_launchers import PIP_VERSION, find_tritonserver
from cofi_deploy.triton_image import TRITON_IMAGE

OLDEST_PYTHON = (3, 11)
FIRST_UNTESTED_PYTHON = (3, 14)
COMMAND_TIMEOUT_S = 10.0

# Needed by every command; everything else is an extra.
_CORE_PACKAGES = (
    "click",
    "datasets",
    "jaxtyping",
    "jinja2",
    "numpy",
    "onnx",
    "onnxscript",
    "psutil",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "transformers",
)
_CPU_FEATURES = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "amx_bf16"),
    "amx": ("amx_bf16", "amx_int8"),
}
_STATE_STYLE: dict[str, str] = {"ready": "green", "missing": "yellow", "broken": "red"}
_GIB = 2**30


def examine() -> dict[str, Any]:
    """Look at this machine; takes seconds, a few of them for the network.

    Returns:
        A JSON-able object: ``ready`` (training, ONNX export and CPU verification work here),
        ``machine``, ``versions``, and ``findings``, each one a `Finding` as a mapping.
    """
    with ThreadPoolExecutor(max_workers=1) as background:
        hub = background.submit(why_unreachable)  # its seconds pass while the rest is probed
        gpus = _gpus()
        findings = [
            _python(),
            _core(),
            *runtime_findings(has_gpu=bool(gpus)),
            *_servers(),
            _gpu_finding(gpus),
            _hub(hub.result()),
        ]
    required = {"python", "packages", "torch", "onnxruntime-cpu"}
    return {
        "schema_version": SCHEMA_VERSION,
        "ready": all(found.state == "ready" for found in findings if found.name in required),
        "machine": _machine(),
        "versions": versions(),
        "findings": [asdict(found) for found in findings],
    }


def render(report: Mapping[str, Any]) -> RenderableType:
    """The report for a terminal: a table of findings, the machine, and the lines to run."""
    table = Table(title="cofi-deploy doctor", title_justify="left")
    for column in ("what", "state", "version"):
        table.add_column(column, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for found in report["findings"]:
        state = Text(found["state"], style=_STATE_STYLE[found["state"]])
        table.add_row(found["name"], state, Text(found["version"]), Text(found["detail"]))
    remedies = [found for found in report["findings"] if found["remedy"]]
    lines: list[RenderableType] = [Text(_machine_line(report["machine"])), table]
    if remedies:
        lines.append(Text("To add what is missing:"))
        lines += [
            Text(f"  {found['name']}: {found['remedy']}", overflow="fold") for found in remedies
        ]
    verdict = (
        "Ready to train, export to ONNX and verify on this CPU."
        if report["ready"]
        else "Not ready: a part that every command needs is missing or broken."
    )
    return Group(*lines, Text(verdict, style="bold"))


def _python() -> Finding:
    here = sys.version_info[:2]
    fits = OLDEST_PYTHON <= here < FIRST_UNTESTED_PYTHON
    return Finding(
        name="python",
        state="ready" if fits else "broken",
        version=".".join(str(part) for part in sys.version_info[:3]),
        detail=sys.executable if fits else "3.11, 3.12 and 3.13 are tested",
        remedy="" if fits else "python3.12 -m venv .venv",
    )


def _core() -> Finding:
    missing = [name for name in _CORE_PACKAGES if not version_of(name)]
    return Finding(
        name="packages",
        state="missing" if missing else "ready",
        detail=f"missing: {', '.join(missing)}" if missing else f"{len(_CORE_PACKAGES)} of them",
        remedy=f"pip install {' '.join(missing)}" if missing else "",
    )


def _servers() -> list[Finding]:
    """The three servers that `serve` can start, in the order in which it looks for them."""
    binary = find_tritonserver()
    on_path = Finding(
        name="tritonserver",
        state="missing" if binary is None else "ready",
        detail="not on PATH; `serve` takes one of the next two" if binary is None else str(binary),
    )
    return [on_path, _container(), _pip_server()]


def _container() -> Finding:
    name = "triton-container"
    engine = find_engine()
    if engine is not None:
        detail = f"{engine.name} answers; the first `serve` builds an image on {TRITON_IMAGE}"
        return Finding(name=name, state="ready", version=engine.version, detail=detail)
    client = shutil.which("docker") or shutil.which("podman")
    if client is not None:
        return Finding(name=name, state="broken", detail=f"{client} is there, no engine answers")
    return Finding(name=name, state="missing", detail="neither docker nor podman is on PATH")


def _pip_server() -> Finding:
    name = "triton-pip"
    environment = find_environment()
    if environment is not None:
        detail = f"{environment.directory}; backend python only"
        return Finding(name=name, state="ready", version=PIP_VERSION, detail=detail)
    try:
        planned = planned_environment()
    except EnvironmentProblem as error:
        return Finding(name=name, state="missing", detail=str(error))
    return Finding(
        name=name,
        state="missing",
        detail=f"`serve` installs it once, about 340 MB: {planned.directory}",
        remedy="cofi-deploy serve --server pip",
    )


def _gpus() -> list[str]:
    """Name, driver, compute capability and memory of each NVIDIA GPU that the driver sees."""
    query = "name,driver_version,compute_cap,memory.total"
    answer = _answer(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
    return [line for line in answer.splitlines() if line.count(",") == query.count(",")]


def _gpu_finding(gpus: list[str]) -> Finding:
    if gpus:
        driver = gpus[0].split(",")[1].strip()
        return Finding(name="gpu", state="ready", version=driver, detail="; ".join(gpus))
    reason = "nvidia-smi sees none" if shutil.which("nvidia-smi") else "no NVIDIA driver"
    return Finding(name="gpu", state="missing", detail=f"{reason}; everything else works on CPU")


def _hub(reason: str | None) -> Finding:
    if reason is None:
        return Finding(name="hub", state="ready", detail=hub_endpoint())
    ways_on = "use local files: --model PATH, --data-dir PATH"
    return Finding(name="hub", state="missing", detail=f"{reason}; {ways_on}")


def _answer(command: list[str]) -> str:
    """What ``command`` prints; empty when it is absent, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _machine() -> dict[str, Any]:
    flags = _cpu_flags()
    return {
        **machine(),
        "cpu_features": {
            feature: any(flag in flags for flag in names)
            for feature, names in _CPU_FEATURES.items()
        },
        "threads": _threads(),
        "memory_available_gib": round(psutil.virtual_memory().available / _GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
    }


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())


def _threads() -> int:
    """Processor threads that this process may use; a container's quota counts."""
    affinity = getattr(os, "sched_getaffinity", None)
    threads = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(threads, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return threads


def _machine_line(facts: Mapping[str, Any]) -> str:
    features = [name for name, there in facts["cpu_features"].items() if there]
    return (
        f"{facts['cpu']}: {facts['threads']} threads ({', '.join(features) or 'no SIMD'}); "
        f"{facts['memory_available_gib']} of {facts['memory_gib']} GiB memory and "
        f"{facts['disk_free_gib']} GiB disk free"
    )
