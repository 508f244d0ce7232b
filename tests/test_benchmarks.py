"""The scripts of benchmarks/: tables say what the result files say, and nothing runs unasked."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from cofi_deploy.artifacts import read_json, write_json
from tests.scripts import load_script

EMPTY = "before\n<!-- results: begin -->\n<!-- results: end -->\nafter\n"


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a README and results of its own."""
    module = load_script("tables")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules["pictures"], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules["pictures"], "IMAGES", tmp_path / "images")
    monkeypatch.setattr(sys.modules["pictures"], "SHOWN", "mrpc")
    monkeypatch.setattr(module, "DOCUMENTS", (tmp_path / "README.md",))
    (tmp_path / "README.md").write_text(EMPTY, "utf-8")
    return module


def rows(model: str, sparsity: float, metric: float, p50: float) -> list[dict[str, Any]]:
    names = {"d": "mrpc-dense"}
    shared = {"task": "mrpc", "model": names.get(model, model), "wall_s": 1530.0}
    shared |= {"realized_sparsity": sparsity}
    runtime = {"runtime": "onnxruntime-cpu", "threads": 2}
    made = [
        {
            **shared,
            **runtime,
            "metric_name": "f1",
            "metric": metric,
            "metric_dense": 0.8765,
            "examples": 1408,
        },
        {**shared, **runtime, "batch_size": 1, "seq_len": 128, "p50_ms": p50},
        {**shared, **runtime, "batch_size": 32, "seq_len": 128, "p50_ms": 20 * p50},
    ]
    if sparsity:
        for row in made[1:]:
            row |= {"speedup": 9.25, "speedup_low": 9.04, "speedup_high": 9.46}
    return made


@pytest.fixture
def results(tmp_path: Path) -> None:
    """A dense and a pruned model, measured in one runtime."""
    write_json(
        tmp_path / "results" / "pruning-mrpc.json",
        {
            "machine": {"cpu": "Some CPU", "cores": 2},
            "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0", "openvino": "2026.4.0"},
            "structures": {
                "mrpc-dense": {
                    "hidden": 8,
                    "layers": [{"heads": 2, "ffn": 16}, {"heads": 2, "ffn": 16}],
                },
                "p": {"hidden": 7, "layers": [{"heads": 1, "ffn": 0}, {"heads": 0, "ffn": 3}]},
            },
            "rows": [*rows("d", 0.0, 0.8765, 13.94), *rows("p", 0.90012, 0.8124, 1.507)],
        },
    )


@pytest.mark.usefixtures("results")
def test_the_table_has_each_model_at_each_operating_point(tables):
    lines = tables.pruning_tables().splitlines()
    assert lines[0].startswith("**mrpc**, f1 on all 1,408 development examples")
    assert lines[2:8] == [
        "| encoder pruned | f1 | batch x length | PyTorch | ONNX Runtime | OpenVINO |",
        "|---|---|---|---|---|---|",
        "| 0 (dense) | 0.876 | 1 x 128 |  | 14 |  |",
        "| hidden 8; heads/FFN 2/16, 2/16 | | 32 x 128 |  | 279 |  |",
        "| 90.0 % | 0.812 | 1 x 128 |  | 1.51, 9.2x (9.0 to 9.5) |  |",
        "| hidden 7; heads/FFN 1/0, 0/3 | | 32 x 128 |  | 30, 9.2x (9.0 to 9.5) |  |",
    ]
    assert lines[9] == "Training the family took 26 minutes in all."


@pytest.mark.usefixtures("results")
def test_a_speedup_that_is_too_noisy_is_said_and_not_printed(tables, tmp_path):
    path = tmp_path / "results" / "pruning-mrpc.json"
    document = read_json(path)
    for row in document["rows"]:
        if "speedup" in row:
            row |= {"speedup": None, "speedup_low": None, "speedup_high": None}
    write_json(path, document)
    assert "| 1.51, too noisy to compare |" in tables.pruning_tables()


@pytest.mark.usefixtures("results")
def test_times_of_a_busy_machine_are_not_printed_beside_their_ratio(tables, tmp_path):
    path = tmp_path / "results" / "pruning-mrpc.json"
    document = read_json(path)
    for row in document["rows"]:
        if "p50_ms" in row:
            row["p50_ms"] = None
    write_json(path, document)
    assert "| too busy, 9.2x (9.0 to 9.5) |" in tables.pruning_tables()


@pytest.mark.usefixtures("results")
def test_machine_and_versions_stand_below_the_tables(tables):
    last = tables.pruning_tables().splitlines()[-1]
    assert last.startswith(
        "Some CPU, 2 cores, 2 threads, fp32; torch 2.13.0, onnxruntime 1.32.0, openvino 2026.4.0."
    )


@pytest.fixture
def family(tmp_path: Path, results: None) -> None:
    """One more pruned model."""
    file = tmp_path / "results" / "pruning-mrpc.json"
    document = read_json(file)
    document["structures"]["q"] = document["structures"]["p"]
    document["rows"] += rows("q", 0.8, 0.85, 3.0)
    write_json(file, document)


@pytest.mark.usefixtures("family")
def test_check_tells_an_old_readme_from_a_new_one(tables, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as old:
        tables.main()
    assert old.value.code
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    text = tables.DOCUMENTS[0].read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    tables.main()
    picture = tables.DOCUMENTS[0].parent / "images" / "mrpc-1x128.svg"
    picture.write_text(picture.read_text("utf-8").replace("90 %", "99 %"), "utf-8")
    with pytest.raises(SystemExit, match=r"mrpc-1x128.svg is not what the result files say"):
        tables.main()


@pytest.mark.usefixtures("family")
def test_pictures_are_files_of_their_own_in_light_and_dark(tables):
    drawn = tables.pictures()
    assert [file.name for file in drawn] == ["mrpc-1x128.svg", "mrpc-32x128.svg"]
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        style = root.find("{http://www.w3.org/2000/svg}style").text
        used = set(re.findall(r"var\((--[a-z0-9-]+)\)", svg))
        for theme in style.split("@media (prefers-color-scheme: dark)"):
            assert all(f"{name}:" in theme for name in used)
        assert "90 % in onnxruntime-cpu at" in svg
        assert "9.25 times faster (9.04 to 9.46), metric 0.8124" in svg


def test_without_results_the_readme_stays_as_it_is(tables):
    assert tables.rendered(EMPTY) == EMPTY


def test_pruning_refuses_a_task_that_is_not_trained():
    main = load_script("pruning").main
    wrong = CliRunner().invoke(main, ["mprc"], prog_name="pruning")
    assert wrong.exit_code == 2
    assert "'mprc' is not one of 'cola', 'mrpc'" in wrong.output
    told = CliRunner().invoke(main, ["--help"], prog_name="pruning", terminal_width=100).output
    assert re.search(r"\n +python benchmarks/pruning\.py \[TASK \.\.\.\] .*\n", told)


@pytest.mark.parametrize("name", ["ablations", "accuracy", "alignment", "family"])
def test_help_has_the_commands_line_by_line_and_unknown_names_are_refused(name: str):
    main = load_script(name).main
    told = CliRunner().invoke(main, ["--help"], prog_name=name, terminal_width=100).output
    assert re.search(rf"\n +python benchmarks/{name}\.py train .*\n", told)
    wrong = CliRunner().invoke(main, ["train", "no-such-name"], prog_name=name)
    assert wrong.exit_code == 2
    assert "no-such-name" in wrong.output
