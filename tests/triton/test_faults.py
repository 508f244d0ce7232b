"""Faults under load on the real server: what is good stays right, what is bad is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cofi_deploy.loading import save_compact
from tests.builders import random_model, tiny_tokenizer
from tests.scripts import load_script

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton_environment")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny classifier, and 60 texts with their answers from PyTorch."""
    model = tmp_path_factory.mktemp("faults") / "model"
    save_compact(random_model("text-classification"), tiny_tokenizer(), model)
    rng = np.random.default_rng(0)
    texts = [
        (" ".join(f"w{word}" for word in rng.integers(0, 50, length)),)
        for length in rng.integers(1, 30, 60)
    ]
    return model, load_script("triton_cases").make_cases(model, texts)


@pytest.fixture
def patient(served: tuple[Path, Any], tmp_path: Path) -> Any:
    model, cases = served
    return load_script("triton_patient").Patient(
        model=model, cases=cases, scratch=tmp_path, requests=500, seconds=1.5
    )


def counts(row: dict[str, Any]) -> dict[str, int]:
    return {name: row[name] for name in ("wrong", "lost")}


def test_malformed_requests_are_refused_one_by_one_among_good_ones(patient):
    row = load_script("triton_faults").malformed(patient)
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    assert row["accepted"] == []
    assert sum(row["refusals"].values()) == row["malformed"] == 500
    assert set(row["refusals"]) == {"INVALID_ARGUMENT", "NOT_FOUND", "400", "404", "500"}
    assert row["answered"] == row["sent"] > 100
    assert row["held"], row


def test_clients_that_ask_again_lose_nothing_when_the_server_is_killed(patient):
    row = load_script("triton_faults").server_killed(patient)
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    assert row["retried"] > 0
    assert row["held"], row


def test_a_request_that_ends_the_server_costs_a_restart_and_no_answer(patient):
    row = load_script("triton_faults").crashing(patient)
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    assert row["held"], row


def test_a_dead_python_process_of_a_model_is_cured_by_a_restart(patient):
    row = load_script("triton_faults").stub_killed(patient)
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    assert row["retried"] > 0
    assert row["held"], row


def test_a_full_disk_refuses_the_export_and_not_the_requests(patient, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "x", str(tmp_path)], check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    subprocess.run(["umount", str(tmp_path)], check=True)
    row = load_script("triton_file_faults").disk_full(patient)
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    assert "[Errno 28] No space left on device" in row["export_said"]
    assert row["held"], row


def test_corrupt_versions_are_refused_while_the_old_one_serves(patient):
    row = load_script("triton_file_faults").corrupt_version(patient)
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    for damage in ("model.onnx cut in half", "one bit of model.onnx"):
        assert "it is corrupt, truncated or was replaced" in row["refused"][damage]
    assert "export.json' cannot be read" in row["refused"]["no export.json"]
    assert row["later_version_served"]
    assert row["held"], row


@pytest.mark.slow
def test_ten_thousand_malformed_requests_leave_memory_flat(served, tmp_path):
    model, cases = served
    patient = load_script("triton_patient").Patient(model=model, cases=cases, scratch=tmp_path)
    row = load_script("triton_faults").malformed(patient)
    assert row["malformed"] == 10_000
    assert counts(row) == {"wrong": 0, "lost": 0}, row["errors"]
    assert row["held"], row
