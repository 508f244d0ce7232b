from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cofi_deploy.artifacts import write_json
from cofi_deploy.cli import main
from cofi_deploy.cli_options import Count, _setting
from cofi_deploy.serve.runner import availability

# The tiny checkpoint and the tiny files of tasks are those of the training tests.
from tests.train.conftest import few_steps, one_thread, tiny_bert, tiny_data

__all__ = ["few_steps", "one_thread", "tiny_bert", "tiny_data"]

COMMANDS = (
    *("train", "export", "verify", "bench", "compare", "inspect", "profile", "serve", "rollback"),
    "doctor",
    "demo",
)  # fmt: skip


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "--format", "onx"), "got 'onx', allowed: onnx, openvino, trt, triton; did you"),
        (
            ("export", "--format", "onnx", "--precision", "int4"),
            "'--precision': got 'int4', allowed: fp32, fp16, bf16, int8; did you mean 'int8'?",
        ),
        (("serve", "--server", "contaner"), "pip; did you mean 'container'?"),
    ],
    ids=["format", "precision", "server"],
)
def test_an_unknown_word_names_the_nearest_one_and_exits_2(
    arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err


def test_train_without_a_task_exits_2() -> None:
    code, _, err = run("train")
    assert code == 2
    assert "--task is missing" in err


def test_two_budgets_are_refused() -> None:
    code, _, err = run("train", "--task", "mrpc", "--sparsity", "0.9", "--params", "5M")
    assert code == 2
    assert "give one budget" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--sparsity", "0.9", "--speedup", "10", "--for", "ort@1x128"),
            "got --sparsity and --speedup; give one budget: --sparsity, --sparsities, --speedup",
        ),
        (("--speedup", "10"), "--speedup 10 needs --for RUNTIME@BATCHxLENGTH, such as onnx"),
        (("--for", "ort@1x128"), "--for ort@1x128 says where --speedup is measured; give both"),
        (("--speedup", "fast", "--for", "ort@1x128"), "--speedup is 'fast', expected numbers such"),
        (("--speedup", "10", "--for", "ort"), "operating point is 'ort', allowed: BATCHxLENGTH"),
        (("--speedup", "10", "--for", "orrt@1x8"), "runtime is 'orrt', allowed: torch"),
        (("--speedup", "10", "--for", "triton@1x8"), "--speedup --for triton@1x8: allowed"),
    ],
)
def test_half_a_speedup_and_a_place_that_is_none_are_refused(
    arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = run("train", "--task", "mrpc", *arguments)
    assert code == 2
    assert words in err


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


@pytest.mark.parametrize(
    "command", [("export", "--format", "onnx"), ("verify",), ("inspect",), ("serve",)]
)
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


@pytest.mark.parametrize("value", ["16,x", "0,16", "16,,32", ""])
def test_wrong_buckets_say_what_is_expected(value: str) -> None:
    code, _, err = run("export", "--format", "trt", "--buckets", value)
    assert code == 2
    assert f"got '{value}', expected lengths in tokens such as 32,64,128,384" in err


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
        "--set", "studnet_lr=1e-4", "--set", "dropout=2",
    )  # fmt: skip
    assert code == 2
    assert "unknown key 'studnet_lr'" in err
    assert "did you mean 'student_lr'?" in err
    assert "dropout is 2" in err


MISTAKES = {
    "unknown task": ["train", "--task", "sst"],
    "no task": ["train"],
    "own text without data": ["train", "--task", "text-classification"],
    "column": ["train", "--task", "text-classification", "--data", "x.csv", "--column", "text"],
    "two budgets": ["train", "--task", "mrpc", "--sparsity", "0.9", "--params", "5M"],
    "speedup nowhere": ["train", "--task", "mrpc", "--speedup", "10"],
    "speedup in no runtime": ["train", "--task", "mrpc", "--speedup", "10", "--for", "ot@1x8"],
    "resume of nothing": ["train", "--resume"],
    "resume of no run": ["train", "--resume", "nowhere"],
    "export without a run": ["export", "--format", "onnx"],
    "export of nothing": ["export", "nowhere", "--format", "onnx"],
    "verify of nothing": ["verify", "nowhere"],
    "data without a task": ["verify", "--data-dir", "glue"],
    "bench of nothing": ["bench", "nowhere"],
    "bench with data without a task": ["bench", "--data", "x.csv"],
}


