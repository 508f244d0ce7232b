from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cofi_deploy.cli import main

COMMANDS = ("train", "export", "verify", "bench", "inspect", "doctor", "demo")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_help_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from cofi_deploy.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'onnx', 'onnxruntime', 'rich'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_in_its_help(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert re.search(rf"^ +cofi-deploy {command}", out, re.MULTILINE)


def test_the_help_lists_every_command() -> None:
    _, out, _ = run("--help")
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", out, re.MULTILINE)


def test_unknown_task_names_the_nearest_one_and_exits_2() -> None:
    code, _, err = run("train", "--task", "sst")
    assert code == 2
    assert "unknown task 'sst'" in err
    assert "did you mean 'sst2'?" in err


def test_train_without_a_task_exits_2() -> None:
    code, _, err = run("train")
    assert code == 2
    assert "--task is missing" in err


def test_two_budgets_are_refused() -> None:
    code, _, err = run("train", "--task", "mrpc", "--sparsity", "0.9", "--params", "5M")
    assert code == 2
    assert "give one budget" in err


def test_sparsities_that_are_no_numbers_are_refused() -> None:
    code, _, err = run("train", "--task", "mrpc", "--sparsities", "0.6;0.8")
    assert code == 2
    assert "--sparsities is '0.6;0.8', expected numbers" in err


def test_a_column_without_a_name_is_refused() -> None:
    code, _, err = run("train", "--task", "text-classification", "--column", "text")
    assert code == 2
    assert "--column is 'text', expected NAME=VALUE" in err


def test_squad_without_a_network_says_at_once_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code, _, err = run("train", "--task", "squad")
    assert code == 3
    assert "--model" in err
    assert "--data-dir" in err


@pytest.mark.parametrize("command", [("export", "--format", "onnx"), ("verify",), ("inspect",)])
def test_without_a_run_a_command_says_how_to_make_one(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*command)
    assert code == 2
    assert "no finished run below 'runs'" in err
    assert "cofi-deploy train" in err


@pytest.mark.parametrize("value", ["1:8", "8:1:32", "0:1:2", "a:b:c"])
def test_a_wrong_triple_says_what_is_expected(value: str) -> None:
    code, _, err = run("export", "--format", "trt", "--batch-size", value)
    assert code == 2
    assert f"got '{value}', expected" in err


def test_resume_without_an_unfinished_run_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "--resume")
    assert code == 2
    assert "nothing to resume" in err


def test_unknown_setting_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"word number {i}\t{i % 2}\n" for i in range(40)), "utf-8"
    )
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na b\t0\nc d\t1\n", "utf-8")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    code, _, err = run(
        "train", "--task", "sst2", "--data-dir", str(tmp_path), "--model", str(model),
        "--set", "student_learning_rate=1e-4", "--set", "dropout=2",
    )  # fmt: skip
    assert code == 2
    assert "unknown key 'student_learning_rate'" in err
    assert "did you mean 'student_lr'?" in err
    assert "dropout is 2" in err
