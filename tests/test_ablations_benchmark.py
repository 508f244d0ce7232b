"""Ablations and families: rows of finished runs, and the tables of docs/recipes.md."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cofi_deploy.artifacts import write_json
from cofi_deploy.config import resolve_settings
from tests.builders import dense_arch
from tests.scripts import load_script

ablations = load_script("ablations")
family = load_script("family")
table = load_script("ablations_table")
ARCH = dense_arch()


def run_document(
    seed: int, selection: dict[float, float], metric: float = 0.8, state: str = "done"
) -> dict[str, Any]:
    return {
        "state": state,
        "precision": "fp32",
        "machine": {"cpu": "Some CPU"},
        "settings": {"seed": seed},
        "stages": {
            "teacher": {"seconds": 100.0},
            **{f"finetune-{target:g}": {"metric": value} for target, value in selection.items()},
            **{f"prune-{target:g}": {"seconds": 60.0} for target in selection},
        },
        "wall_s": 50.0,
        "result": {
            "metric_name": "accuracy",
            "examples": 872,
            "teacher": {"metric": 0.875},
            "models": [
                {
                    "directory": "model",
                    "target_sparsity": target,
                    "realized_sparsity": target,
                    "metric": metric,
                }
                for target in selection
            ],
        },
    }


def write_run(run: Path, document: dict[str, Any]) -> None:
    write_json(run / "run.json", document)
    write_json(run / "model" / "config.json", {"arch": ARCH.to_json()})


@pytest.mark.parametrize("condition", ablations.CONDITIONS)
def test_every_condition_is_a_set_of_settings(condition):
    changes = ablations.CONDITIONS[condition]
    overrides = {**ablations.BASE, **changes}
    found = resolve_settings(
        recipe="fast", training_rows=6000, kind="text-classification", overrides=overrides
    )
    plain = resolve_settings(
        recipe="fast", training_rows=6000, kind="text-classification", overrides=ablations.BASE
    )
    assert (found != plain) == bool(changes)


def test_conditions_are_compared_with_the_first_on_the_same_seeds(tmp_path: Path):
    target = ablations.TARGET
    for name, seed, selection, state in (
        ("all-of-it", 1, 0.80, "done"),
        ("all-of-it", 2, 0.90, "done"),
        ("cubic-schedule", 2, 0.91, "done"),
        ("cubic-schedule", 1, 0.5, "running"),
    ):
        document = run_document(seed, {target: selection}, state=state)
        write_run(tmp_path / f"{name}-seed{seed}", document)
    collected = ablations.collect(tmp_path)
    assert [row["metric_selection"] for row in collected["rows"]] == [0.80, 0.90, 0.91]
    lines = table.ablations_table(collected).splitlines()
    assert lines[2] == "| all of it | 2 | 0.850 |  | 0.800 | 6 | 24 |  |"
    assert lines[3] == "| cubic schedule | 1 | 0.910 | +1.0 | 0.800 | 6 | 24 |  |"
    assert "6,000 training rows, fp32" in lines[-1]
    assert "0.875 on the 872 development examples" in lines[-1]


def test_what_was_timed_stands_beside_what_was_trained(tmp_path: Path, monkeypatch):
    target = ablations.TARGET
    monkeypatch.setattr(ablations, "FOLDER", tmp_path)
    (tmp_path / "teacher-seed1" / "teacher").mkdir(parents=True)
    for name in ("all-of-it", "without-hidden-masks", "without-layer-masks"):
        write_run(tmp_path / f"{name}-seed1", run_document(1, {target: 0.8}))
    asked: list[Any] = []

    def bench(models, **arguments):
        asked.extend(models)
        rows = [
            {"model": str(model), "batch_size": batch, "seq_len": 128, "p50_ms": 2.0, **speedup}
            for batch in (1, 32)
            for number, model in enumerate(models)
            for speedup in [{"speedup": 10.0 + number if batch == 1 else None} if number else {}]
        ]
        return SimpleNamespace(rows=rows)

    monkeypatch.setattr(ablations.api, "bench", bench)
    rows = ablations.measure(1, ablations.collect(tmp_path)["rows"])
    names = ["teacher", "all-of-it", "without-hidden-masks", "without-layer-masks"]
    assert [path.parent.name for path in asked] == [f"{name}-seed1" for name in names]
    text = table.ablations_table({"rows": rows, "base_settings": dict(ablations.BASE)})
    assert "| without layer masks | 1 | 0.800 | +0.0 | 0.800 | 6 | 24 | 13.0x, too noisy |" in text


def test_rows_of_an_earlier_day_stay_until_the_same_run_is_done_again(tmp_path: Path):
    target = ablations.TARGET
    for folder, name, seed, selection in (
        ("old", "all-of-it", 1, 0.80),
        ("old", "all-of-it", 2, 0.90),
        ("new", "all-of-it", 2, 0.95),
        ("new", "cubic-schedule", 2, 0.91),
    ):
        run = tmp_path / folder / f"{name}-seed{seed}"
        write_run(run, run_document(seed, {target: selection}))
    earlier = ablations.collect(tmp_path / "old")["rows"]
    rows = ablations.collect(tmp_path / "new", [*earlier, {"condition": "gone", "seed": 1}])["rows"]
    assert [row["metric_selection"] for row in rows] == [0.80, 0.95, 0.91]


def test_a_family_is_set_beside_runs_of_their_own(tmp_path: Path):
    runs, teachers = tmp_path / "runs", tmp_path / "teachers"
    write_json(teachers / "teacher-seed1" / "run.json", run_document(1, {}))
    for kind, targets in family.KINDS.items():
        where = runs / f"{kind}-seed1"
        metric = 0.82 if kind == "family" else 0.81
        write_json(where / "run.json", run_document(1, dict.fromkeys(targets, metric), metric))
        write_json(where / "cpu_s.json", {"cpu_s": 500.0 if kind == "family" else 300.0})
    collected = family.collect(runs, teachers)
    assert len(collected["rows"]) == 8
    # 500 + 100 of four times 300 + 100
    assert collected["time_of_family"] == {"1": 0.375}
    text = table.family_table(collected)
    assert "| 95 % | 0.820 / 0.820 | 0.810 / 0.810 |" in text
    assert "took 38 % of the processor time" in text


def test_a_share_of_time_needs_all_five_runs(tmp_path: Path):
    runs, teachers = tmp_path / "runs", tmp_path / "teachers"
    write_json(teachers / "teacher-seed1" / "run.json", run_document(1, {}))
    write_json(runs / "family-seed1" / "run.json", run_document(1, {0.6: 0.8}))
    write_json(runs / "family-seed1" / "cpu_s.json", {"cpu_s": 500.0})
    assert family.collect(runs, teachers)["time_of_family"] == {}
