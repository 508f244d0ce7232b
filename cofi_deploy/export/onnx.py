"""Model directory -> `model.onnx` with config, tokenizer and manifest, checked before it is kept.

Comes in: a compact model or a dense checkpoint. Goes out: a directory that ONNX Runtime, Optimum
and transformers.js conventions accept. The graph itself is written in `graph.py`; next files:
`openvino.py` and `tensorrt.py`, which start from it.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from cofi_deploy.arch import Arch
from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import ConfigError, ExportError
from cofi_deploy.export.calibration import (
    CalibrationText,
    Row,
    calibration_rows,
    text_options,
)
from cofi_deploy.export.fewer_operations import idle_biases
from cofi_deploy.export.graph import attention_of_first_token, onnx_from_model
from cofi_deploy.export.graph_builder import WORDS
from cofi_deploy.export.lossy import choose_numerics
from cofi_deploy.export.manifest import (
    Source,
    metadata,
    open_source,
    write_config_and_tokenizer,
    write_manifest,
)
from cofi_deploy.export.numerics import FP32, Numerics, Precision, check_precision
from cofi_deploy.export.opsets import check_opset
from cofi_deploy.export.parity import Infer, Inputs, Outputs
from cofi_deploy.export.rounding import rounded_to_bf16
from cofi_deploy.export.sizes import size_by_part
from cofi_deploy.export.text_parity import Yardstick, check_answers
from cofi_deploy.export.vocabulary import shrink_vocabulary
from cofi_deploy.export.word_bits import choose_words, with_words
from cofi_deploy.export.word_codes import WordCodes
from cofi_deploy.exports import DEFAULT_OPSET, ExportParity
from cofi_deploy.kinds import TaskKind
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.pieces import ONE_TEXT, in_pieces, rows_at_once

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
METADATA_PREFIX = "cofi_deploy."

_RUNTIME = "onnxruntime-cpu"


def export_onnx(  # noqa: PLR0913 - the arguments are the flags of the command line
    model_dir: Path | str,
    output: Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: Precision = "fp32",
    text: CalibrationText | None = None,
    shrink_embeddings: bool = False,
    one_text: bool = False,
) -> Path:
    """Write an ONNX directory: model.onnx, config.json, tokenizer files, export.json.

    Batch and length are dynamic by default. The file is checked by onnx.checker, against the Arch
    and, in ONNX Runtime, against PyTorch on real sentences; only then does it appear under
    ``output``.

    Args:
        model_dir: Compact model, dense checkpoint, or the hub id of one.
        output: Directory to write; an existing one is replaced as a whole.
        opset: ONNX operator set, see `opsets.py`; 20 and later have Gelu as one node.
        precision: See `numerics.Numerics`. int8 is made for CPUs; fp16 for devices that compute in
            it, a CPU gains the size only; bf16 halves the file alone.
        text: Real text of the task: fixes the ranges of int8, shows what fp16 cannot hold, and
            is what a lossy file is judged on. Without it int8 finds its ranges at run time.
        shrink_embeddings: Keep only the vocabulary that ``text`` needs; at int8 with 6 bits for
            each number of frequent words and 2 for others, if text allows (`word_bits.py`).
        one_text: Fix the batch to 1, which saves 2 to 5 % of a thin model's time there; a graph of
            any batch is the faster one for more.

    Returns:
        ``output``.

    Raises:
        ConfigError: An opset or precision that is not supported, int8 of one text, or a vocabulary
            to shrink to without text or with a tokenizer that cannot be cut.
        ExportError: The graph is not valid, or loses more than its precision may lose.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    check_precision(precision)
    check_opset(opset)
    if one_text and precision == "int8":
        raise ConfigError(
            "an int8 graph of one text at a time is slower than that of any batch (ONNX Runtime "
            "merges its products with their biases, and then unpacks the weights for every text); "
            "leave out --batch-size 1, or give another --precision"
        )
    opened = open_for_export(model_dir, text, shrink_embeddings=shrink_embeddings)
    return write_onnx_directory(opened, output, opset=opset, precision=precision, one_text=one_text)


