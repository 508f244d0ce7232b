"""Model or ONNX export -> Triton model repository that answers tensors and text.

```
<name>/config.pbtxt            for the chosen backend
<name>/configs/<other>.pbtxt   the same versions run by another: --model-config-name=<other>
<name>/<version>/              model.onnx, model.py, what the backend needs, export.json
<name>_tokenizer/ <name>_answer/ <name>_text/     text in, answer out: `triton_text.py`
```

`triton_backends.py` puts the files of a version in place, `triton_config.py` says how they are run.
The repository is checked (`cofi_deploy.triton_repository`) before it appears under its final name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import ConfigError, RepositoryError, did_you_mean
from cofi_deploy.export.manifest import Source, write_manifest
from cofi_deploy.export.parity import warmup_inputs
from cofi_deploy.export.triton_backends import Artifact, place_version
from cofi_deploy.export.triton_config import (
    LABELS_FILE,
    WARMUP_FOLDER,
    Device,
    ServedModel,
    TritonOptions,
    model_config,
    warmup_file,
)
from cofi_deploy.export.triton_text import write_text_models
from cofi_deploy.exports import MANIFEST, read_manifest
from cofi_deploy.triton_repository import (
    BACKENDS,
    CONFIG_FILE,
    CONFIGS_FOLDER,
    check_repository,
    import_model_config,
)

logger = logging.getLogger(__name__)

# What runs the same version folders where the chosen backend is not to be had.
FALLBACKS = ("onnxruntime", "python")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def export_triton(
    model: Path | str,
    output: Path,
    *,
    name: str,
    options: TritonOptions | None = None,
    plans: tuple[Path, ...] = (),
) -> Path:
    """Write a model repository with one model and what answers text with it.

    Args:
        model: An ONNX export, which is served as it is, or a model directory, which is exported
            first.
        output: The repository; replaced as a whole, and only if it holds nothing but an earlier
            export of ``name``.
        name: Name of the model on the server, and of its folder.
        options: How the server runs it.
        plans: Engine directories of ``model``, for backend tensorrt: one for each kind of GPU.

    Returns:
        ``output``.

    Raises:
        ConfigError: A name, backend or option that is not allowed; all problems at once.
        MissingDependencyError: tritonclient is not installed.
        RepositoryError: ``output`` holds anything else that would be lost.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    options = options or TritonOptions()
    _check_options(name, options, plans)
    import_model_config()  # refuse a missing package before the work starts
    _check_output(output, name)
    with atomic_directory(output) as repository:
        artifact = write_models(repository, model, name=name, options=options, plans=plans)
        _write_manifest(repository, artifact, name)
    logger.info("wrote %s; serve it with: cofi-deploy serve %s", output, output)
    return output


def write_models(
    directory: Path,
    model: Path | str,
    *,
    name: str,
    options: TritonOptions,
    plans: tuple[Path, ...] = (),
    version: int = 1,
) -> Artifact:
    """Write every model folder of the layout into an empty directory, and check them.

    Args:
        directory: Not yet seen by any server.
        model: As in `export_triton`.
        name: As in `export_triton`.
        options: As in `export_triton`.
        plans: As in `export_triton`.
        version: Number of the encoder's version folder; those of the text models are always 1.

    Returns:
        What was written, and from what.

    Raises:
        CofiDeployError: As `export_triton`.
    """
    _check_options(name, options, plans)
    folder = directory / name
    target = folder / str(version)
    target.mkdir(parents=True)
    artifact = place_version(model, target, options=options, plans=plans)
    _write_manifest(target, artifact, name)
    _write_configs(folder, name, artifact)
    _write_labels(folder, artifact.source)
    _write_warmup(folder, artifact)
    write_text_models(directory, name=name, source=artifact.source, options=artifact.options)
    check_repository(directory, server=options.server)
    return artifact


def _check_options(name: str, options: TritonOptions, plans: tuple[Path, ...]) -> None:
    problems = options.problems()
    if not _NAME.fullmatch(name):
        problems.append(
            f"name is {name!r}, allowed: letters, digits, '_', '-' and '.', not first '_', '-', '.'"
        )
    if options.backend not in BACKENDS:
        problems.append(
            f"backend is {options.backend!r}, {did_you_mean(options.backend, BACKENDS)}"
        )
    if options.backend == "tensorrt" and not plans:
        problems.append(
            "backend 'tensorrt' serves engines, but no plan is given; build one on the GPU that "
            "will serve: cofi-deploy export --format trt --flavour tensorrt"
        )
    if options.backend != "tensorrt" and plans:
        problems.append(f"plans are for backend 'tensorrt' only, backend is {options.backend!r}")
    if problems:
        raise ConfigError("; ".join(problems))


def _check_output(output: Path, name: str) -> None:
    """Only an earlier export of the same model may be replaced; anything else would be lost."""
    if not output.exists():
        return
    known = {MANIFEST}
    if (output / MANIFEST).is_file():
        earlier = read_manifest(output)
        if earlier.options.get("name") == name:
            known |= {file.split("/", 1)[0] for file in earlier.files}
    others = sorted(path.name for path in output.iterdir() if path.name not in known)
    if others:
        raise RepositoryError(
            f"{str(output)!r} holds {others[0]!r}, which is not from an earlier export of "
            f"{name!r} and would be lost; choose another --output, then move the model folder"
        )


def _write_manifest(directory: Path, artifact: Artifact, name: str) -> None:
    options: Mapping[str, Any] = {
        "name": name,
        **asdict(artifact.options),
        "plans": [asdict(plan) for plan in artifact.plans],
    }
    write_manifest(
        directory,
        artifact.source,
        export_format="triton",
        precision=artifact.precision,
        parity=artifact.parity,
        options=options,
    )


def _write_configs(folder: Path, name: str, artifact: Artifact) -> None:
    """`config.pbtxt` for the chosen backend, and one for each fallback."""
    source, options = artifact.source, artifact.options
    served = ServedModel(
        name=name,
        kind=source.kind,
        labels=len(source.labels),
        plans=artifact.plans,
        session=artifact.session,
    )
    _write_config(folder / CONFIG_FILE, served, options)
    (folder / CONFIGS_FOLDER).mkdir()
    for backend in FALLBACKS:
        if backend != options.backend or backend == "python":
            path = folder / CONFIGS_FOLDER / f"{backend}.pbtxt"
            # A server that has to fall back may have no GPU either.
            device: Device = "auto" if options.runs_on == "gpu" else options.runs_on
            _write_config(path, served, replace(options, backend=backend, device=device))


def _write_config(path: Path, served: ServedModel, options: TritonOptions) -> None:
    text = text_format.MessageToString(model_config(served, options))
    path.write_text(text, encoding="utf-8")


def _write_labels(folder: Path, source: Source) -> None:
    """One label in each line, the form that Triton's classification extension reads."""
    if source.kind != "text-classification":
        return
    broken = [label for label in source.labels if len(label.splitlines()) != 1]
    if broken:
        raise ConfigError(f"label {broken[0]!r} is not one line of text, which Triton needs")
    (folder / LABELS_FILE).write_text("\n".join(source.labels) + "\n", encoding="utf-8")


def _write_warmup(folder: Path, artifact: Artifact) -> None:
    source = artifact.source
    (folder / WARMUP_FOLDER).mkdir()
    for length in artifact.options.warmup_lengths:
        for name, array in warmup_inputs(source.tokenizer, source.arch, length).items():
            (folder / WARMUP_FOLDER / warmup_file(name, length)).write_bytes(array.tobytes())
