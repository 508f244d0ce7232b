"""Model directory -> OpenVINO IR: `openvino_model.xml` and `.bin`, checked on the CPU plugin.

The ONNX graph is converted, not the PyTorch model: one description of the network, one set of
checks. Weights stay fp32 unless asked otherwise; the plugin chooses its own compute precision when
it runs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cofi_deploy.artifacts import atomic_directory
from cofi_deploy.errors import ExportError, MissingDependencyError
from cofi_deploy.export.manifest import (
    Source,
    metadata,
    open_source,
    write_config_and_tokenizer,
    write_manifest,
)
from cofi_deploy.export.onnx import MODEL_FILE as ONNX_FILE
from cofi_deploy.export.onnx import write_onnx
from cofi_deploy.export.parity import TOLERANCE, Infer, Inputs, Outputs, check_parity

logger = logging.getLogger(__name__)

MODEL_FILE = "openvino_model.xml"
METADATA_SECTION = "cofi_deploy"

_RUNTIME = "openvino"


def export_openvino(model_dir: Path | str, output: Path, *, compress_to_fp16: bool = False) -> Path:
    """Write an OpenVINO directory: openvino_model.xml/.bin, config, tokenizer, export.json.

    Args:
        model_dir: Compact model, dense checkpoint, or the hub id of one.
        output: Directory to write; an existing one is replaced as a whole.
        compress_to_fp16: Store the weights in half the space; computation is not affected.

    Returns:
        ``output``.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ExportError: OpenVINO refuses the graph, or its answers differ from PyTorch.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    openvino = _import_openvino()
    source, model = open_source(model_dir)
    precision = "fp16" if compress_to_fp16 else "fp32"
    with atomic_directory(output) as directory:
        onnx_file = directory / ONNX_FILE
        write_onnx(source, model, onnx_file)
        ir = _ir_from_onnx(openvino, onnx_file, source)
        openvino.save_model(ir, directory / MODEL_FILE, compress_to_fp16=compress_to_fp16)
        onnx_file.unlink()
        parity = check_parity(
            openvino_infer(directory / MODEL_FILE),
            model,
            source.tokenizer,
            runtime=_RUNTIME,
            tolerance=TOLERANCE[precision],
        )
        write_config_and_tokenizer(source, directory)
        write_manifest(
            directory,
            source,
            export_format="openvino",
            precision=precision,
            parity=parity,
            options={"compress_to_fp16": compress_to_fp16},
        )
    logger.info("wrote %s, largest logit difference %.1e", output, parity.max_abs_logit_diff)
    return output


def openvino_infer(path: Path) -> Infer:
    """A function that runs the IR on the CPU plugin at fp32.

    Without the hint the plugin would compute in bf16 where the processor can, which is a choice
    for serving and not for comparing graphs.

    Raises:
        ExportError: OpenVINO refuses the file.
    """
    openvino = _import_openvino()
    try:
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise ExportError(f"OpenVINO does not open {str(path)!r}: {error}") from error
    names = [output.get_any_name() for output in compiled.outputs]

    def infer(inputs: Inputs) -> Outputs:
        results = compiled(dict(inputs))
        return {name: np.array(results[name]) for name in names}

    return infer


def _ir_from_onnx(openvino: ModuleType, onnx_file: Path, source: Source) -> Any:
    """OpenVINO's model, which has no types, with our metadata."""
    try:
        ir = openvino.convert_model(onnx_file)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO does not convert the ONNX graph: {error}") from error
    for key, value in metadata(source).items():
        ir.set_rt_info(value, [METADATA_SECTION, key])
    return ir


def _import_openvino() -> ModuleType:
    try:
        import openvino  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingDependencyError("openvino", "openvino", "the OpenVINO export") from error
    module: ModuleType = openvino
    return module
