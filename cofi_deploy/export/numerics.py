"""In which numbers a graph is stored and computed: what `graph.py` is told.

Decided in `lossy.py` from the weights and from what real text does to the model; the builder of
nodes, `graph_builder.py`, obeys it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy.typing as npt

from cofi_deploy.errors import ConfigError, did_you_mean
from cofi_deploy.export.quantized import Range
from cofi_deploy.export.word_codes import WordCodes

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Computed = Literal["fp32", "fp16", "bf16"]
WordsUnpacked = Literal["at load", "when picked"]


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The numbers of one graph.

    ``fp32``: all of it. ``fp16``: matrix products and activations are half precision. ``bf16``:
    weights are stored in half the space and computed on in fp32. ``int8``: tables of embeddings
    are stored as bytes with one scale for each row (token types, of which there are two, as fp16),
    and the products named in ``int8`` are computed on bytes. LayerNorm, the task's head and the
    outputs are fp32 in each of them.

    Strongly typed runtimes compute in the types that a graph has, and on bytes only where weights
    are: there bf16 is what is computed in, and int8 is an fp16 graph in which the products named
    in ``int8`` store their weights as bytes.

    Attributes:
        precision: See above.
        fp32_sublayers: Of a graph that computes in fp16: `encoder.layers.<n>.attention`, `.ffn`
            or `encoder.embeddings` where the numbers go beyond it.
        fp32_softmax: Of an fp16 graph. Off where a runtime fuses attention in half precision.
        words: Of an int8 graph: its table of word embeddings in 6 and 2 bits. None: the model's
            own, in 8.
        words_unpacked: When rows of fewer than 8 bits become bytes. "at load": all of them, for a
            runtime that works out what depends on no input when it opens a file. "when picked":
            the rows of each text, for a converter that would write all of them as bytes.
        int8: Names of linear maps; each with the range of its input, or None to find the range
            of every batch at run time.
        centres: Of states, by the names of their writers; see `centring.py`. The ranges in
            ``int8`` are those of the states without them.
        strongly_typed: See above.
        merge_biases: See `fewer_operations.py`. States are then others than the model's: ranges
            and ``centres`` do not fit them.
    """

    precision: Precision = "fp32"
    fp32_sublayers: frozenset[str] = frozenset()
    fp32_softmax: bool = False
    words: WordCodes | None = None
    words_unpacked: WordsUnpacked = "at load"
    int8: Mapping[str, Range | None] = field(default_factory=lambda: MappingProxyType({}))
    centres: Mapping[str, npt.NDArray[Any]] = field(default_factory=lambda: MappingProxyType({}))
    strongly_typed: bool = False
    merge_biases: bool = False

    @property
    def computed(self) -> Computed:
        """What most of the graph is computed in."""
        if self.strongly_typed and self.precision == "int8":
            return "fp16"
        if self.precision == "fp16" or (self.strongly_typed and self.precision == "bf16"):
            return self.precision
        return "fp32"

    @property
    def joins_tables(self) -> bool:
        """Whether the runtime is to make one table of two when it opens the file."""
        return self.precision == "fp32" and self.merge_biases and self.words_unpacked == "at load"

    def to_json(self) -> dict[str, Any]:
        """What `export.json` says beyond the name of the precision."""
        if self.precision == "fp16":
            return {"fp32_sublayers": sorted(self.fp32_sublayers)}
        if self.precision == "int8" and self.strongly_typed:
            return {
                "int8_products": len(self.int8),
                "int8_activations": "fp16",
                "fp32_sublayers": sorted(self.fp32_sublayers),
            }
        if self.precision != "int8":
            return {}
        bits = {"word_bits": 8} if self.words is None else {"word_bits": 6, "rare_word_bits": 2}
        stored = {"int8_products": len(self.int8), **bits}
        if not self.int8:
            return stored
        is_static = None not in self.int8.values()
        return {**stored, "int8_activations": "static" if is_static else "dynamic"}


FP32 = Numerics()


def check_precision(precision: str) -> None:
    """Refuse a name that is none of ours.

    Raises:
        ConfigError: Names those that are allowed, and the nearest.
    """
    problem = precision_problem(precision)
    if problem is not None:
        raise ConfigError(problem)


def precision_problem(precision: str) -> str | None:
    """What is wrong with a name that is none of ours; None where it is one."""
    if precision in PRECISIONS:
        return None
    return f"precision is {precision!r}, {did_you_mean(precision, PRECISIONS)}"
