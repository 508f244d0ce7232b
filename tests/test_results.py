"""Result files have one form, and say where their numbers come from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re

import torch

from cofi_deploy import results
from cofi_deploy.results import git_commit, machine, result_document, versions, write_results

ROWS = [{"task": "sst2", "p50_ms": 1.5}, {"task": "mrpc", "p50_ms": 2.5}]


def test_a_result_document_has_the_keys_of_the_contract():
    document = result_document(ROWS)
    assert set(document) == {"created", "command", "git_commit", "machine", "versions", "rows"}
    assert document["rows"] == ROWS


def test_a_result_file_has_a_schema_version_besides(tmp_path):
    write_results(tmp_path / "bench.json", ROWS, command=["cofi-deploy", "bench", "a model"])
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["schema_version"] == 1
    assert document["rows"] == ROWS
    assert document["command"] == "cofi-deploy bench 'a model'"


def test_created_is_a_moment_with_its_time_zone():
    created = datetime.datetime.fromisoformat(result_document([])["created"])
    assert created.tzinfo is not None
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(minutes=1)


def test_the_machine_is_described():
    described = machine()
    assert set(described) == {"cpu", "cpu_flags", "cores", "memory_gib", "gpu", "os"}
    assert described["cpu"]
    assert described["cores"] == os.cpu_count()
    assert described["memory_gib"] > 0


def test_versions_are_those_of_the_installed_packages():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_an_installed_package_reports_no_commit_of_a_repository_around_it(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    package = tmp_path / "venv" / "site-packages" / "cofi_deploy"
    package.mkdir(parents=True)
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    assert git_commit() is None


def test_the_commit_of_a_source_tree_is_a_hash():
    commit = git_commit()
    assert commit is None or re.fullmatch(r"(\S+-)?g?[0-9a-f]{7,}(-dirty)?", commit)
