"""`inspect`: what a model keeps, layer by layer, and where its parameters and operations are.

In: a model directory, compact or an ordinary dense checkpoint; tensors are counted from the
headers of its safetensors files, no weight is loaded. Out: a JSON-able description (`describe`)
and its terminal form (`render`). Two models are in `inspect_pair.py`, the picture in
`structure_svg.py`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from cofi_deploy.arch import Arch, LayerArch, layer_parameters
from cofi_deploy.artifacts import SCHEMA_VERSION, check_model_directory, read_json
from cofi_deploy.errors import ArtifactError, CheckpointError
from cofi_deploy.families import arch_from_config, kind_from_config

Part = Literal["embeddings", "attention", "ffn", "layernorm", "pooler", "head"]
PARTS: tuple[Part, ...] = ("embeddings", "attention", "ffn", "layernorm", "pooler", "head")

# The operating point at which operations are counted.
BATCH_SIZE, SEQ_LEN = 1, 128

# First match wins; names of ours and of every family's checkpoints. What matches none is the head.
_PART_PATTERNS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    ("layernorm", re.compile(r"(^|\.)(\w*norm|LayerNorm)\.(weight|bias|gamma|beta)$")),
    ("embeddings", re.compile(r"(^|\.)embeddings(_project)?\.")),
    ("pooler", re.compile(r"(^|\.)(pooler|pre_classifier|classifier\.dense)\.")),
    ("attention", re.compile(r"\.layers?\.\d+\.attention\.")),
    ("ffn", re.compile(r"\.layers?\.\d+\.(ffn|intermediate|output)\.")),
)
_LAYER = re.compile(r"\.layers?\.(\d+)\.")
# Index buffers that old checkpoints store; they are no parameters.
_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")


def describe(model_dir: Path) -> dict[str, Any]:
    """Structure, parameters, operations and size of a model directory.

    Returns:
        A JSON-able object. ``layers`` has one entry per layer with the kept and the dense number
        of heads and FFN units, parameters (LayerNorms apart) and floating-point operations;
        ``parameters_by_part`` covers every stored parameter; operations are those of the layers
        at ``batch_size`` x ``seq_len``, two per multiply-add.

    Raises:
        ArtifactError: The directory or a file in it is missing, unsafe, corrupt or truncated.
        CheckpointError: The weights have other sizes than config.json says.
        ConfigError: A family that is not supported.
    """
    config = read_json(model_dir / "config.json")
    check_model_directory(model_dir)
    arch = _arch(model_dir, config)
    files = sorted(model_dir.glob("*.safetensors"))
    tensors: dict[str, tuple[int, str]] = {}
    for path in files:
        tensors.update(_read_header(path))
    _check_weights(model_dir, arch, tensors)
    by_part = _count_parts(tensors)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": str(model_dir),
        "family": arch.family,
        "kind": config.get("task_kind") or kind_from_config(config),
        "hidden": arch.hidden,
        "hidden_dense": arch.dense.hidden,
        "head_size": arch.head_size,
        "layers": [_describe_layer(arch, index) for index in range(len(arch.layers))],
        "parameters": sum(by_part.values()),
        "parameters_by_part": by_part,
        "prunable_parameters": arch.prunable_parameters,
        "prunable_parameters_dense": arch.dense.prunable_parameters,
        "realized_sparsity": arch.sparsity,
        "batch_size": BATCH_SIZE,
        "seq_len": SEQ_LEN,
        "flops": arch.flops(BATCH_SIZE, SEQ_LEN),
        "flops_dense": _dense(arch).flops(BATCH_SIZE, SEQ_LEN),
        "size_bytes": sum(path.stat().st_size for path in files),
        "dtypes": sorted({dtype for _, dtype in tensors.values()}),
        "arch": arch.to_json(),
    }


def document_of(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several descriptions as one JSON-able object."""
    return {"schema_version": SCHEMA_VERSION, "models": list(descriptions)}


def archs_of(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, Arch]:
    """What to draw, by the label of each model: none where there is only one."""
    labels = [""] if len(descriptions) == 1 else [f"{mark}: {_short(description['model'])}"
        for mark, description in zip("AB", descriptions, strict=True)]  # fmt: skip
    archs = (Arch.from_json(description["arch"]) for description in descriptions)
    return dict(zip(labels, archs, strict=True))


def _short(model: str) -> str:
    """The end of a path: what tells models of one run, and runs of one folder, apart."""
    return "/".join(Path(model).parts[-2:])


def render(description: Mapping[str, Any]) -> RenderableType:
    """The description for a terminal: a summary, a table of layers and one of parts."""
    return Group(_summary(description), _layer_table(description), _part_table(description))


