"""What `doctor` finds here, and on machines that lack something."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cofi_deploy import doctor, doctor_probes
from cofi_deploy.doctor_probes import Finding, probe, runtime_findings
from cofi_deploy.triton_image import TRITON_IMAGE


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {found.name: found for found in findings}


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make an installed package look as if it were not."""

    def hide(module: str) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)

    return hide


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that exactly these distributions of the two ONNX Runtimes are installed."""

    def pretend(**versions: str) -> None:
        names = {"onnxruntime": "", "onnxruntime-gpu": ""}
        names |= {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor_probes, "version_of", lambda name: names.get(name, ""))

    return pretend


def test_this_machine_is_ready_and_the_report_is_json(report: dict[str, Any]) -> None:
    assert report["ready"] is True
    assert json.loads(json.dumps(report)) == report
    states = {found["name"]: found["state"] for found in report["findings"]}
    assert states["python"] == states["torch"] == states["onnxruntime-cpu"] == "ready"
    assert set(states.values()) <= {"ready", "missing", "broken"}


def test_machine_lists_cpu_features_threads_memory_and_disk(report: dict[str, Any]) -> None:
    facts = report["machine"]
    assert set(facts["cpu_features"]) == {"avx2", "avx512", "vnni", "bf16", "amx"}
    assert 1 <= facts["threads"] <= facts["cores"]
    assert 0 < facts["memory_available_gib"] <= facts["memory_gib"]
    assert facts["disk_free_gib"] >= 0


def test_terminal_form_names_every_finding_and_every_remedy(report: dict[str, Any]) -> None:
    missing = Finding(name="some-runtime", state="missing", remedy="pip install 'x[some]'")
    findings = [*report["findings"], vars(missing)]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(doctor.render({**report, "findings": findings}))
    text = console.export_text()
    assert all(found["name"] in text for found in findings)
    assert "some-runtime: pip install 'x[some]'" in text
    assert "Ready to train" in text


def test_a_missing_core_part_is_said_in_the_verdict(report: dict[str, Any]) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(doctor.render({**report, "ready": False}))
    assert "Not ready" in console.export_text()


def test_importing_doctor_imports_no_framework() -> None:
    code = "import sys, cofi_deploy.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "transformers", "onnx", "onnxruntime", "openvino", "datasets"}


def test_a_folder_that_type_stubs_left_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_stubs_are_here").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    found = probe("a", "only_stubs_are_here", str, remedy="pip install it")
    assert (found.state, found.remedy) == ("missing", "pip install it")


@pytest.mark.parametrize(
    ("module", "name", "remedy"),
    [
        ("openvino", "openvino", "pip install 'cofi-deploy[openvino]'"),
        ("tritonclient", "triton-client", "pip install 'cofi-deploy[triton]'"),
        ("torch", "torch", "pip install 'torch>=2.6,<2.14'"),
        ("onnxruntime", "onnxruntime-cpu", "pip install --force-reinstall 'onnxruntime>=1.20,<2'"),
    ],
)
def test_absent_package_is_missing_with_its_install_line(
    module: str, name: str, remedy: str, absent: Callable[[str], None]
) -> None:
    absent(module)
    found = by_name(runtime_findings(has_gpu=False))[name]
    assert (found.state, found.detail, found.remedy) == ("missing", "not installed", remedy)


def test_tensorrt_is_offered_only_where_there_is_a_gpu(absent: Callable[[str], None]) -> None:
    absent("tensorrt")
    without = by_name(runtime_findings(has_gpu=False))["tensorrt"]
    with_gpu = by_name(runtime_findings(has_gpu=True))["tensorrt"]
    assert without.remedy == ""
    assert "needs an NVIDIA GPU" in without.detail
    assert with_gpu.remedy == "pip install 'cofi-deploy[tensorrt]'"


def test_both_onnxruntimes_at_once_are_broken_with_the_line_that_repairs_it(
    installed: Callable[..., None],
) -> None:
    installed(onnxruntime="1.32.0", onnxruntime_gpu="1.31.0")
    found = by_name(runtime_findings(has_gpu=True))["onnxruntime-cuda"]
    assert found.state == "broken"
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.0" in found.detail
    assert found.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_gpu_with_the_cpu_build_of_onnxruntime_gets_the_line_that_replaces_it(
    installed: Callable[..., None],
) -> None:
    installed(onnxruntime="1.32.0")
    found = by_name(runtime_findings(has_gpu=True))["onnxruntime-cuda"]
    assert found.state == "broken"
    assert "has only: " in found.detail
    assert "CPU" in found.detail
    assert found.remedy.endswith("pip install 'onnxruntime-gpu>=1.20,<2'")


def test_package_that_cannot_be_opened_is_broken_with_the_reason() -> None:
    def look(_: object) -> str:
        raise OSError("libsomething.so.7: cannot open shared object file\nmore lines")

    found = probe("json", "json", look, remedy="pip install it")
    assert (found.state, found.remedy) == ("broken", "pip install it")
    assert found.detail == "libsomething.so.7: cannot open shared object file"


def test_missing_core_packages_are_installed_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"jinja2", "scipy"}
    monkeypatch.setattr(doctor, "version_of", lambda name: "" if name in gone else "1.0")
    report = doctor.examine()
    found = next(found for found in report["findings"] if found["name"] == "packages")
    assert (found["state"], found["detail"]) == ("missing", "missing: jinja2, scipy")
    assert found["remedy"] == "pip install jinja2 scipy"
    assert report["ready"] is False


def test_an_untested_python_is_broken_with_a_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 1, "final", 0))
    found = finding("python")
    assert (found["state"], found["version"]) == ("broken", "3.14.1")
    assert "3.13" in found["detail"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Commands that answer with a fixed line; nothing else is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def add(name: str, answer: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{answer}'\n")
        path.chmod(0o755)

    return add


def finding(name: str) -> dict[str, str]:
    return next(found for found in doctor.examine()["findings"] if found["name"] == name)


@pytest.mark.usefixtures("commands")
def test_without_server_and_container_the_one_from_pip_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path))
    assert finding("tritonserver")["detail"] == "not on PATH; `serve` takes one of the next two"
    assert finding("triton-container")["detail"] == "neither docker nor podman is on PATH"
    server = finding("triton-pip")
    assert (server["state"], server["remedy"]) == ("missing", "cofi-deploy serve --server pip")
    assert f"`serve` installs it once, about 340 MB: {tmp_path}/triton-py3." in server["detail"]


@pytest.mark.usefixtures("commands")
def test_a_machine_that_the_server_from_pip_cannot_run_on_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    server = finding("triton-pip")
    assert (server["state"], server["remedy"]) == ("missing", "")
    assert "runs on Linux x86_64, this is Linux aarch64" in server["detail"]


def test_an_engine_that_answers_is_ready(commands: Callable[[str, str], None]) -> None:
    commands("docker", "28.1.1")
    found = finding("triton-container")
    assert (found["state"], found["version"]) == ("ready", "28.1.1")
    assert TRITON_IMAGE in found["detail"]


def test_docker_without_a_daemon_is_broken(commands: Callable[[str, str], None]) -> None:
    commands("docker", "")
    found = finding("triton-container")
    assert found["state"] == "broken"
    assert found["detail"].endswith("docker is there, no engine answers")


def test_server_on_path_is_ready(commands: Callable[[str, str], None], tmp_path: Path) -> None:
    commands("tritonserver", "")
    found = finding("tritonserver")
    assert (found["state"], found["detail"]) == ("ready", str(tmp_path / "tritonserver"))


def test_gpu_driver_is_read_from_nvidia_smi(commands: Callable[[str, str], None]) -> None:
    commands("nvidia-smi", "NVIDIA H100, 580.65.06, 9.0, 81559 MiB")
    found = finding("gpu")
    assert (found["state"], found["version"]) == ("ready", "580.65.06")
    assert "NVIDIA H100" in found["detail"]


def test_driver_that_sees_no_gpu_is_missing(commands: Callable[[str, str], None]) -> None:
    commands("nvidia-smi", "No devices were found")
    assert finding("gpu")["detail"] == "nvidia-smi sees none; everything else works on CPU"


def test_hub_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = finding("hub")
    assert found["detail"].startswith("HF_HUB_OFFLINE is set; use local files")


def test_unreachable_hub_names_the_address_and_the_ways_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = finding("hub")
    assert found["state"] == "missing"
    assert "http://127.0.0.1:9" in found["detail"]
    assert "--data-dir" in found["detail"]
