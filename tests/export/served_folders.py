"""The folders of one served model, made by hand: nothing of it needs a framework or a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.artifacts import checksums, write_json

ARCH = Arch(
    family="bert",
    vocab_size=60,
    max_positions=64,
    type_vocab_size=2,
    hidden=24,
    head_size=8,
    layers=(LayerArch(heads=3, ffn=20),),
    dense=DenseShape(layers=1, hidden=24, heads=3, ffn=20, head_size=8),
    pooler=24,
)

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
instance_group [ {{ kind: KIND_CPU count: {instances} }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}
"""


def model_folders(
    name: str = "tiny",
    weights: str = "first",
    *,
    kind: str = "text-classification",
    labels: tuple[str, ...] = ("no", "yes"),
    max_batch_size: int = 8,
    instances: int = 1,
    threads: int = 1,
    tokenizer: str = "words",
    settings: dict[str, Any] | None = None,
    code: str = "code",
    files: dict[str, str] | None = None,
) -> Callable[[Path], None]:
    """What writes the folders into an empty directory; ``files`` come on top."""

    def write(directory: Path) -> None:
        sizes = {"max_batch_size": max_batch_size, "instances": instances, "threads": threads}
        content = {
            f"{name}/config.pbtxt": CONFIG.format(name=name, **sizes),
            f"{name}/labels.txt": "\n".join(labels),
            f"{name}/warmup/input_ids_16": f"ids for {weights}",
            f"{name}/1/model.onnx": weights,
            f"{name}/1/model.py": code,
            f"{name}_tokenizer/config.pbtxt": CONFIG.format(name=f"{name}_tokenizer", **sizes),
            f"{name}_tokenizer/1/tokenizer.json": tokenizer,
            f"{name}_tokenizer/1/settings.json": json.dumps(settings or {"max_length": 64}),
            f"{name}_tokenizer/1/model.py": code,
            f"{name}_text/config.pbtxt": f'name: "{name}_text" platform: "ensemble"',
            **(files or {}),
        }
        for path, text in content.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (directory / f"{name}_text" / "1").mkdir()
        _write_manifest(directory / name / "1", kind, labels)

    return write


def _write_manifest(version: Path, kind: str, labels: tuple[str, ...]) -> None:
    write_json(
        version / "export.json",
        {
            "format": "triton",
            "created": "2026-11-24T00:00:00+00:00",
            "source": {"path": "runs/tiny", "weights_sha256": "0" * 64},
            "arch": ARCH.to_json(),
            "kind": kind,
            "labels": list(labels),
            "precision": "fp32",
            "parity": None,
            "options": {"threads": 1},
            "versions": {},
            "files": checksums(version),
        },
    )
