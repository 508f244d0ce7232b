"""Result files: one form for everything that states a number (product.md, "Result files")."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import write_json

Row = Mapping[str, Any]

_PACKAGES = (
    "cofi-deploy",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "tritonclient",
)


def result_document(rows: Sequence[Row], *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Wrap ``rows`` with when, by which command, on which machine and with which versions."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command if command is not None else command_line()),
        "git_commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
        "rows": [dict(row) for row in rows],
    }


def write_results(path: Path, rows: Sequence[Row], *, command: Sequence[str] | None = None) -> None:
    """Write a result file, whole or not at all."""
    write_json(path, result_document(rows, command=command))


def machine() -> dict[str, Any]:
    """The processor, its useful instruction sets, cores, memory and GPU of this machine."""
    cpu = _cpu_info()
    flags = set(cpu.get("flags", "").split())
    useful = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [flag for flag in useful if flag in flags],
        "cores": os.cpu_count() or 1,
        "memory_gib": _memory_gib(),
        "gpu": _gpu_name(),
        "os": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python and those of our dependencies that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the source tree that this package is imported from; None when installed."""
    root = Path(__file__).resolve().parent.parent
    # An environment below someone's own repository must not report that repository's commit.
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def command_line() -> list[str]:
    """Of this process, the program without its directory."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    return round(pages / 2**30, 1)


def _gpu_name() -> str | None:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