def test_typing_errors_are_answered_in_one_line_without_importing_a_framework(
    tmp_path: Path,
) -> None:
    code = (
        "import json, sys\n"
        "from click.testing import CliRunner\n"
        "from cofi_deploy.cli import main\n"
        "results = {}\n"
        "for name, arguments in json.loads(sys.argv[1]).items():\n"
        "    done = CliRunner().invoke(main, arguments)\n"
        "    results[name] = [done.exit_code, done.stderr, sorted({'torch'} & set(sys.modules))]\n"
        "print(json.dumps(results))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(MISTAKES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, (exit_code, err, imported) in json.loads(done.stdout).items():
        assert exit_code == 2, (name, err)
        assert imported == [], name
        lines = [
            line for line in err.splitlines() if line and not line.startswith(("Usage", "Try"))
        ]
        assert len(lines) == 1, err


def test_verbose_adds_the_traceback_to_the_sentence(tmp_path: Path) -> None:
    quiet = run("export", str(tmp_path / "no"), "--format", "onnx")
    loud = run("export", str(tmp_path / "no"), "--format", "onnx", "--verbose")
    assert (quiet[0], loud[0]) == (2, 2)
    assert "Traceback" not in quiet[2]
    assert "Traceback" in loud[2]
    assert loud[2].endswith(quiet[2])


@pytest.mark.parametrize(("text", "words"), [("x = ", "cannot read settings from"), (None, "read")])
def test_a_file_of_settings_that_cannot_be_read_is_named(
    tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "settings.toml"
    if text is not None:
        path.write_text(text, "utf-8")
    # What else is missing is asked for later: a model that nobody has, a run that is a folder.
    for command in (["train", "--task", "sst2", "--model", "nobody/nothing"], ["verify", "."]):
        code, _, err = run(*command, "--config", str(path))
        assert code == 2
        assert words in err
        assert str(path) in err


def test_a_column_that_is_not_there_is_named(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "own.csv").write_text("text,label\na b,0\nc d,1\n", "utf-8")
    code, _, err = run(
        "train", "--task", "text-classification", "--data", str(tmp_path / "own.csv"),
        "--column", "text=body", "--model", str(tiny_bert), "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2
    assert "'body'" in err
    assert not (tmp_path / "run").exists()


def test_train_resume_export_inspect_and_verify_as_they_are_typed(
    tmp_path: Path,
    tiny_bert: Path,
    tiny_data: Path,
    few_steps: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={key}={json.dumps(value)}" for key, value in few_steps.items()
                if key not in {"sparsities", "precision"}]  # fmt: skip
    code, _, err = run(
        "train", "--task", "sst2", "--model", str(tiny_bert), "--data-dir", str(tiny_data),
        "--sparsities", "0.5,0.8", "--precision", "fp32", "--max-length", "48", *settings,
    )  # fmt: skip
    assert code == 0, err
    assert "samples per second (fp32): teacher" in err
    assert "next: cofi-deploy export" in err
    (directory,) = Path("runs").iterdir()
    assert run("train", "--resume", str(directory))[0] == 2  # done already

    code, out, err = run("export", "--format", "onnx")
    assert code == 0, err
    assert json.loads(out)["onnx"]["directory"] == f"exports/{directory.name}/onnx"

    code, out, err = run("inspect", "--json", "--svg", "structure.svg")
    assert code == 0, err
    assert 0.79 < json.loads(out)["realized_sparsity"] < 0.81
    assert Path("structure.svg").read_text("utf-8").startswith("<svg")


def test_a_missing_runtime_that_is_required_exits_3(
    tmp_path: Path,
) -> None:
    if availability("tensorrt") is None:
        pytest.skip("TensorRT works here")
    for part in ("model", "teacher"):
        (tmp_path / part).mkdir()
    task = {"name": "sst2"}
    write_json(tmp_path / "run.json", {"state": "done", "task": task})
    code, _, err = run("verify", str(tmp_path), "--require", "tensorrt")
    assert code == 3
    assert err.startswith("error: --require tensorrt: ")


@pytest.mark.parametrize(
    ("text", "number"), [("5M", 5_000_000), ("1.5m", 1_500_000), ("800k", 800_000), ("7", 7)]
)
def test_counts_may_have_a_unit(text: str, number: int) -> None:
    assert Count().convert(text, None, None) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-4", 1e-4), ("[0.5, 0.8]", [0.5, 0.8]), ("cubic", "cubic"), ("true", True)],
)
def test_settings_are_read_as_toml_or_as_plain_words(text: str, value: object) -> None:
    assert _setting(f"key={text}") == ("key", value)
