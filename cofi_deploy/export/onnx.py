"""Model directory -> `model.onnx` with config, tokenizer and manifest, checked before it is kept.

Comes in: a compact model or a dense checkpoint. Goes out: a directory that ONNX Runtime, Optimum
and transformers.js conventions accept. The graph itself is written in `graph.py`; next files:
`openvino.py` and `tensorrt.py`, which start from it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import atomic_directory
from cofi_deploy.errors import ConfigError, ExportError
from cofi_deploy.export.graph import Precision, onnx_from_model
from cofi_deploy.export.manifest import (
    Source,
    metadata,
    open_source,
    write_config_and_tokenizer,
    write_manifest,
)
from cofi_deploy.export.parity import TOLERANCE, Infer, Inputs, Outputs, check_parity
from cofi_deploy.exports import ExportParity
from cofi_deploy.model import CofiPreTrainedModel

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
DEFAULT_OPSET = 17
OPSETS = range(17, 22)
METADATA_PREFIX = "cofi_deploy."

_RUNTIME = "onnxruntime-cpu"


def export_onnx(
    model_dir: Path | str,
    output: Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: Precision = "fp32",
) -> Path:
    """Write an ONNX directory: model.onnx, config.json, tokenizer files, export.json.

    Batch and length are dynamic. The file is checked by onnx.checker, against the Arch and, in
    ONNX Runtime, against PyTorch on real sentences; only then does it appear under ``output``.

    Args:
        model_dir: Compact model, dense checkpoint, or the hub id of one.
        output: Directory to write; an existing one is replaced as a whole.
        opset: ONNX operator set; 20 and later have Gelu as one node.
        precision: fp16 keeps LayerNorm, head and outputs in fp32.

    Returns:
        ``output``.

    Raises:
        ConfigError: An opset or precision that is not supported.
        ExportError: The graph is not valid, or differs from PyTorch.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    _check_options(opset, precision)
    source, model = open_source(model_dir)
    with atomic_directory(output) as directory:
        file = directory / MODEL_FILE
        parity = write_onnx(source, model, file, opset=opset, precision=precision)
        write_config_and_tokenizer(source, directory)
        write_manifest(
            directory,
            source,
            export_format="onnx",
            precision=precision,
            parity=parity,
            options={"opset": opset},
        )
    logger.info("wrote %s, largest logit difference %.1e", output, parity.max_abs_logit_diff)
    return output


def write_onnx(
    source: Source,
    model: CofiPreTrainedModel,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: Precision = "fp32",
) -> ExportParity:
    """Write and check one ONNX file.

    Raises:
        ExportError: The graph is not valid, or differs from PyTorch.
    """
    proto = onnx_from_model(model, opset=opset, precision=precision)
    entries = {**metadata(source), "precision": precision}
    props = {f"{METADATA_PREFIX}{key}": value for key, value in entries.items()}
    onnx.helper.set_model_props(proto, props)
    onnx.save_model(proto, path)
    check_onnx(path, source.arch)
    return check_parity(
        onnxruntime_infer(path),
        model,
        source.tokenizer,
        runtime=_RUNTIME,
        tolerance=TOLERANCE[precision],
    )


def check_onnx(path: Path, arch: Arch) -> None:
    """Check a file's graph, its inferred shapes, and the sizes of its weights against ``arch``.

    Raises:
        ExportError: The first problem found.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{str(path)!r} is no valid ONNX model: {error}") from error
    proto = onnx.load(path)
    got = {item.name: tuple(item.dims) for item in proto.graph.initializer}
    expected = weight_shapes(arch)
    for name, shape in expected.items():
        if got.get(name) != shape:
            raise ExportError(
                f"{str(path)!r} has {name!r} of shape {got.get(name)}, the Arch says {shape}"
            )
    strangers = [n for n in got if n.startswith("encoder.layers.") and n not in expected]
    if strangers:
        raise ExportError(f"{str(path)!r} has weights that the Arch has not: {strangers[:5]}")


def weight_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Shape of every encoder weight in the ONNX graph; linear maps are (in, out)."""
    hidden = arch.hidden
    shapes = _embedding_shapes(arch)
    for index, layer in enumerate(arch.layers):
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.ffn"
        width = layer.heads * arch.head_size
        linears = {f"{attention}.{part}": (hidden, width) for part in ("query", "key", "value")}
        linears[f"{attention}.output"] = (width, hidden)
        if not layer.heads:
            linears = {}
        if layer.ffn:
            linears[f"{ffn}.up"] = (hidden, layer.ffn)
            linears[f"{ffn}.down"] = (layer.ffn, hidden)
        for name, shape in linears.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
        for module, kept in ((attention, layer.heads), (ffn, layer.ffn)):
            if kept:
                shapes |= {f"{module}.norm.weight": (hidden,), f"{module}.norm.bias": (hidden,)}
    return shapes


def _embedding_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    width, tables = arch.embedding_width, "encoder.embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{tables}.word.weight": (arch.vocab_size, width),
        f"{tables}.position.weight": (arch.position_rows, width),
        f"{tables}.norm.weight": (width,),
        f"{tables}.norm.bias": (width,),
    }
    if arch.type_vocab_size:
        shapes[f"{tables}.token_type.weight"] = (arch.type_vocab_size, width)
    if arch.embedding is not None:
        shapes[f"{tables}.project.weight"] = (width, arch.hidden)
        shapes[f"{tables}.project.bias"] = (arch.hidden,)
    return shapes


def onnxruntime_infer(path: Path) -> Infer:
    """A function that runs the file in ONNX Runtime on the CPU, as a user would.

    Raises:
        ExportError: ONNX Runtime refuses the file or an input.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ExportError(f"ONNX Runtime does not open {str(path)!r}: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def infer(inputs: Inputs) -> Outputs:
        return dict(zip(names, map(np.asarray, session.run(names, dict(inputs))), strict=True))

    return infer


def _check_options(opset: int, precision: str) -> None:
    if opset not in OPSETS:
        raise ConfigError(f"opset is {opset}, allowed: {OPSETS.start} to {OPSETS.stop - 1}")
    if precision not in TOLERANCE:
        raise ConfigError(f"precision is {precision!r}, allowed: {', '.join(TOLERANCE)}")
