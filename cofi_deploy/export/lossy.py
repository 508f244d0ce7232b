"""Which parts of a graph may leave fp32, decided from the weights and from real text.

Comes in: a model, a precision, rows of text. Goes out: `Numerics`, which `graph.py` obeys.
fp16: a sublayer whose numbers come near the end of the format's range stays fp32. int8: a matrix
too thin to gain stays fp32. bf16 reaches as far as fp32, so nothing is looked for. Next file:
`onnx.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from cofi_deploy.arch import Arch
from cofi_deploy.errors import ExportError
from cofi_deploy.export.activations import Extremes, Inputs, scan_activations, scan_channels
from cofi_deploy.export.calibration import Row
from cofi_deploy.export.centring import states_of
from cofi_deploy.export.graph import attention_of_first_token, onnx_from_model
from cofi_deploy.export.numerics import FP32, Numerics, Precision
from cofi_deploy.export.parity import batch_of
from cofi_deploy.export.quantized import Array, Range
from cofi_deploy.export.word_codes import WordCodes
from cofi_deploy.kinds import TaskKind
from cofi_deploy.model import CofiPreTrainedModel

logger = logging.getLogger(__name__)

FP16_MAX = 65504.0
# Text that was not looked at may reach further than text that was.
FP16_HEADROOM = 4.0

# Below this, quantising the input costs what the product gains: measured in ONNX Runtime 1.32
# (AVX512-VNNI, 128 tokens), fp32 time over int8 time is 0.98 to 1.03 for 384x16 and 16x384, 1.2 to
# 1.4 for 233x32, 1.8 to 2.8 for 128x233 and 233x437, 3.0 for 768x3072.
MIN_INT8_SIZE = 32

# Share of the rows of text whose extremes the ranges of int8 must hold.
KEPT_ROWS = 0.95
# Below it no row is an outlier, and the extremes of each channel are not known well enough to find
# its middle: on SST-2 at 95 %, centres from the 8 built-in sentences made logits a third worse.
_MANY_ROWS = 100

_OPSET = 17
_SUBLAYER = re.compile(
    r"encoder\.(?:embeddings\.project|embeddings|layers\.\d+\.(?:attention|ffn))(?=\.)"
)
# What sublayers hand on to each other, in the graph's usual precision.
_HANDED_ON = (".norm.out", ".project.out")


def choose_numerics(
    model: CofiPreTrainedModel,
    precision: Precision,
    rows: Sequence[Row],
    *,
    static: bool = True,
    words: WordCodes | None = None,
    strongly_typed: bool = False,
) -> Numerics:
    """Decide what is computed in which numbers.

    Args:
        model: Whose graph will be written.
        precision: What was asked for.
        rows: Real text, run through the model at fp16 and at int8.
        static: At int8, fix the ranges of activations now, so that a text gets the same answer
            whatever is in its batch. Else they are found at run time, for each batch.
        words: At int8, see `Numerics`.
        strongly_typed: For runtimes that compute in the graph's own types, see `Numerics`. They
            fuse attention in half precision only where its softmax is, too.

    Raises:
        ExportError: Numbers that no sublayer in fp32 can save at fp16.
    """
    if precision == "fp16":
        sublayers = _beyond_fp16(model, rows)
        return Numerics(precision="fp16", fp32_sublayers=sublayers, fp32_softmax=not strongly_typed)
    if precision == "int8":
        modules = quantized_modules(model.arch, model.kind)
        if strongly_typed:
            return Numerics(
                precision="int8",
                fp32_sublayers=_beyond_fp16(model, rows),
                int8=dict.fromkeys(modules),
                strongly_typed=True,
            )
        if not static or not modules:
            ranges: Mapping[str, Range | None] = dict.fromkeys(modules)
            centres: Mapping[str, Array] = {}
        else:
            centres, ranges = _centres_and_ranges(model, rows, modules)
        return Numerics(
            precision="int8",
            int8=ranges,
            words=words,
            centres=centres,
        )
    return Numerics(
        precision=precision, strongly_typed=strongly_typed, merge_biases=not strongly_typed
    )


def quantized_modules(arch: Arch, kind: TaskKind) -> list[str]:
    """Linear maps of the layers that are wide enough to gain from int8."""
    modules: list[str] = []
    last = attention_of_first_token(arch, kind)  # its keys and values are no products of tokens
    for index, layer in enumerate(arch.layers):
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.ffn"
        if min(arch.hidden, layer.heads * arch.head_size) >= MIN_INT8_SIZE:
            parts = ("query", "output") if index == last else ("query", "key", "value", "output")
            modules += [f"{attention}.{part}" for part in parts]
        if min(arch.hidden, layer.ffn) >= MIN_INT8_SIZE:
            modules += [f"{ffn}.up", f"{ffn}.down"]
    return modules


def _beyond_fp16(model: CofiPreTrainedModel, rows: Sequence[Row]) -> frozenset[str]:
    """Sublayers with a weight or an activation that fp16 cannot hold safely."""
    scanned = scan_activations(_exact_graph(model), _one_by_one(rows))
    largest = {name: extremes.magnitude for name, extremes in scanned.items()}
    for name, tensor in model.state_dict().items():
        if ".norm." not in name:
            largest[name] = float(tensor.abs().max())
    beyond: set[str] = set()
    for name, magnitude in largest.items():
        sublayer = _SUBLAYER.match(name)
        if sublayer is None or magnitude * FP16_HEADROOM <= FP16_MAX:
            continue
        if name.endswith(_HANDED_ON):
            raise ExportError(
                f"{name!r} reaches {magnitude:.3g}, fp16 ends at {FP16_MAX:.0f} and sublayers "
                "hand their results on in it; export at --precision bf16 or fp32"
            )
        if sublayer[0] not in beyond:
            logger.warning("%s stays fp32: %s reaches %.3g", sublayer[0], name, magnitude)
        beyond.add(sublayer[0])
    return frozenset(beyond)


def _centres_and_ranges(
    model: CofiPreTrainedModel, rows: Sequence[Row], modules: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Range]]:
    """Centres of states by their writers, and ranges of inputs around them by their ``modules``.

    Source:
        Measured on SST-2's development set (MiniLM), the mean difference of a logit from fp32
        without and with centres: 0.071 and 0.065 dense, 0.030 and 0.025 at 60 %, 0.024 and 0.019
        at 90 %, 0.017 and 0.017 at 95 %.
    """
    proto = _exact_graph(model)
    inputs = {
        node.name.removesuffix(".product"): node.input[0]
        for node in proto.graph.node
        if node.name.endswith(".product") and node.op_type == "MatMul"
    }
    inputs = {module: inputs[module] for module in modules}
    scanned = scan_channels(proto, tuple(dict.fromkeys(inputs.values())), _one_by_one(rows))
    centres: dict[str, Array] = {}
    centre_of: dict[str, Array] = {}
    for state in states_of(model.arch) if len(rows) >= _MANY_ROWS else ():
        readers = [reader for reader in state.readers if reader in inputs]
        if readers:
            # What reads a part of the tokens has a part of the range.
            low = np.min([scanned[inputs[reader]].low.min(axis=0) for reader in readers], axis=0)
            high = np.max([scanned[inputs[reader]].high.max(axis=0) for reader in readers], axis=0)
            centres[state.writer] = (low + high) / 2
            centre_of |= dict.fromkeys(readers, centres[state.writer])
    ranges = {
        module: _range(scanned[name], centre_of.get(module)) for module, name in inputs.items()
    }
    return centres, ranges


def _range(channels: Extremes, centre: Array | None) -> Range:
    """All but the most extreme rows: one outlier would coarsen the steps of every other value."""
    middle = np.float32(0.0) if centre is None else centre
    lows = (channels.low - middle).min(axis=1)  # (inputs,)
    highs = (channels.high - middle).max(axis=1)
    kept = KEPT_ROWS if len(lows) >= _MANY_ROWS else 1.0
    return float(np.quantile(lows, 1.0 - kept)), float(np.quantile(highs, kept))


def _exact_graph(model: CofiPreTrainedModel) -> onnx.ModelProto:
    return onnx_from_model(model, opset=_OPSET, numerics=FP32)


def _one_by_one(rows: Sequence[Row]) -> Iterator[Inputs]:
    return (batch_of([row]) for row in rows)