def _arch(model_dir: Path, config: Mapping[str, Any]) -> Arch:
    """`Arch` of a compact model from its configuration, of an ordinary one from its sizes."""
    if config.get("model_type") != "cofi":
        return arch_from_config(config)
    if not isinstance(config.get("arch"), dict):
        raise CheckpointError(
            f"{str(model_dir / 'config.json')!r} has no entry 'arch'; train or copy the model again"
        )
    return Arch.from_json(config["arch"])


def _read_header(path: Path) -> dict[str, tuple[int, str]]:
    """Number of elements and dtype of every parameter in a file, by name."""
    try:
        with safe_open(path, framework="numpy") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
            return {
                name: (math.prod(tensor.get_shape()), tensor.get_dtype())
                for name, tensor in slices.items()
                if not _BUFFERS.search(name)
            }
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{str(path)!r} is no whole safetensors file: {error}; fetch or train it again"
        ) from error


def _check_weights(model_dir: Path, arch: Arch, tensors: Mapping[str, tuple[int, str]]) -> None:
    """Compare the sublayers' stored parameters with what the Arch of config.json says."""
    stored: Counter[int] = Counter()
    for name, (count, _) in tensors.items():
        layer = _LAYER.search(name)
        if layer and _part_of(name) in {"attention", "ffn"}:
            stored[int(layer.group(1))] += count
    for index in range(max([len(arch.layers), *(layer + 1 for layer in stored)])):
        kept = arch.layers[index] if index < len(arch.layers) else LayerArch(heads=0, ffn=0)
        expected = layer_parameters(kept, arch.hidden, arch.head_size)
        if stored[index] != expected:
            raise CheckpointError(
                f"layer {index} of {str(model_dir)!r} stores {stored[index]:,} parameters, but "
                f"config.json describes {expected:,}; the two files do not belong together"
            )


def _count_parts(tensors: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, (count, _) in tensors.items():
        counts[_part_of(name)] += count
    return counts


def _part_of(name: str) -> Part:
    for part, pattern in _PART_PATTERNS:
        if pattern.search(name):
            return part
    return "head"


def _describe_layer(arch: Arch, index: int) -> dict[str, int]:
    kept = arch.layers[index]
    attention = layer_parameters(LayerArch(heads=kept.heads, ffn=0), arch.hidden, arch.head_size)
    ffn = layer_parameters(LayerArch(heads=0, ffn=kept.ffn), arch.hidden, arch.head_size)
    alone = replace(arch, layers=(kept,), dense=replace(arch.dense, layers=1))
    return {
        "layer": index,
        "heads": kept.heads,
        "heads_dense": arch.dense.heads,
        "ffn": kept.ffn,
        "ffn_dense": arch.dense.ffn,
        "attention_parameters": attention,
        "ffn_parameters": ffn,
        "flops": alone.flops(BATCH_SIZE, SEQ_LEN),
    }


def _dense(arch: Arch) -> Arch:
    full = LayerArch(heads=arch.dense.heads, ffn=arch.dense.ffn)
    return replace(arch, hidden=arch.dense.hidden, layers=(full,) * arch.dense.layers)


def _summary(description: Mapping[str, Any]) -> Text:
    share = description["flops"] / description["flops_dense"]
    lines = [
        f"{description['model']}: {description['family']}, {description['kind'] or 'no task head'}",
        f"hidden {description['hidden']} of {description['hidden_dense']}, "
        f"{len(description['layers'])} layers, heads of {description['head_size']}",
        f"prunable parameters {description['prunable_parameters']:,} of "
        f"{description['prunable_parameters_dense']:,}: "
        f"sparsity {description['realized_sparsity']:.4f}",
        f"{description['flops'] / 1e9:.3g} GFLOP at "
        f"{description['batch_size']}x{description['seq_len']}, {share:.1%} of dense",
        f"{description['size_bytes'] / 2**20:.1f} MiB of weights "
        f"({', '.join(description['dtypes'])})",
    ]
    return Text("\n".join(lines))


def _layer_table(description: Mapping[str, Any]) -> Table:
    table = Table(title="Layers", title_justify="left")
    for column in ("layer", "heads", "attention parameters", "FFN width", "FFN parameters"):
        table.add_column(column, justify="right")
    table.add_column(
        f"MFLOP at {description['batch_size']}x{description['seq_len']}", justify="right"
    )
    for layer in description["layers"]:
        table.add_row(
            str(layer["layer"]),
            _kept(layer["heads"], layer["heads_dense"]),
            f"{layer['attention_parameters']:,}",
            _kept(layer["ffn"], layer["ffn_dense"]),
            f"{layer['ffn_parameters']:,}",
            f"{layer['flops'] / 1e6:,.1f}",
        )
    return table


def _kept(kept: int, dense: int) -> str:
    return f"{kept} of {dense}" if kept else "gone"


def _part_table(description: Mapping[str, Any]) -> Table:
    table = Table(title="Parameters by part", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    total = description["parameters"]
    for part, count in description["parameters_by_part"].items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    table.add_section()
    table.add_row("total", f"{total:,}", "")
    return table
