"""Model directory -> OpenVINO IR: `openvino_model.xml` and `.bin`, checked on the CPU plugin.

The ONNX graph is converted, not the PyTorch model: one description of the network, one set of
checks, one way of choosing what leaves fp32.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import ConfigError, EnvironmentProblem, ExportError, MissingDependencyError
from cofi_deploy.export.calibration import CalibrationText, calibration_rows
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.export.manifest import (
    Source,
    metadata,
    write_config_and_tokenizer,
    write_manifest,
)
from cofi_deploy.export.numerics import Precision, check_precision
from cofi_deploy.export.onnx import MODEL_FILE as ONNX_FILE
from cofi_deploy.export.onnx import Opened, open_for_export, write_onnx
from cofi_deploy.export.opsets import DEFAULT_OPSETS
from cofi_deploy.export.parity import (
    Infer,
    Inputs,
    Outputs,
    allowed_difference,
    batch_of,
    largest_difference,
)
from cofi_deploy.export.sizes import size_by_part
from cofi_deploy.export.text_parity import check_answers
from cofi_deploy.export.word_bits import with_words
from cofi_deploy.openvino_core import openvino_core

logger = logging.getLogger(__name__)

MODEL_FILE = "openvino_model.xml"
METADATA_SECTION = "cofi_deploy"

_RUNTIME = "openvino"

Shape = tuple[int, int]  # (batch, sequence)


def export_openvino(
    model_dir: Path | str,
    output: Path,
    *,
    precision: Precision = "fp32",
    text: CalibrationText | None = None,
    shrink_embeddings: bool = False,
    shape: Shape | None = None,
) -> Path:
    """Write an OpenVINO directory: openvino_model.xml/.bin, config, tokenizer, export.json.

    fp16 halves the files and is computed in fp32. bf16 halves them, too, and is computed in bf16
    where the processor has it. int8 computes the products of the layers on bytes, with ranges from
    ``text``, or from the built-in sentences without it.

    Args:
        model_dir: Compact model, dense checkpoint, or the hub id of one.
        output: Directory to write; an existing one is replaced as a whole.
        precision: See above.
        text: Real text of the task, which a lossy artifact is judged on.
        shrink_embeddings: Keep only the vocabulary that ``text`` needs; at int8 with 6 bits for
            each number of frequent words and 2 for others, if text allows (`word_bits.py`).
        shape: The one (batch, length) that the artifact computes, padding what is smaller; by
            default any.

    Returns:
        ``output``.

    Raises:
        ConfigError: A precision that is not supported, a vocabulary to shrink to without text, or
            a shape that the model cannot take.
        MissingDependencyError: OpenVINO is not installed.
        EnvironmentProblem: The disk is full.
        ExportError: OpenVINO refuses the graph, or its answers differ from PyTorch.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    check_precision(precision)
    _import_openvino()  # before the work starts
    opened = open_for_export(model_dir, text, shrink_embeddings=shrink_embeddings)
    return write_openvino_directory(opened, output, precision=precision, shape=shape)


def write_openvino_directory(
    opened: Opened, output: Path, *, precision: Precision = "fp32", shape: Shape | None = None
) -> Path:
    """`export_openvino` of what was opened before, so that several exports share the opening."""
    openvino = _import_openvino()
    source, model = opened.source, opened.model
    _check_shape(shape, source)
    # fp16 is a way of storing the fp32 graph here, not of computing.
    of_graph: Precision = "fp32" if precision == "fp16" else precision
    numerics = choose_numerics(
        model,
        of_graph,
        opened.rows(),
        words=opened.words(precision),
    )
    # The converter works out what depends on no input, and would write bytes for all rows.
    numerics = replace(numerics, words_unpacked="when picked")
    with atomic_directory(output) as directory:
        onnx_file = directory / ONNX_FILE
        opset = DEFAULT_OPSETS["openvino"]
        # The text is for what comes of it.
        write_onnx(replace(opened, yardstick=None), onnx_file, opset=opset, numerics=numerics)
        ir = _ir_from_onnx(openvino, onnx_file, source)
        # Matrices that the conversion made fp32 of lose nothing: fp16 has more bits than bf16.
        is_half = precision in {"fp16", "bf16"}
        _save(openvino, ir, directory / MODEL_FILE, compress_to_fp16=is_half)
        onnx_file.unlink()
        infer = openvino_infer(directory / MODEL_FILE, bf16=precision == "bf16")
        parity = check_answers(
            infer,
            source,
            with_words(model, numerics.words),
            runtime=_RUNTIME,
            precision=precision,
            yardstick=opened.yardstick,
        )
        if shape is not None:
            _save(openvino, _static(ir, shape), directory / MODEL_FILE, compress_to_fp16=is_half)
            fixed = openvino_infer(directory / MODEL_FILE, bf16=precision == "bf16")
            _check_same(infer, fixed, source, shape, precision)
        write_config_and_tokenizer(source, directory)
        write_manifest(
            directory,
            source,
            export_format="openvino",
            precision=precision,
            parity=parity,
            options={**opened.options, **numerics.to_json(), **_shape_options(shape)},
            size_by_part=size_by_part(directory),
        )
    logger.info("wrote %s, largest logit difference %.1e", output, parity.max_abs_logit_diff)
    return output


