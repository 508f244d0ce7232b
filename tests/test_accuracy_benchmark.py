"""Accuracy over tasks and seeds: rows of finished runs, and the README's table of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.config import resolve_settings
from tests.scripts import load_script

accuracy = load_script("accuracy")
table = load_script("accuracy_table")


def run_document(seed: int, metric: float, state: str = "done") -> dict[str, Any]:
    return {
        "schema_version": 1,
        "state": state,
        "task": {"name": "mrpc"},
        "recipe": "balanced",
        "precision": "bf16",
        "settings": {"seed": seed, "train_limit": 0},
        "machine": {"cpu": "Some CPU"},
        "versions": {"torch": "2.13.0"},
        "git_commit": "abc",
        "wall_s": 100.0,
        "result": {
            "metric_name": "accuracy",
            "examples": 408,
            "teacher": {"metric": 0.8},
            "models": [
                {
                    "directory": "models/0.9",
                    "target_sparsity": 0.9,
                    "realized_sparsity": 0.9001,
                    "parameters": 12,
                    "metric": metric,
                },
            ],
        },
    }


def test_finished_runs_become_rows_and_others_wait(tmp_path: Path):
    for seed, metric, state in ((1, 0.75, "done"), (2, 0.77, "done"), (3, 0.1, "running")):
        write_json(
            tmp_path / f"mrpc-balanced-seed{seed}" / "run.json", run_document(seed, metric, state)
        )
    collected = accuracy.collect(tmp_path)
    assert [(row["seed"], row["metric"]) for row in collected["rows"]] == [(1, 0.75), (2, 0.77)]
    assert collected["rows"][0]["metric_dense"] == 0.8
    assert set(collected["runs"]) == {"mrpc-balanced-seed1", "mrpc-balanced-seed2"}
    write_json(tmp_path / "accuracy.json", collected)
    lines = table.accuracy_table(read_json(tmp_path / "accuracy.json")).splitlines()
    assert lines[-1] == "| mrpc (balanced) | accuracy | 2 | 0.800 ± 0.000 | 0.760 ± 0.014 |"


def test_one_seed_has_no_spread():
    rows = list(accuracy.rows_of("mrpc-balanced-seed1", run_document(1, 0.75)))
    assert table.accuracy_table({"rows": rows}).splitlines()[-1].endswith("| 1 | 0.800 | 0.750 |")


def test_runs_of_another_day_stay_until_the_same_run_replaces_them(tmp_path: Path):
    for folder, seed, metric in (("old", 1, 0.7), ("old", 2, 0.71), ("new", 2, 0.75)):
        path = tmp_path / folder / f"mrpc-balanced-seed{seed}" / "run.json"
        write_json(path, run_document(seed, metric))
    earlier = accuracy.collect(tmp_path / "old")
    collected = accuracy.collect(tmp_path / "new", earlier)
    assert [(row["seed"], row["metric"]) for row in collected["rows"]] == [(1, 0.7), (2, 0.75)]
    assert set(collected["runs"]) == {"mrpc-balanced-seed1", "mrpc-balanced-seed2"}


@pytest.mark.parametrize("name", accuracy.SUBJECTS)
def test_every_subject_names_settings_that_exist(name):
    subject = accuracy.SUBJECTS[name]
    settings = resolve_settings(
        recipe=subject.recipe,
        training_rows=5000,
        kind="text-classification",
        overrides=subject.changes,
    )
    assert all(getattr(settings, key) == value for key, value in subject.changes.items())


def test_recipes_have_runs_and_lines_of_their_own(tmp_path: Path):
    for recipe, metric in (("balanced", 0.75), ("fast", 0.7)):
        document = {**run_document(1, metric), "recipe": recipe}
        write_json(tmp_path / f"mrpc-{recipe}-seed1" / "run.json", document)
    lines = table.accuracy_table(accuracy.collect(tmp_path)).splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| mrpc (balanced)", "| mrpc (fast)"]


def test_part_of_the_training_data_is_said():
    document = run_document(1, 0.75)
    document["settings"]["train_limit"] = 24_000
    rows = list(accuracy.rows_of("sst2-balanced-seed1", document))
    assert "| sst2 (balanced, 24,000 training rows) |" in table.accuracy_table({"rows": rows})
