"""What all exports share: opening the source, and the files that describe an artifact.

`onnx.py`, `openvino.py`, `tensorrt.py` and `triton.py` open their source here, write their own
files and end with `write_manifest`; `cofi_deploy.exports` reads it back.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import checksums, read_json, sha256_file, write_json
from cofi_deploy.exports import (
    EXPORTER_VERSION,
    MANIFEST,
    ExportFormat,
    ExportManifest,
    ExportParity,
    SessionChoice,
)
from cofi_deploy.families import config_from_arch
from cofi_deploy.kinds import TaskKind
from cofi_deploy.loading import label_names, load, load_tokenizer, resolve, save_tokenizer
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.results import git_commit, versions

# Kinds whose outputs have names of their own; ids like LABEL_0 would say nothing.
_UNLABELLED: frozenset[TaskKind] = frozenset({"text-regression", "question-answering"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an export starts from, apart from the weights themselves."""

    path: str
    sha256: str  # of the weights
    arch: Arch
    kind: TaskKind
    labels: tuple[str, ...]  # names of the classes; empty for regression and question answering
    tokenizer: PreTrainedTokenizerBase
    exporter_version: int = EXPORTER_VERSION  # an older one's, of an export that is the source


def open_source(model_dir: Path | str) -> tuple[Source, CofiPreTrainedModel]:
    """Load model and tokenizer, compact or dense.

    Raises:
        ArtifactError: Corrupt, unsafe or incomplete; the file is named.
        ConfigError: No fast tokenizer.
    """
    directory = resolve(model_dir)
    model = load(directory)
    source = Source(
        path=str(model_dir),
        sha256=weights_sha256(directory),
        arch=model.arch,
        kind=model.kind,
        labels=_labels(model),
        tokenizer=load_tokenizer(directory),
    )
    return source, model


def source_of_export(manifest: ExportManifest) -> Source:
    """The source of an artifact that was exported before, with the tokenizer found beside it."""
    return Source(
        path=manifest.source_path,
        sha256=manifest.source_sha256,
        arch=manifest.arch,
        kind=manifest.kind,
        labels=manifest.labels,
        tokenizer=load_tokenizer(manifest.directory),
        exporter_version=manifest.exporter_version,
    )


def weights_sha256(directory: Path) -> str:
    """SHA-256 of the one weights file; of the list of checksums where weights are sharded."""
    digests = [sha256_file(path) for path in sorted(directory.glob("*.safetensors"))]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def metadata(source: Source) -> dict[str, str]:
    """What a model file says about itself, wherever it is copied to."""
    return {
        "version": versions().get("cofi-deploy") or f"source tree {git_commit()}",
        "arch": json.dumps(source.arch.to_json()),
        "task_kind": source.kind,
        "labels": json.dumps(list(source.labels), ensure_ascii=False),
        "source_sha256": source.sha256,
    }


def write_config_and_tokenizer(source: Source, directory: Path) -> None:
    """Write config.json, readable without cofi_deploy, and the tokenizer's files.

    The sizes in it are those of the dense model; the key ``cofi_arch`` holds the real ones.
    """
    config = config_from_arch(source.arch, source.kind, labels=source.labels)
    if source.kind == "text-classification":
        config["problem_type"] = "single_label_classification"
    config["cofi_arch"] = source.arch.to_json()
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    save_tokenizer(source.tokenizer, directory)


def write_manifest(  # noqa: PLR0913 - the entries of the file
    directory: Path,
    source: Source,
    *,
    export_format: ExportFormat,
    precision: str,
    parity: ExportParity | None,
    options: Mapping[str, Any],
    size_by_part: Mapping[str, int] | None = None,
) -> None:
    """Write `export.json` over the finished directory; the last step of every export."""
    write_json(
        directory / MANIFEST,
        {
            "format": export_format,
            "exporter_version": source.exporter_version,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source": {"path": source.path, "weights_sha256": source.sha256},
            "arch": source.arch.to_json(),
            "kind": source.kind,
            "labels": list(source.labels),
            "precision": precision,
            "parity": None if parity is None else asdict(parity),
            "options": dict(options),
            "size_by_part": dict(size_by_part or {}),
            "versions": versions(),
            "files": checksums(directory, exclude=frozenset({MANIFEST})),
        },
    )


def write_tuning(
    directory: Path,
    session: SessionChoice,
    tuning: Mapping[str, Any],
    parity: ExportParity | None = None,
) -> None:
    """Add to an `export.json` how its artifact is opened, and why: what was tried.

    Args:
        directory: A finished export.
        session: What its runtime obeys.
        tuning: The operating point as ``for``, and what is for the reader alone.
        parity: Of this session, where it may answer otherwise than the one of the export.
    """
    document = read_json(directory / MANIFEST)
    keys: dict[str, Any] = {"session": asdict(session), "tuning": dict(tuning)}
    if parity is not None:
        keys["parity"] = asdict(parity)
    write_json(directory / MANIFEST, {**document, **keys})


def _labels(model: CofiPreTrainedModel) -> tuple[str, ...]:
    return () if model.kind in _UNLABELLED else label_names(model)
