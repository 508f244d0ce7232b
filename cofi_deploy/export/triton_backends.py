"""What a version folder holds for each backend.

Comes in: a model directory or an ONNX export, and for TensorRT engine directories. Goes out: the
files in a version folder, and an `Artifact` that says what they are. Every version holds
`model.onnx` and our `model.py`, so that any server can run it. Next file: `triton_config.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from cofi_deploy.engines import PLAN_FILE, EngineRecord, read_engine_record
from cofi_deploy.errors import ConfigError
from cofi_deploy.export.manifest import Source, source_of_export
from cofi_deploy.export.onnx import MODEL_FILE as ONNX_FILE
from cofi_deploy.export.onnx import open_for_export, write_onnx
from cofi_deploy.export.openvino import MODEL_FILE as OPENVINO_FILE
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.triton_config import FILES, Plan, TritonOptions
from cofi_deploy.exports import (
    MANIFEST,
    ExportManifest,
    ExportParity,
    SessionChoice,
    check_export,
    rebuild_command,
)
from cofi_deploy.triton_repository import CODE_FILE, served_code


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A version folder, and what it came from."""

    source: Source
    precision: str
    parity: ExportParity | None
    options: TritonOptions  # fitted to what the model can take
    plans: tuple[Plan, ...] = ()
    session: SessionChoice | None = None  # of an ONNX export that was tuned for the CPU


def place_version(
    model: Path | str, version: Path, *, options: TritonOptions, plans: tuple[Path, ...]
) -> Artifact:
    """Fill an empty version folder.

    Raises:
        ConfigError: An export of another format, or engines that cannot be served.
        MissingDependencyError: OpenVINO is asked for and not installed.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    artifact = _place_onnx(model, version, options)
    shutil.copyfile(served_code("encoder"), version / CODE_FILE)
    if options.backend == "openvino":
        artifact = _place_openvino(model, version, artifact)
    if options.backend == "tensorrt":
        artifact = _place_plans(plans, version, artifact)
    return replace(artifact, options=_fit(artifact))


def _place_onnx(model: Path | str, version: Path, options: TritonOptions) -> Artifact:
    """Copy the file of an ONNX export, or write one from a model directory."""
    file = version / ONNX_FILE
    if not (Path(model) / MANIFEST).is_file():
        opened = open_for_export(model, None, shrink_embeddings=False)
        parity = write_onnx(opened, file)
        return Artifact(source=opened.source, precision="fp32", parity=parity, options=options)
    manifest = check_export(Path(model))
    if manifest.format != "onnx" or ONNX_FILE not in manifest.files:
        raise ConfigError(
            f"{str(model)!r} is an export of format {manifest.format!r}, but a model repository is "
            f"made from format 'onnx'; run: cofi-deploy export {manifest.source_path} --format onnx"
        )
    if "batch_size" in manifest.options:
        raise ConfigError(
            f"{str(model)!r} computes one text at a time, but a server forms batches; run: "
            f"cofi-deploy export {manifest.source_path} --format onnx"
        )
    shutil.copyfile(manifest.directory / ONNX_FILE, file)
    return Artifact(
        source=source_of_export(manifest),
        precision=manifest.precision,
        parity=manifest.parity,
        options=options,
        session=manifest.session,
    )


def _place_openvino(model: Path | str, version: Path, artifact: Artifact) -> Artifact:
    """Export to OpenVINO's IR, checks included, and take its two files."""
    if (Path(model) / MANIFEST).is_file():
        raise ConfigError(
            f"{str(model)!r} is an ONNX export, but backend 'openvino' starts from a model "
            f"directory; give {artifact.source.path!r}"
        )
    with tempfile.TemporaryDirectory(prefix="cofi-deploy-") as scratch:
        directory = export_openvino(model, Path(scratch) / "openvino")
        for suffix in (".xml", ".bin"):
            file = version / Path(FILES["openvino"]).with_suffix(suffix)
            shutil.copyfile((directory / OPENVINO_FILE).with_suffix(suffix), file)
        manifest = check_export(directory)
    return replace(artifact, precision=manifest.precision, parity=manifest.parity)


