"""`cofi-deploy compare` as it is typed: exit codes, what is printed, what is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from cofi_deploy.artifacts import SCHEMA_VERSION, write_json
from cofi_deploy.cli import main
from cofi_deploy.results import write_results

ROW = {"model": "m", "runtime": "torch", "metric_name": "accuracy", "examples": 4000}


def run(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write_results(before, [{**ROW, "metric": 0.9}])
    write_results(after, [{**ROW, "metric": 0.8}])
    return before, after


def test_equal_files_exit_0_and_say_so(files: tuple[Path, Path]) -> None:
    code, out, err = run(files[0], files[0])
    assert code == 0
    document = json.loads(out)
    assert document["verdict"]["ok"] is True
    assert [row["quantity"] for row in document["rows"]] == ["metric"]
    assert set(document) > {"created", "command", "git_commit", "machine", "versions"}
    assert "1 quantities are the same" in err


def test_a_worse_file_exits_1_and_shows_the_numbers(files: tuple[Path, Path]) -> None:
    code, out, err = run(*files)
    assert code == 1
    (row,) = json.loads(out)["rows"]
    assert (row["baseline"], row["candidate"], row["verdict"]) == (0.9, 0.8, "worse")
    assert row["change"] == -0.1
    assert "Worse: metric of m torch" in err
    assert run(files[1], files[0])[0] == 0


def test_a_tolerance_is_a_flag(files: tuple[Path, Path]) -> None:
    assert run(*files, "--max-metric-drop", "10")[0] == 0
    code, _, err = run(*files, "--max-metric-drop", "-1")
    assert code == 2
    assert "--max-metric-drop is -1, allowed: 0 to 100 points" in err


def test_output_and_junit_are_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    output, junit = tmp_path / "compare.json", tmp_path / "compare.xml"
    code, out, _ = run(*files, "--output", output, "--junit", junit)
    assert (code, out) == (1, "")
    document = json.loads(output.read_text("utf-8"))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["candidate"] == str(files[1])
    assert ET.parse(junit).getroot().get("failures") == "1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist; give a result file"),
        (b"{", "is not readable JSON"),
        (b"\xff\xfe", "is not readable JSON"),
        (b"[]", "holds a list, expected an object"),
        (b'{"schema_version": 99, "rows": []}', "has schema_version 99, but this cofi-deploy"),
        (b'{"state": "done"}', "has no list 'rows', so it is no result file"),
        (b'{"rows": [{}, 7]}', "is a int, expected an object"),
        (b'{"rows": []}', "has no rows, so there is nothing to compare"),
    ],
    ids=["missing", "truncated", "binary", "list", "newer", "run.json", "number", "empty"],
)
def test_a_file_that_is_no_result_file_exits_2_and_is_named(
    content: bytes | None, said: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    if content is not None:
        other.write_bytes(content)
    for pair in ((files[0], other), (other, files[0])):
        code, _, err = run(*pair)
        assert code == 2
        assert said in err
        assert str(other) in err


def test_files_without_a_common_row_exit_2_and_name_the_key(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    write_results(other, [{**ROW, "model": "n", "metric": 0.9}])
    code, _, err = run(files[0], other)
    assert code == 2
    assert "model is m there and n here" in err
    assert run(files[0], other, "--ignore", "model")[0] == 0


def test_rows_that_are_nowhere_unique_exit_2(files: tuple[Path, Path], tmp_path: Path) -> None:
    twice = tmp_path / "twice.json"
    write_results(twice, [{**ROW, "metric": 0.9}] * 2)
    code, _, err = run(files[0], twice)
    assert code == 2
    assert "every place is measured several times in one file" in err


def test_rows_without_anything_in_common_exit_2(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"rows": [{"p50_ms": 1, "model": "m"}]})
    write_json(tmp_path / "b.json", {"rows": [{"held": True, "fault": "f"}]})
    code, _, err = run(tmp_path / "a.json", tmp_path / "b.json", "--ignore", "model")
    assert code == 2
    assert "nothing in " in err
    assert "measure the same models, runtimes and operating points" in err


def test_an_ignored_key_that_is_none_names_the_nearest(files: tuple[Path, Path]) -> None:
    code, _, err = run(*files, "--ignore", "modell")
    assert code == 2
    assert re.search(r"--ignore 'modell' tells no rows apart; .*did you mean 'model'\?", err)


def test_a_vanished_row_fails_unless_it_is_allowed(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write_results(before, [{**ROW, "metric": 0.9}, {**ROW, "runtime": "openvino", "metric": 0.9}])
    write_results(after, [{**ROW, "metric": 0.9}])
    code, _, err = run(before, after)
    assert code == 1
    assert "not measured again: m openvino" in err
    assert run(before, after, "--allow-missing")[0] == 0


def test_comparing_loads_no_framework(files: tuple[Path, Path]) -> None:
    code = (
        "import sys\n"
        "from cofi_deploy.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy', 'onnx', 'onnxruntime'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"imported: {done.stderr}"