def write_onnx_directory(
    opened: Opened,
    output: Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: Precision = "fp32",
    one_text: bool = False,
) -> Path:
    """`export_onnx` of what was opened before, so that several exports share the opening."""
    source, model = opened.source, opened.model
    numerics = choose_numerics(
        model,
        precision,
        opened.rows(),
        static=opened.yardstick is not None,
        words=opened.words(precision),
    )
    with atomic_directory(output) as directory:
        file = directory / MODEL_FILE
        parity = write_onnx(opened, file, opset=opset, numerics=numerics, one_text=one_text)
        options = {"opset": opset, **opened.options, **numerics.to_json()}
        write_config_and_tokenizer(source, directory)
        write_manifest(
            directory,
            source,
            export_format="onnx",
            precision=precision,
            parity=parity,
            options={**options, "batch_size": list(ONE_TEXT)} if one_text else options,
            size_by_part=size_by_part(directory),
        )
    logger.info("wrote %s, largest logit difference %.1e", output, parity.max_abs_logit_diff)
    return output


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What is exported, what it is judged by, and what `export.json` says of both.

    Of several exports that share it, the answers of PyTorch are computed once. A cut vocabulary
    has its ``frequent_words`` first.
    """

    source: Source
    model: CofiPreTrainedModel
    yardstick: Yardstick | None
    options: dict[str, Any]
    frequent_words: int | None = None

    def rows(self) -> list[Row]:
        """Rows of its text, or of the built-in sentences where there is none."""
        return calibration_rows(self.source, self.yardstick.text if self.yardstick else None)

    def words(self, precision: Precision) -> WordCodes | None:
        """See `Numerics`; those of a cut table at int8, if its text bears it."""
        return self._words if precision == "int8" else None

    @cached_property
    def _words(self) -> WordCodes | None:
        if self.yardstick is None or self.frequent_words is None:
            return None
        return choose_words(
            self.model,
            self.source.tokenizer,
            self.yardstick,
            rows=self.rows(),
            frequent=self.frequent_words,
        )


def open_for_export(
    model_dir: Path | str, text: CalibrationText | None, *, shrink_embeddings: bool
) -> Opened:
    """Load the source, with the vocabulary cut where asked.

    Raises:
        ConfigError: A vocabulary to cut without text, or with a tokenizer that cannot be cut.
        ArtifactError: The source is corrupt, unsafe or incomplete.
    """
    source, model = open_source(model_dir)
    yardstick = None
    if text is not None:
        yardstick = Yardstick(text=text, tokenizer=source.tokenizer, model=model)
    options = text_options(text)
    if shrink_embeddings:
        shrunk = shrink_vocabulary(source, model, text)
        return Opened(
            source=shrunk.source,
            model=shrunk.model,
            yardstick=yardstick,
            options={**options, "shrink_embeddings": True},
            frequent_words=shrunk.frequent,
        )
    return Opened(source=source, model=model, yardstick=yardstick, options=options)


def write_onnx(
    opened: Opened,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    numerics: Numerics = FP32,
    one_text: bool = False,
) -> ExportParity:
    """Write and check one ONNX file.

    Raises:
        ExportError: The graph is not valid, or loses more than its precision may lose.
    """
    source, model = opened.source, opened.model
    proto = onnx_from_model(model, opset=opset, numerics=numerics, one_text=one_text)
    entries = {**metadata(source), "precision": numerics.precision}
    props = {f"{METADATA_PREFIX}{key}": value for key, value in entries.items()}
    onnx.helper.set_model_props(proto, props)
    onnx.save_model(proto, path)
    check_onnx(path, source.arch, source.kind)
    runtime, infer = _RUNTIME, onnxruntime_infer
    if numerics.computed == "bf16":
        runtime, infer = f"{_RUNTIME}, rounded to bf16", _rounded_infer
    return check_answers(
        infer(path),
        source,
        with_words(model, numerics.words),
        runtime=runtime,
        precision=numerics.precision,
        yardstick=opened.yardstick,
    )


def _rounded_infer(path: Path) -> Infer:
    """Runs a graph that computes in bf16, for which there are no kernels on the CPU."""
    with tempfile.TemporaryDirectory(prefix="cofi-deploy-") as scratch:
        rounded = Path(scratch) / MODEL_FILE
        onnx.save_model(rounded_to_bf16(onnx.load(path)), rounded)
        return onnxruntime_infer(rounded)


def check_onnx(path: Path, arch: Arch, kind: TaskKind) -> None:
    """Check a file's graph, its inferred shapes, and the sizes of its weights against ``arch``.

    Args:
        path: Of the file.
        arch: What it must be.
        kind: Of its task.

    Raises:
        ExportError: The first problem found.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{str(path)!r} is no valid ONNX model: {error}") from error
    proto = onnx.load(path)
    got = {item.name: tuple(item.dims) for item in proto.graph.initializer}
    left_out = idle_biases(arch) - got.keys()
    expected = {n: s for n, s in weight_shapes(arch, kind).items() if n not in left_out}
    types = {item.name: item.data_type for item in proto.graph.initializer}
    if types.get(WORDS) == onnx.TensorProto.UINT8:  # the highest bits of four numbers in each byte
        rows, width = expected[WORDS]
        expected[WORDS] = (rows, -(-width // 4))
    for name, shape in expected.items():
        if got.get(name) != shape:
            raise ExportError(
                f"{str(path)!r} has {name!r} of shape {got.get(name)}, the Arch says {shape}"
            )
    strangers = [n for n in got if n.startswith("encoder.layers.") and n not in expected]
    if strangers:
        raise ExportError(f"{str(path)!r} has weights that the Arch has not: {strangers[:5]}")


def weight_shapes(arch: Arch, kind: TaskKind) -> dict[str, tuple[int, ...]]:
    """Shape of every encoder weight in the ONNX graph.

    Linear maps are (in, out), those that are taken by head (heads, in, out); see `graph.py`.
    """
    hidden = arch.hidden
    last = attention_of_first_token(arch, kind)
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
        if index == last:
            shapes[f"{attention}.key.weight"] = (layer.heads, arch.head_size, hidden)
            shapes[f"{attention}.value.weight"] = (layer.heads, hidden, arch.head_size)
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
    rows = rows_at_once(session)

    def run(inputs: Inputs) -> Outputs:
        return dict(zip(names, map(np.asarray, session.run(names, dict(inputs))), strict=True))

    return lambda inputs: in_pieces(run, inputs, rows)
