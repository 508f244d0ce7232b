"""Write tables and pictures of README.md and docs/ from benchmarks/results/*.json.

Nobody types a number by hand.

python benchmarks/tables.py            rewrite tables between their markers, and the pictures
python benchmarks/tables.py --check    exit 1 when they are not what the result files say
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations_table import ablations_table, family_table
from accuracy_table import accuracy_table
from export_table import export_tables
from paper_table import gpu_tables, paper_tables
from pictures import pictures
from triton_table import triton_table

from cofi_deploy.artifacts import read_json

ROOT = Path(__file__).resolve().parent
DOCUMENTS = (ROOT.parent / "README.md", ROOT.parent / "docs" / "recipes.md")
RUNTIMES = {"torch": "PyTorch", "onnxruntime-cpu": "ONNX Runtime", "openvino": "OpenVINO"}

Row = Mapping[str, Any]


def pruning_tables() -> str:
    """One table for each task of `pruning.py`, with the machine under the last."""
    parts: list[str] = []
    files = sorted((ROOT / "results").glob("pruning-*.json"))
    for file in files:
        document = read_json(file)
        parts.append(_task_table(document))
    if files:
        parts.append(_conditions(read_json(files[-1])))
    return "\n\n".join(parts)


def _task_table(document: Mapping[str, Any]) -> str:
    rows: Sequence[Row] = document["rows"]
    first = next(row for row in rows if "metric" in row)
    task, metric = first["task"], first["metric_name"]
    lines = [
        f"**{task}**, {metric} on all {first['examples']:,} development examples; "
        "median milliseconds and, behind them, times faster than dense (95 % interval):",
        "",
        f"| encoder pruned | {metric} | batch x length | " + " | ".join(RUNTIMES.values()) + " |",
        "|---" * (3 + len(RUNTIMES)) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        structure = _structure(document["structures"][model])
        lines += _model_lines([row for row in rows if row["model"] == model], structure)
    limit = document.get("settings", {}).get("train_limit")
    rows_of = f", on {limit:,} training rows" if limit else ""
    lines += ["", f"Training the family took {first['wall_s'] / 60:.0f} minutes in all{rows_of}."]
    return "\n".join(lines)


def _structure(arch: Mapping[str, Any]) -> str:
    """What is left, layer by layer: heads and FFN width."""
    layers = ", ".join(f"{layer['heads']}/{layer['ffn']}" for layer in arch["layers"])
    return f"hidden {arch['hidden']}; heads/FFN {layers}"


def _model_lines(rows: Sequence[Row], structure: str) -> list[str]:
    scored = {row["runtime"]: row for row in rows if "metric" in row}
    timed = [row for row in rows if "p50_ms" in row]
    lines = []
    for index, shape in enumerate(dict.fromkeys((r["batch_size"], r["seq_len"]) for r in timed)):
        cells = [_cell(timed, runtime, shape) for runtime in RUNTIMES]
        name, metric = _name(rows[0]), f"{scored['onnxruntime-cpu']['metric']:.3f}"
        lead = f"| {name} | {metric}" if index == 0 else f"| {structure} |"
        lines.append(f"{lead} | {shape[0]} x {shape[1]} | " + " | ".join(cells) + " |")
    return lines


def _cell(timed: Sequence[Row], runtime: str, shape: tuple[int, int]) -> str:
    found = [
        row
        for row in timed
        if row["runtime"] == runtime and (row["batch_size"], row["seq_len"]) == shape
    ]
    if not found:
        return ""
    times = sorted(row["p50_ms"] for row in found if row["p50_ms"] is not None)
    p50 = times[len(times) // 2] if times else None
    text = "too busy" if p50 is None else f"{p50:.2f}" if p50 < 10 else f"{p50:.0f}"
    row = found[0]
    if "speedup" in row and row["speedup"] is None:
        text += ", too noisy to compare"
    elif "speedup" in row:
        text += f", {row['speedup']:.1f}x ({row['speedup_low']:.1f} to {row['speedup_high']:.1f})"
    return text


def _name(row: Row) -> str:
    sparsity = row["realized_sparsity"]
    return "0 (dense)" if sparsity == 0 else f"{100 * sparsity:.1f} %"


def _conditions(document: Mapping[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    threads = {row["threads"] for row in document["rows"] if "threads" in row}
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {'/'.join(map(str, sorted(threads)))} "
        f"threads, fp32; torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, "
        f"openvino {versions['openvino']}. One seed. Checkpoints were chosen on a slice of the "
        "training data; the development sets were scored once."
    )


def triton_tables() -> str:
    """What `triton_serving.py` measured; empty before it has run."""
    file = ROOT / "results" / "triton.json"
    return triton_table(read_json(file)) if file.is_file() else ""


def accuracy_tables() -> str:
    """What `accuracy.py` collected; empty before it has."""
    file = ROOT / "results" / "accuracy.json"
    return accuracy_table(read_json(file)) if file.is_file() else ""


def paper_structure_tables() -> str:
    """What `paper_structures.py` and `gpu.py` measured; empty before either has run."""
    made = {"paper_structures": paper_tables, "gpu": gpu_tables}
    files = {name: ROOT / "results" / f"{name}.json" for name in made}
    parts = [made[name](read_json(file)) for name, file in files.items() if file.is_file()]
    return "\n\n".join(parts)


def artifact_tables() -> str:
    """What `export.py` measured; empty before it has run."""
    file = ROOT / "results" / "export.json"
    return export_tables(read_json(file)) if file.is_file() else ""


def recipe_tables() -> dict[str, str]:
    """What `ablations.py` and `family.py` collected; empty before they have."""
    made = {"ablations": ablations_table, "family": family_table}
    files = {name: ROOT / "results" / f"{name}.json" for name in made}
    return {
        name: made[name](read_json(file)) if file.is_file() else "" for name, file in files.items()
    }


def rendered(text: str) -> str:
    """A document with the tables between its markers replaced."""
    made = {
        **recipe_tables(),
        "accuracy": accuracy_tables(),
        "results": pruning_tables(),
        "triton": triton_tables(),
        "paper": paper_structure_tables(),
        "export": artifact_tables(),
    }
    for name, tables in made.items():
        text = _between(text, name, tables)
    return text


def _between(text: str, name: str, tables: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in text:
        return text
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    return f"{head}{begin}\n{tables}\n{end}{tail}" if tables else f"{head}{begin}\n{end}{tail}"


def main() -> None:
    """Rewrite, or compare with `--check`."""
    made = {document: rendered(document.read_text(encoding="utf-8")) for document in DOCUMENTS}
    for file, after in {**made, **pictures()}.items():
        before = file.read_text(encoding="utf-8") if file.is_file() else None
        if sys.argv[1:] == ["--check"]:
            if before != after:
                raise SystemExit(f"{file.name} is not what the result files say")
        elif before != after:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
