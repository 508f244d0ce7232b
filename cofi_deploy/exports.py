"""`export.json`: what every export directory says about itself, and the check when it is opened.

Written by the `export` stage, read by whatever opens an artifact (`serve`, the reports). Comes in:
a directory. Goes out: an `ExportManifest` whose files have been compared with their checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import check_checksums, read_json
from cofi_deploy.errors import ArtifactError
from cofi_deploy.kinds import TASK_KINDS, TaskKind

MANIFEST = "export.json"

# One more whenever the same weights come out otherwise than before: `verify` makes older exports
# anew. Those without a number are of version 0.
EXPORTER_VERSION = 5

DEFAULT_OPSET = 17  # of every format; `export/opsets.py` has the reasons

# Of a TensorRT engine. Not the GPUs: an engine is made again for the GPU that could not run it.
_ENGINE_OPTIONS = ("builder_level", "hardware", "version_compatible", "refit", "strip")

ExportFormat = Literal["onnx", "openvino", "trt", "triton"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)


@dataclass(frozen=True, kw_only=True)
class TextParity:
    """How closely a lossy artifact answers like PyTorch, on real text of its task.

    ``metric`` is the artifact's and ``metric_pytorch`` PyTorch's, with the whole vocabulary, on the
    same examples, which were held out from training; both are None where the text has no labels.
    Both differences are None where a cut vocabulary gave other tokens; the mean is over all logits.
    """

    source: str
    examples: int
    agreement: float
    max_abs_logit_diff: float | None
    metric_name: str | None = None
    metric: float | None = None
    metric_pytorch: float | None = None
    mean_abs_logit_diff: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportParity:
    """How closely an artifact answers like PyTorch, on the built-in sentences.

    ``max_abs_logit_diff`` is in the unit of the logits, ``agreement`` the share of equal
    predictions, ``sentences`` how many inputs were compared, ``runtime`` what computed them.
    ``max_abs_padding_diff`` is how far the artifact's own answer to a sentence moves when it is
    padded beside others, ``mean_abs_logit_diff`` the mean over all logits; both are None in files
    of earlier versions.
    ``text`` is there when a lossy format was made with text of the task at hand.
    """

    max_abs_logit_diff: float
    agreement: float
    sentences: int
    runtime: str
    max_abs_padding_diff: float | None = None
    mean_abs_logit_diff: float | None = None
    text: TextParity | None = None


@dataclass(frozen=True, kw_only=True)
class SessionChoice:
    """How `export --tune` found that an artifact runs fastest; the key ``session``.

    ``runtime`` is the one that it was measured in, and that obeys it. ``threads`` None means the
    physical cores. ``settings`` have the runtime's own names, so that others can apply them:
    `ONNXRUNTIME_SETTINGS` or `OPENVINO_SETTINGS`. One is for the caller: `rows_at_once`, into how
    large pieces to cut a batch.
    """

    runtime: str
    threads: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


# The settings that are searched, with the values that are read from files: an export.json may tune
# a session and nothing else.
ONNXRUNTIME_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "graph_optimization_level": (
        "ORT_DISABLE_ALL",
        "ORT_ENABLE_BASIC",
        "ORT_ENABLE_EXTENDED",
        "ORT_ENABLE_ALL",
    ),
    "enable_mem_pattern": (False, True),
    "session.intra_op.allow_spinning": ("0", "1"),
    "session.set_denormal_as_zero": ("0", "1"),
    "rows_at_once": tuple(range(1, 1025)),
    "disabled_optimizers": (
        "AttentionFusion",
        "BiasGeluFusion",
        "EmbedLayerNormFusion",
        "GeluFusion",
        "SkipLayerNormFusion",
    ),
}
OPENVINO_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "INFERENCE_PRECISION_HINT": ("f32", "bf16"),
    "ENABLE_HYPER_THREADING": (False, True),
    "NUM_STREAMS": tuple(range(1, 257)),
}


@dataclass(frozen=True, kw_only=True)
class ExportManifest:
    """The content of an `export.json`; ``directory`` is where it was found."""

    directory: Path
    format: ExportFormat
    created: str
    source_path: str
    source_sha256: str
    arch: Arch
    kind: TaskKind
    labels: tuple[str, ...]  # empty for regression and question answering
    precision: str
    parity: ExportParity | None
    files: Mapping[str, str]  # POSIX path relative to the directory -> SHA-256
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    size_by_part: Mapping[str, int]  # bytes; empty where an artifact's parts cannot be told apart
    exporter_version: int = 0  # see `EXPORTER_VERSION`
    session: SessionChoice | None = None
    tuned_for: str | None = None  # the operating point of `export --tune --for`
    max_drop: float | None = None  # of the same search


def check_export(directory: Path) -> ExportManifest:
    """Open an export directory: read its manifest and compare every file with its checksum.

    Raises:
        ArtifactError: No manifest, a manifest that is not ours, or a file that is missing or was
            changed; the file is named.
    """
    manifest = read_manifest(directory)
    check_checksums(
        directory,
        manifest.files,
        remedy=f"export it again: {rebuild_command(manifest)}",
    )
    return manifest


def read_manifest(directory: Path) -> ExportManifest:
    """Read `export.json` without comparing checksums.

    Raises:
        ArtifactError: Missing, of a newer schema, or with a missing or impossible entry.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{str(directory)!r} holds no {MANIFEST}; expected a directory that "
            "`cofi-deploy export` wrote"
        )
    data = read_json(path, remedy=_rebuild_newer)
    try:
        return _manifest(directory, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{str(path)!r} has a missing or unknown entry: {error}; export the model again"
        ) from error