def write_ir(source: Source, onnx_file: Path, path: Path) -> None:
    """Convert an ONNX file as every export does; nothing is compared.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ExportError: OpenVINO refuses the graph.
        EnvironmentProblem: The disk is full.
    """
    openvino = _import_openvino()
    _save(openvino, _ir_from_onnx(openvino, onnx_file, source), path, compress_to_fp16=False)


def openvino_infer(path: Path, *, bf16: bool = False) -> Infer:
    """A function that runs the IR on the CPU plugin.

    Without a hint the plugin would compute any graph in bf16 where the processor can; it is told
    to for graphs that are meant so, and where it cannot, they are compared at fp32.

    Raises:
        ExportError: OpenVINO refuses the file.
    """
    core = openvino_core()
    if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        logger.warning("this processor has no bf16: %s is compared with PyTorch at fp32", path.name)
        bf16 = False
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
    try:
        compiled = core.compile_model(path, "CPU", hint)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO does not open {str(path)!r}: {error}") from error
    names = [output.get_any_name() for output in compiled.outputs]

    def infer(inputs: Inputs) -> Outputs:
        results = compiled(dict(inputs))
        return {name: np.array(results[name]) for name in names}

    return infer


def _ir_from_onnx(openvino: ModuleType, onnx_file: Path, source: Source) -> Any:
    """OpenVINO's model, which has no types, with our metadata."""
    # By another name: of a path with a comma, convert_model makes two.
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / ONNX_FILE
        alias.symlink_to(onnx_file.resolve())
        try:
            ir = openvino.convert_model(alias)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO does not convert the ONNX graph: {error}") from error
    for key, value in metadata(source).items():
        ir.set_rt_info(value, [METADATA_SECTION, key])
    return ir


def _save(openvino: ModuleType, ir: Any, path: Path, *, compress_to_fp16: bool) -> None:
    """Write the .xml and the .bin; what can fail here is the disk, of which OpenVINO says little.

    Raises:
        EnvironmentProblem: They cannot be written.
    """
    try:
        openvino.save_model(ir, path, compress_to_fp16=compress_to_fp16)
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"OpenVINO cannot write {path.name!r}: {error}; free space or choose another --output, "
            "nothing that was there before is lost"
        ) from error


def _check_shape(shape: Shape | None, source: Source) -> None:
    longest = source.arch.max_positions
    if shape is not None and not (shape[0] >= 1 and 1 <= shape[1] <= longest):
        raise ConfigError(
            f"shape is {shape[0]}x{shape[1]}, allowed: a batch of 1 and up, a length of 1 to "
            f"{longest}"
        )


def _static(ir: Any, shape: Shape) -> Any:
    """The model with one shape for all of its inputs."""
    ir.reshape({port.get_any_name(): list(shape) for port in ir.inputs})
    return ir


def _check_same(
    dynamic: Infer, static: Infer, source: Source, shape: Shape, precision: Precision
) -> None:
    """The static graph must answer like the dynamic one, which was compared with PyTorch.

    Not to the last bit: other kernels may be chosen, and sums in another order tip some bytes.

    Raises:
        ExportError: It does not.
    """
    batch, length = shape
    rows = [(ids[:length], types[:length]) for ids, types in calibration_rows(source, None)]
    rows = (rows * (batch // len(rows) + 1))[:batch]
    inputs = batch_of(rows, pad_to=length, pad_id=source.arch.pad_token_id)
    expected, got = [dynamic(inputs)], [static(inputs)]
    difference = largest_difference(expected, got)
    tolerance = allowed_difference(expected, precision)
    if not difference <= tolerance:
        raise ExportError(
            f"OpenVINO's graph of shape {batch}x{length} differs from the dynamic one by "
            f"{difference:.2e}; export without a fixed shape"
        )


def _shape_options(shape: Shape | None) -> dict[str, list[int]]:
    """The flags that fix a shape: smallest, usual and largest size are one."""
    return {} if shape is None else {"batch_size": [shape[0]] * 3, "seq_len": [shape[1]] * 3}


def _import_openvino() -> ModuleType:
    try:
        import openvino  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingDependencyError("openvino", "openvino", "the OpenVINO export") from error
    module: ModuleType = openvino
    return module
