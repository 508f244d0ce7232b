"""`inspect` on an export directory: what its bytes are, part by part or file by file.

In: a directory that `export` wrote. Out: a JSON-able description and its terminal form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cofi_deploy.artifacts import SCHEMA_VERSION, read_json
from cofi_deploy.errors import UsageError
from cofi_deploy.exports import MANIFEST, check_export

_LAYERS_FILE = "layers.json"  # of an engine


def is_export(path: Path | None) -> bool:
    """Whether `export` wrote this directory, by its manifest."""
    return path is not None and (path / MANIFEST).is_file()


def check_alone(*paths: Path | None) -> None:
    """Two models are compared by their weights, which an export no longer has in one form.

    Raises:
        UsageError: One of several is an export directory.
    """
    for path in paths:
        if len(paths) > 1 and is_export(path):
            raise UsageError(
                f"{str(path)!r} is an export, which is inspected alone; two models are compared by "
                "their model directories"
            )


def describe_export(directory: Path) -> dict[str, Any]:
    """Structure and size of an export directory.

    Returns:
        A JSON-able object; ``size_by_part`` is empty for formats whose parts cannot be told
        apart, ``size_by_file`` has the bytes of every file of the artifact, ``layers`` counts those
        of an engine by part.

    Raises:
        ArtifactError: The manifest is not ours, or a file is missing or was changed.
    """
    manifest = check_export(directory)
    by_file = {name: (directory / name).stat().st_size for name in sorted(manifest.files)}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": str(directory),
        "format": manifest.format,
        "precision": manifest.precision,
        "kind": manifest.kind,
        "source": manifest.source_path,
        "realized_sparsity": manifest.arch.sparsity,
        "size_bytes": sum(by_file.values()),
        "size_by_part": dict(manifest.size_by_part),
        "size_by_file": by_file,
        **({"layers": _layers(directory)} if _LAYERS_FILE in by_file else {}),
        "arch": manifest.arch.to_json(),
    }


def render_export(description: Mapping[str, Any]) -> RenderableType:
    """The description for a terminal."""
    title = Text(
        f"{description['model']}: {description['format']} at {description['precision']}, "
        f"{description['kind']}, from {description['source']}\n"
        f"sparsity {description['realized_sparsity']:.4f}, "
        f"{description['size_bytes'] / 2**20:.2f} MiB"
    )
    parts, files = description["size_by_part"], description["size_by_file"]
    tables = [_table("Size by part", parts)] if parts else []
    tables.append(_table("Size by file", files))
    if "layers" in description:
        tables.append(_layers_table(description["layers"]))
    return Group(title, *tables)


def _layers(directory: Path) -> dict[str, Any]:
    """How many layers an engine has in every part of the model, and of what they are layers."""
    report = read_json(directory / _LAYERS_FILE)
    counts = Counter(_part_name(layer) for layer in report["layers"])
    return {"of": report["of"], "meaning": report["meaning"], "by_part": dict(counts)}


def _part_name(layer: Mapping[str, Any]) -> str:
    if layer["part"] is None:
        return "shared"
    return layer["part"] if layer["layer"] is None else f"layer {layer['layer']} {layer['part']}"


def _layers_table(layers: Mapping[str, Any]) -> Table:
    table = Table(title=layers["meaning"].capitalize(), title_justify="left")
    table.add_column("")
    table.add_column("layers", justify="right")
    for name, count in layers["by_part"].items():
        table.add_row(name, str(count))
    return table


def _table(title: str, sizes: Mapping[str, int]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    total = sum(sizes.values()) or 1
    for name, size in sizes.items():
        table.add_row(Text(name), f"{size:,}", f"{size / total:.1%}")
    return table
