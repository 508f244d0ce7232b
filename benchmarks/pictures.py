"""The README's pictures, drawn from benchmarks/results/*.json as the report draws its own.

`tables.py` writes and checks them with its tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cofi_deploy.artifacts import read_json
from cofi_deploy.serve.pareto import accuracy_against_speedup, shape_of

ROOT = Path(__file__).resolve().parent
IMAGES = ROOT.parent / "docs" / "images"
SHOWN = "sst2"
RUNTIMES = ("onnxruntime-cpu", "openvino")  # what is served

Row = Mapping[str, Any]


def pictures() -> dict[Path, str]:
    """Content of every picture by its file; none before `pruning.py` has run."""
    file = ROOT / "results" / f"pruning-{SHOWN}.json"
    if not file.is_file():
        return {}
    rows: Sequence[Row] = read_json(file)["rows"]
    dense = f"{SHOWN}-dense"
    members = [
        {**row, "model": f"{100 * row['realized_sparsity']:.0f} %"}
        for row in rows
        if row["model"] != dense and row["runtime"] in RUNTIMES
    ]
    scored = [row for row in members if "metric" in row]
    timed = [row for row in members if row.get("speedup")]
    shapes = dict.fromkeys(map(shape_of, timed))
    drawn = accuracy_against_speedup(scored, timed, targets={})
    return {
        IMAGES / f"{SHOWN}-{shape}.svg": standalone(svg)
        for shape, svg in zip(shapes, drawn, strict=True)
    }


def standalone(svg: str) -> str:
    """A picture of the report as a file: with the page's colours, light and dark, and its paper."""
    templates = resources.files("cofi_deploy.serve") / "templates"
    style = "".join(
        (templates / name).read_text(encoding="utf-8") for name in ("colours.css", "chart.css")
    )
    head, rest = svg.split(">", maxsplit=1)
    paper = '<rect width="100%" height="100%" rx="8" fill="var(--paper)"/>'
    return f"{head}>\n<style>\n{style}</style>\n{paper}{rest}\n"