def _place_plans(directories: tuple[Path, ...], version: Path, artifact: Artifact) -> Artifact:
    """Copy the engines: one as model.plan, several under the names of their GPUs.

    Raises:
        ConfigError: Engines that cannot be served, or not together; all problems at once.
    """
    manifests = [check_export(directory) for directory in directories]
    records = [
        read_engine_record(manifest.directory) for manifest in manifests if manifest.format == "trt"
    ]
    problems = [
        f"{str(manifest.directory)!r} is an export of format {manifest.format!r}, expected 'trt'"
        for manifest in manifests
        if manifest.format != "trt"
    ]
    if not problems:
        for manifest, record in zip(manifests, records, strict=True):
            problems += _engine_problems(manifest, record, artifact)
        problems += _problems_together(records)
    if problems:
        raise ConfigError("; ".join(problems))
    plans = []
    for manifest, record in zip(manifests, records, strict=True):
        (capability,) = record.compute_capabilities
        name = PLAN_FILE if len(records) == 1 else f"model_sm{capability.replace('.', '')}.plan"
        shutil.copyfile(manifest.directory / PLAN_FILE, version / name)
        plans.append(_plan(name, record))
    return replace(
        artifact, precision=records[0].precision, parity=manifests[0].parity, plans=tuple(plans)
    )


def _engine_problems(
    manifest: ExportManifest, record: EngineRecord, artifact: Artifact
) -> list[str]:
    """Why one engine cannot be served."""
    what = f"engine {str(manifest.directory)!r}"
    if record.flavour != "tensorrt":
        return [
            f"{what} is of flavour {record.flavour!r}, for which Triton has no backend; build it "
            "with --flavour tensorrt on the GPU that will serve, or choose --backend onnxruntime"
        ]
    problems = []
    if record.is_stripped:
        problems.append(
            f"{what} was stripped of its weights; put them in: cofi-deploy export "
            f"{manifest.source_path} --format trt --weights-into {manifest.directory}"
        )
    if len(record.compute_capabilities) != 1:
        problems.append(
            f"{what} is for compute capabilities {', '.join(record.compute_capabilities)}, "
            "allowed: exactly one; build one engine for each kind of GPU"
        )
    if manifest.source_sha256 != artifact.source.sha256:
        problems.append(
            f"{what} was built from weights {manifest.source_sha256[:12]}, the model has "
            f"{artifact.source.sha256[:12]}; build it again: cofi-deploy export "
            f"{artifact.source.path} --format trt --flavour tensorrt"
        )
    largest, wanted = _batches(record), artifact.options.max_batch_size
    if largest[0] > 1 or largest[1] < wanted:
        problems.append(
            f"{what} takes batches of {largest[0]} to {largest[1]}, but Triton will form 1 to "
            f"{wanted}; lower max_batch_size, or build it again with other --batch-size: "
            f"{rebuild_command(manifest)}"
        )
    return problems


def _problems_together(records: list[EngineRecord]) -> list[str]:
    """Why several engines cannot be served as one model."""
    problems = []
    capabilities = [", ".join(record.compute_capabilities) for record in records]
    twice = sorted({name for name in capabilities if capabilities.count(name) > 1})
    if twice:
        problems.append(f"two engines are for compute capability {twice[0]}, allowed: one for each")
    if len({len(record.profiles) for record in records}) > 1:
        problems.append(
            "the engines have different numbers of optimization profiles; build all of them with "
            "the same --batch-size and --seq-len or --buckets"
        )
    return problems


def _batches(record: EngineRecord) -> tuple[int, int]:
    """Smallest and largest batch that every profile of an engine takes."""
    shapes = [shape for profile in record.profiles for shape in profile.values()]
    return max(shape["min"][0] for shape in shapes), min(shape["max"][0] for shape in shapes)


def _plan(file: str, record: EngineRecord) -> Plan:
    """What the configuration and the checks need to know of an engine."""
    first = [next(iter(profile.values())) for profile in record.profiles]
    return Plan(
        file=file,
        compute_capability=record.compute_capabilities[0],
        version=record.version,
        profiles=tuple(
            {"min": list(shapes["min"]), "max": list(shapes["max"])} for shapes in first
        ),
    )


def _fit(artifact: Artifact) -> TritonOptions:
    """Lengths that the model and its engines take, each once; the last bucket is the longest."""
    options, source = artifact.options, artifact.source
    shortest, longest = 1, source.arch.max_positions
    for plan in artifact.plans:
        shortest = max(shortest, min(profile["min"][1] for profile in plan.profiles))
        longest = min(longest, max(profile["max"][1] for profile in plan.profiles))
    buckets = {min(max(length, shortest), longest) for length in options.length_buckets}
    warmups = {min(max(length, shortest), longest) for length in options.warmup_lengths}
    return replace(
        options,
        length_buckets=tuple(sorted(buckets | {longest})),
        warmup_lengths=tuple(sorted(warmups)),
    )
