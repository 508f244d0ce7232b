"""An `Arch` alone -> an artifact with random weights, to be timed and thrown away.

How long a model takes depends on its structure; so a structure can be timed before anything is
trained. The graph is the one that every export writes. There are no answers to compare.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from transformers import PreTrainedTokenizerBase

from cofi_deploy.arch import Arch
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.export.manifest import Source, write_manifest
from cofi_deploy.export.onnx import MODEL_FILE
from cofi_deploy.export.openvino import MODEL_FILE as IR_FILE
from cofi_deploy.export.openvino import write_ir
from cofi_deploy.export.opsets import DEFAULT_OPSETS
from cofi_deploy.exports import ExportFormat
from cofi_deploy.kinds import TaskKind
from cofi_deploy.model import CofiConfig, build


def export_structure(source: Source, directory: Path, *, export_format: ExportFormat) -> Path:
    """Write what `open_runner` opens: graph and manifest, no tokenizer.

    Args:
        source: See `source_of_structure`.
        directory: To write into; must not exist.
        export_format: `onnx` or `openvino`.

    Raises:
        ExportError: The graph cannot be written.
        MissingDependencyError: The format needs a package that is not installed.
    """
    directory.mkdir(parents=True)
    model = build(CofiConfig.from_arch(source.arch, source.kind, labels=source.labels))
    path = directory / MODEL_FILE
    opset = DEFAULT_OPSETS[export_format]
    numerics = choose_numerics(model, "fp32", rows=())
    onnx.save_model(onnx_from_model(model, opset=opset, numerics=numerics), path)
    if export_format == "openvino":
        write_ir(source, path, directory / IR_FILE)
        path.unlink()
    write_manifest(
        directory, source, export_format=export_format, precision="fp32", parity=None, options={}
    )
    return directory


def source_of_structure(
    arch: Arch, kind: TaskKind, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> Source:
    """What an export says that it was made from, where that is no model."""
    return Source(
        path="random weights", sha256="", arch=arch, kind=kind, labels=labels, tokenizer=tokenizer
    )
