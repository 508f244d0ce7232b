"""Two models side by side: both numbers of everything, and the second over the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from cofi_deploy.cli import main
from cofi_deploy.inspect_model import archs_of, describe
from cofi_deploy.inspect_pair import render_pair
from cofi_deploy.model import CofiConfig, build
from tests.test_inspect_model import pruned_arch, save


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    dense = pruned_arch((4, 64), (4, 64), (4, 64), hidden=32)
    for name, arch in (("teacher", dense), ("model", pruned_arch((2, 17), (0, 5), (3, 0)))):
        save(build(CofiConfig.from_arch(arch, "text-classification")), tmp_path / name)
    return tmp_path / "teacher", tmp_path / "model"


def rows_of(text: str) -> list[list[str]]:
    cells = (line.replace("┃", "│").strip("│").split("│") for line in text.splitlines())
    return [[cell.strip() for cell in row] for row in cells if len(row) > 1]


def printed(pair: tuple[Path, Path]) -> list[list[str]]:
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(render_pair(*map(describe, pair)))
    return rows_of(capture.get())


def test_layers_are_told_side_by_side(pair: tuple[Path, Path]) -> None:
    rows = printed(pair)
    first, second = map(describe, pair)
    start = next(index for index, row in enumerate(rows) if row[0] == "layer")
    layers = rows[start + 1 : start + 4]
    assert [row[1:5] for row in layers] == [
        ["4", "2", "64", "17"],
        ["4", "gone", "64", "5"],
        ["4", "3", "64", "gone"],
    ]
    share = second["layers"][0]["flops"] / first["layers"][0]["flops"]
    assert layers[0][-1] == f"{share:.3f}"


def test_sizes_and_parts_have_both_numbers_and_their_ratio(pair: tuple[Path, Path]) -> None:
    rows = {row[0]: row[1:] for row in printed(pair)}
    first, second = map(describe, pair)
    total = first["parameters"], second["parameters"]
    assert rows["parameters"] == [*(f"{count:,}" for count in total), f"{total[1] / total[0]:.3f}"]
    assert rows["hidden"] == ["32", "30", f"{30 / 32:.3f}"]
    assert rows["sparsity"][:2] == ["0.0000", f"{second['realized_sparsity']:.4f}"]
    ffn = [one["parameters_by_part"]["ffn"] for one in (first, second)]
    assert rows["ffn"][:2] == [f"{count:,}" for count in ffn]


def test_models_of_other_depth_have_dashes_where_there_is_no_layer(tmp_path: Path) -> None:
    first: dict[str, Any] = {
        **describe_shallow(tmp_path / "one"),
    }
    second = {**first, "layers": first["layers"][:1]}
    console = Console(width=140)
    with console.capture() as capture:
        console.print(render_pair(first, second))
    rows = rows_of(capture.get())
    start = next(index for index, row in enumerate(rows) if row[0] == "layer")
    assert rows[start + 2][1:5] == ["1", "-", "2", "-"]


def describe_shallow(directory: Path) -> dict[str, Any]:
    arch = pruned_arch((1, 2), (1, 2), (1, 2))
    save(build(CofiConfig.from_arch(arch, "text-classification")), directory)
    return describe(directory)


def test_labels_tell_models_of_one_run_apart(pair: tuple[Path, Path]) -> None:
    labels = list(archs_of([describe(each) for each in pair]))
    parent = pair[0].parent.name
    assert labels == [f"A: {parent}/teacher", f"B: {parent}/model"]
    assert list(archs_of([describe(pair[0])])) == [""]


def test_inspect_takes_two_models_and_draws_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    arguments = ["inspect", *map(str, pair), "--svg", str(svg), "--png", str(png)]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    assert [one["hidden"] for one in json.loads(result.stdout)["models"]] == [32, 30]
    assert svg.read_text("utf-8").count("encoder parameters kept") == 4  # title and words of each
    assert png.read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(main, arguments)
    assert table.exit_code == 0
    assert "B / A" in table.stdout
