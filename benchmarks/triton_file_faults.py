"""A full disk and corrupt versions under a Triton server that is at work.

In: a `Patient`. Out: a row for each fault, as in `triton_faults.py`.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from triton_malformed import malformed_requests
from triton_patient import NAME, Patient, Row, counted, is_clean, send, serves
from triton_service import add_model, free_ports, running

from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.serve.triton_server import TritonServer


def disk_full(patient: Patient) -> Row:
    """Repository and log on a disk that fills up; a new version is exported there."""
    size = _size_bytes(patient.repository("measure"))
    with ExitStack() as stack:
        disk = stack.enter_context(_small_disk(patient.scratch / "disk", 3 * size))
        if disk is None:
            return {"skipped": "mount -t tmpfs is not allowed here", "held": None}
        repository, ports = patient.repository("repository", disk), free_ports()
        server = stack.enter_context(running(repository, disk / "triton.log", ports))
        with patient.traffic(ports) as good:
            filler = _fill(disk / "filler")
            before = _files(disk)
            said = _refused_export(repository, patient.model)
            untouched = _files(disk) == before
            send(server, malformed_requests(patient.target()), 1)
            time.sleep(patient.seconds / 2)
            filler.unlink()
            version = add_model(repository, NAME, patient.model)
            changed = _wait_for_version(server, version)
            time.sleep(patient.seconds / 2)
            alive = serves(server)
    return {
        **counted(good),
        "export_said": said,
        "left_behind": not untouched,
        "later_version_served": changed,
        "held": is_clean(good) and alive and bool(said) and untouched and changed,
    }


def corrupt_version(patient: Patient) -> Row:
    """New versions that are corrupt, each in another way; the first one goes on serving."""
    ports = free_ports()
    repository, reasons = patient.repository("corrupt"), {}
    said_ready = False
    with (
        running(repository, patient.scratch / "corrupt.log", ports) as server,
        patient.traffic(ports) as good,
    ):
        for number, (damage, spoil) in enumerate(DAMAGES.items(), start=2):
            staged = patient.scratch / f"version-{number}"
            shutil.copytree(repository / NAME / "1", staged)
            spoil(staged)
            staged.rename(repository / NAME / str(number))
            reasons[damage] = _reason(server, number)
            said_ready |= server.is_ready()
            shutil.rmtree(repository / NAME / str(number))
        alive = serves(server)
        version = add_model(repository, NAME, patient.model)
        changed = _wait_for_version(server, version)
    return {
        **counted(good),
        "refused": reasons,
        "health_said_ready": said_ready,
        "later_version_served": changed,
        "held": is_clean(good) and alive and changed and all(reasons.values()),
    }


def _truncate(version: Path) -> None:
    os.truncate(version / "model.onnx", (version / "model.onnx").stat().st_size // 2)


def _flip_a_bit(version: Path) -> None:
    content = bytearray((version / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.onnx").write_bytes(content)


def _remove_manifest(version: Path) -> None:
    (version / "export.json").unlink()


def _break_code(version: Path) -> None:
    (version / "model.py").write_text("class TritonPythonModel:", encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "model.onnx cut in half": _truncate,
    "one bit of model.onnx": _flip_a_bit,
    "no export.json": _remove_manifest,
    "half of model.py": _break_code,
}


@contextmanager
def _small_disk(directory: Path, size: int) -> Iterator[Path | None]:
    """A file system of its own; None where this user may not mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _fill(path: Path) -> Path:
    """A file that takes all the space there is."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return path


def _refused_export(repository: Path, model: Path) -> str:
    """What the export says; empty when it claims to have worked."""
    try:
        add_model(repository, NAME, model)
    except EnvironmentProblem as error:
        return str(error)
    return ""


def _files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _wait_for_version(server: TritonServer, version: int) -> bool:
    for _ in range(60):
        status, _ = server.request("GET", f"/v2/models/{NAME}/versions/{version}/ready")
        if status == http.client.OK:
            return True
        time.sleep(0.5)
    return False


def _reason(server: TritonServer, version: int) -> str:
    """Why Triton did not load a version, in its own words; empty when it never says."""
    for _ in range(60):
        _, content = server.request("POST", "/v2/repository/index", b"{}")
        for item in json.loads(content):
            if item["name"] == NAME and item.get("version") == str(version) and item.get("reason"):
                return str(item["reason"]).splitlines()[0]
        time.sleep(0.5)
    return ""
