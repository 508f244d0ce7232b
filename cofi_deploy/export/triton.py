"""Model or ONNX export -> Triton model repository: `<output>/<name>/{config.pbtxt,1/model.onnx}`.

Each backend is one entry of `_BACKENDS`: which artifact it serves and under which file name. The
repository is checked (`cofi_deploy.triton_repository`) before it appears under its final name.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from google.protobuf import text_format

from cofi_deploy.artifacts import atomic_directory
from cofi_deploy.errors import ConfigError, RepositoryError, did_you_mean
from cofi_deploy.export.manifest import (
    Source,
    open_source,
    source_of_export,
    write_manifest,
)
from cofi_deploy.export.onnx import MODEL_FILE, write_onnx
from cofi_deploy.export.parity import warmup_inputs
from cofi_deploy.export.triton_config import (
    LABELS_FILE,
    WARMUP_FOLDER,
    ServedModel,
    TritonOptions,
    model_config,
    warmup_file,
)
from cofi_deploy.exports import MANIFEST, ExportParity, check_export, read_manifest
from cofi_deploy.triton_repository import CONFIG_FILE, check_repository, import_model_config

logger = logging.getLogger(__name__)

VERSION = "1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a version folder holds, and what it came from."""

    source: Source
    file: str  # in the version folder
    precision: str
    parity: ExportParity | None


# Puts the served file of a backend into a version folder.
_Place = Callable[[Path | str, Path], Artifact]


def export_triton(
    model: Path | str,
    output: Path,
    *,
    name: str,
    options: TritonOptions | None = None,
) -> Path:
    """Write a model repository with one model.

    Args:
        model: An ONNX export, which is served as it is, or a model directory, which is exported
            first.
        output: The repository; replaced as a whole, and only if it holds nothing but an earlier
            export of ``name``.
        name: Name of the model on the server, and of its folder.
        options: How the server runs it.

    Returns:
        ``output``.

    Raises:
        ConfigError: A name, backend or option that is not allowed; all problems at once.
        MissingDependencyError: tritonclient is not installed.
        RepositoryError: ``output`` holds anything else that would be lost.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    options = options or TritonOptions()
    _check_options(name, options)
    import_model_config()  # refuse a missing package before the work starts
    _check_output(output, name)
    with atomic_directory(output) as repository:
        folder = repository / name
        version = folder / VERSION
        version.mkdir(parents=True)
        artifact = _BACKENDS[options.backend](model, version)
        options = _fit(options, artifact.source)
        _write_config(folder, name, artifact, options)
        check_repository(repository)
        write_manifest(
            repository,
            artifact.source,
            export_format="triton",
            precision=artifact.precision,
            parity=artifact.parity,
            options={"name": name, **asdict(options)},
        )
    logger.info("wrote %s; serve it with: cofi-deploy serve %s", output, output)
    return output


def _place_onnx(model: Path | str, version: Path) -> Artifact:
    """Copy the file of an ONNX export, or write one from a model directory."""
    file = version / MODEL_FILE
    if not (Path(model) / MANIFEST).is_file():
        source, loaded = open_source(model)
        parity = write_onnx(source, loaded, file)
        return Artifact(source=source, file=MODEL_FILE, precision="fp32", parity=parity)
    manifest = check_export(Path(model))
    if manifest.format != "onnx" or MODEL_FILE not in manifest.files:
        raise ConfigError(
            f"{str(model)!r} is an export of format {manifest.format!r}, but backend 'onnxruntime' "
            f"serves format 'onnx'; run: cofi-deploy export {manifest.source_path} --format onnx"
        )
    shutil.copyfile(manifest.directory / MODEL_FILE, file)
    return Artifact(
        source=source_of_export(manifest),
        file=MODEL_FILE,
        precision=manifest.precision,
        parity=manifest.parity,
    )


_BACKENDS: dict[str, _Place] = {"onnxruntime": _place_onnx}


def _check_options(name: str, options: TritonOptions) -> None:
    problems = options.problems()
    if not _NAME.fullmatch(name):
        problems.append(
            f"name is {name!r}, allowed: letters, digits, '_', '-' and '.', not first '_', '-', '.'"
        )
    if options.backend not in _BACKENDS:
        problems.append(
            f"backend is {options.backend!r}, {did_you_mean(options.backend, _BACKENDS)}"
        )
    if problems:
        raise ConfigError("; ".join(problems))


def _check_output(output: Path, name: str) -> None:
    """Only an earlier export of the same model may be replaced; anything else would be lost."""
    if not output.exists():
        return
    ours = read_manifest(output).files if (output / MANIFEST).is_file() else {}
    known = {MANIFEST} | {name for file in ours if file.split("/", 1)[0] == name}
    others = sorted(path.name for path in output.iterdir() if path.name not in known)
    if others:
        raise RepositoryError(
            f"{str(output)!r} holds {others[0]!r}, which is not from an earlier export of "
            f"{name!r} and would be lost; choose another --output, then move the model folder"
        )


def _fit(options: TritonOptions, source: Source) -> TritonOptions:
    """Warm-up lengths that the model can take, each once."""
    lengths = {min(length, source.arch.max_positions) for length in options.warmup_lengths}
    return replace(options, warmup_lengths=tuple(sorted(lengths)))


def _write_config(folder: Path, name: str, artifact: Artifact, options: TritonOptions) -> None:
    source = artifact.source
    served = ServedModel(
        name=name,
        file=artifact.file,
        kind=source.kind,
        labels=source.labels,
        arch=source.arch,
        source_sha256=source.sha256,
    )
    config = model_config(served, options)
    (folder / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")
    _write_labels(folder, source)
    for length in options.warmup_lengths:
        inputs = warmup_inputs(source.tokenizer, source.arch, length)
        for input_name, array in inputs.items():
            file = folder / WARMUP_FOLDER / warmup_file(input_name, length)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(array.tobytes())


def _write_labels(folder: Path, source: Source) -> None:
    """One label in each line, the form that Triton's classification extension reads."""
    if source.kind != "text-classification":
        return
    broken = [label for label in source.labels if len(label.splitlines()) != 1]
    if broken:
        raise ConfigError(f"label {broken[0]!r} is not one line of text, which Triton needs")
    (folder / LABELS_FILE).write_text("\n".join(source.labels) + "\n", encoding="utf-8")