def read_tuning(directory: Path) -> Mapping[str, Any] | None:
    """What `export --tune` tried, as it was written; None where an artifact was not tuned."""
    tuning: Mapping[str, Any] | None = read_json(directory / MANIFEST).get("tuning")
    return tuning


def rebuild_command(manifest: ExportManifest) -> str:
    """The command line that makes the artifact again from its source."""
    command = f"cofi-deploy export {manifest.source_path} --format {manifest.format}"
    if manifest.tuned_for is not None:
        command += f" --tune --for {manifest.tuned_for}"
        if manifest.max_drop is not None:
            command += f" --max-drop {manifest.max_drop:g}"
    for name, value in rebuild_arguments(manifest).items():
        if manifest.tuned_for is not None and name in {"precision", "opset"}:
            continue  # the search chooses them
        command += f" --{name.replace('_', '-')}"
        if isinstance(value, tuple):
            command += f" {(',' if name == 'buckets' else ':').join(map(str, value))}"
        elif value is not True:
            command += f" {value}"
    return command


def rebuild_arguments(manifest: ExportManifest) -> dict[str, Any]:
    """What `api.export` was told beyond the format, by name; not what a search or a server was."""
    options = manifest.options
    found: dict[str, Any] = {}
    if manifest.precision != "fp32":
        found["precision"] = manifest.precision
    if manifest.format == "onnx" and options.get("opset", DEFAULT_OPSET) != DEFAULT_OPSET:
        found["opset"] = options["opset"]
    if "calibration" in options:
        found["calibration"] = Path(options["calibration"])
    if options.get("shrink_embeddings"):
        found["shrink_embeddings"] = True
    for name in ("batch_size", "seq_len", "buckets"):
        if name in options:
            found[name] = tuple(options[name])
    engine = options.get("engine", {})
    return found | {name: engine[name] for name in _ENGINE_OPTIONS if name in engine}


def _rebuild_newer(data: Mapping[str, Any]) -> str:
    """The command for a file of a newer schema, from the entries that it still has as we do."""
    source, export_format = data.get("source"), data.get("format")
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str) or export_format not in EXPORT_FORMATS:
        return "export the model again"
    command = f"cofi-deploy export {path} --format {export_format}"
    precision = data.get("precision", "fp32")
    return f"make it again: {command}{'' if precision == 'fp32' else f' --precision {precision}'}"


def _manifest(directory: Path, data: Mapping[str, Any]) -> ExportManifest:
    kind, export_format = data["kind"], data["format"]
    if kind not in TASK_KINDS or export_format not in EXPORT_FORMATS:
        raise ArtifactError(
            f"{str(directory / MANIFEST)!r} describes format {export_format!r} and kind {kind!r}, "
            f"allowed: {', '.join(EXPORT_FORMATS)} and {', '.join(TASK_KINDS)}; "
            "upgrade cofi-deploy or export the model again"
        )
    parity = data["parity"]
    return ExportManifest(
        directory=directory,
        format=export_format,
        created=data["created"],
        source_path=data["source"]["path"],
        source_sha256=data["source"]["weights_sha256"],
        arch=Arch.from_json(data["arch"]),
        kind=kind,
        labels=tuple(data["labels"]),
        precision=data["precision"],
        parity=None if parity is None else _parity(parity),
        files=dict(data["files"]),
        versions=dict(data["versions"]),
        options=dict(data["options"]),
        size_by_part=dict(data.get("size_by_part", {})),
        exporter_version=data.get("exporter_version", 0),
        session=_session(directory / MANIFEST, data.get("session")),
        tuned_for=data.get("tuning", {}).get("for"),
        max_drop=data.get("tuning", {}).get("max_drop"),
    )


def _session(path: Path, data: Mapping[str, Any] | None) -> SessionChoice | None:
    """The key ``session``, which may say nothing but what is searched.

    Raises:
        ArtifactError: A setting or value that is none of ours.
    """
    if data is None:
        return None
    session = SessionChoice(**data)
    by_runtime = {"onnxruntime-cpu": ONNXRUNTIME_SETTINGS, "openvino": OPENVINO_SETTINGS}
    known = by_runtime.get(session.runtime, {})
    for name, value in session.settings.items():
        values = value if isinstance(value, list) else [value]
        if name not in known or any(each not in known[name] for each in values):
            raise ArtifactError(
                f"{str(path)!r} has session setting {name}={value!r} for {session.runtime!r}, "
                f"allowed: {', '.join(known) or 'none'} with the values of `export --tune`; "
                "export the model again"
            )
    if session.threads is not None and session.threads < 1:
        raise ArtifactError(f"{str(path)!r} has {session.threads} threads, allowed: 1 and up")
    return session


def _parity(data: Mapping[str, Any]) -> ExportParity:
    text = data.get("text")
    return ExportParity(**{**data, "text": None if text is None else TextParity(**text)})
