"""`profile` from the command line: JSON on standard output, tables for people, a picture."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from cofi_deploy.artifacts import read_json
from cofi_deploy.cli import main

# The tiny dense and pruned classifiers are those of the serving tests.
from tests.serve.conftest import subjects

__all__ = ["subjects"]


def run(*arguments):
    result = CliRunner().invoke(main, ["profile", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def models(subjects, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # exports are written below the working directory
    return [subjects[label].artifacts["torch"] for label in ("dense", "pruned")]


def test_dense_and_pruned_are_profiled_and_explained(models, tmp_path):
    flags = ("--runtime", "onnxruntime-cpu", "--point", "2x8", "--threads", "1")
    code, out, err = run(*models, *flags, "--svg", tmp_path / "p.svg")
    assert code == 0, err
    document = json.loads(out)
    assert [(row["model"], row["seq_len"]) for row in document["rows"]] == [
        ("dense", 8),
        ("pruned", 8),
    ]
    assert [each["wall_ms"] for each in document["profiles"]] == [
        row["p50_ms"] for row in document["rows"]
    ]
    (explained,) = document["explanations"]
    assert explained["sentence"].split("x")[0] in err
    assert "machine" in document
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    code, out, err = run(models[0], *flags, "--output", tmp_path / "p.json")
    assert (code, out) == (0, "")
    assert read_json(tmp_path / "p.json")["explanations"] == []


def test_a_runtime_without_a_profiler_exits_2_before_anything_is_exported(models, tmp_path):
    code, _, err = run(*models, "--runtime", "onnxruntime-cuda")
    assert code == 2
    assert "runtime 'onnxruntime-cuda' has no profile by layer, allowed: onnxruntime-cpu, " in err
    assert not (tmp_path / "exports").exists()


def test_without_a_run_the_way_to_make_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run()
    assert code == 2
    assert "no finished run below 'runs'" in err
