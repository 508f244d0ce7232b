"""`GraphBuilder`: nodes and initializers of an ONNX graph, in the numbers that were decided on.

`graph.py` says what is computed, `numerics.py` in which numbers; here the two meet, so that the
description of the network knows nothing of casts, scales and zero points.

Weights of linear maps are stored transposed, (in, out), because MatMul takes them that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cofi_deploy.export.numerics import Computed, Numerics
from cofi_deploy.export.quantized import (
    Array,
    Range,
    affine,
    bfloat16_bits,
    columns_of,
    quantized,
    quantized_matrix,
)
from cofi_deploy.export.word_codes import CODE_ZERO, WordCodes, packed

# Adds the node that takes rows out of a table: (table, name of the rows) -> name of the rows.
Pick = Callable[[str, str], str]
# `Pick` for a table that ends with a certain row, which stands for all that would be behind it.
PickUpTo = Callable[[int], Pick]

_DTYPES: dict[Computed, Any] = {"fp32": np.float32, "fp16": np.float16}  # numpy has no bf16
_ONNX_TYPES: dict[Computed, int] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
WORDS = "encoder.embeddings.word.weight"
TYPES = "encoder.embeddings.token_type.weight"


class GraphBuilder:
    """Collects nodes and initializers; each method returns the name of the tensor it adds."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        *,
        opset: int,
        numerics: Numerics,
        one_text: bool = False,
    ) -> None:
        """Take fp32 weights by their names.

        Where ``one_text``, inputs of `linear` are matrices, and no product is of bytes.
        """
        self.weights = weights
        self.opset = opset
        self.numerics = numerics
        self.one_text = one_text
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._usual: Computed = numerics.computed
        self._computed: Computed = self._usual
        self._is_exact = False
        self._tensors: set[str] = set()
        self._sublayer = ""

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        """What is added inside is stored and computed in fp32."""
        before = self._computed, self._is_exact
        self._computed, self._is_exact = "fp32", True
        try:
            yield
        finally:
            self._computed, self._is_exact = before

    @contextmanager
    def sublayer(self, name: str) -> Iterator[None]:
        """Nodes added inside are named for it, and compute in fp32 where ``name`` is listed."""
        before, self._sublayer = self._sublayer, name
        is_listed = name in self.numerics.fp32_sublayers
        try:
            with self.in_fp32() if is_listed else nullcontext():
                yield
        finally:
            self._sublayer = before

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, the tensor ``name``.

        The node is called so, too. Conversions of what another sublayer hands over have that
        one's tensor in their name: the sublayer that asks for them is then put in front, because
        profiles say by the names of nodes what time is spent on.
        """
        self._add(op, inputs, [name], name, **attributes)
        return name

    def once(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node, unless it is there already."""
        if name in self._tensors:
            return name
        self._tensors.add(name)
        return self.node(op, inputs, name, **attributes)

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer; the same name must stand for the same value."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def number(self, name: str, value: float) -> str:
        """A scalar of the precision that is computed in."""
        own_name = name if self._computed == self._usual else f"{name}_{self._computed}"
        return self._in_computed(own_name, np.asarray(value))

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A list of int64, for axes and shapes."""
        return self.constant(name, np.asarray(values, dtype=np.int64))

    def integer(self, name: str, value: int) -> str:
        """One int64."""
        return self.constant(name, np.asarray(value, dtype=np.int64))

    def parameter(self, name: str, *, transpose: bool = False) -> str:
        """A weight of the model under its own name, in the precision that is computed in."""
        value = self.weights[name].T if transpose else self.weights[name]
        return self._in_computed(name, value)

    def rows(
        self,
        name: str,
        pick: Pick,
        output: str,
        *,
        plus: str | None = None,
        pick_up_to: PickUpTo | None = None,
    ) -> str:
        """Rows of a table of embeddings, by ``pick(table, output)``, as numbers to compute with.

        Rows of fewer bits are picked first and become numbers afterwards, so that the table stays
        as small in memory as on the disk; of fewer than 8 they are bytes in memory.

        Args:
            name: Of the table.
            pick: Adds the node that takes rows out of a table.
            output: Name of the result.
            plus: A parameter of one row that is added to all of them.
            pick_up_to: For a table whose last rows may have fewer bits than its first.
        """
        if self.numerics.precision == "fp32" or self._usual != "fp32":
            table = self.parameter(name)
            if plus is not None:
                # A sum of two constants, which runtimes work out when they open the file.
                table = self.node("Add", [table, self.parameter(plus)], f"{output}.table")
            return pick(table, output)
        stored = output if plus is None else f"{output}.stored"
        numbers = self._numbers_of_rows(name, pick, stored, pick_up_to)
        if plus is None:
            return numbers
        return self.node("Add", [numbers, self.parameter(plus)], output)

    def _numbers_of_rows(
        self, name: str, pick: Pick, output: str, pick_up_to: PickUpTo | None
    ) -> str:
        if self.numerics.precision == "bf16":
            stored = self._bfloat16(name, self.weights[name])
            return self.node("Cast", [pick(stored, f"{output}.bf16")], output, to=TensorProto.FLOAT)
        if name == TYPES:
            # A few rows, one of which is in every token: too small to save on.
            half = self.constant(name, self.weights[name].astype(np.float16))
            return self.node("Cast", [pick(half, f"{output}.fp16")], output, to=TensorProto.FLOAT)
        if pick_up_to is not None and self.numerics.words is not None:
            return self._numbers_of_codes(name, self.numerics.words, pick, pick_up_to, output)
        table = self.weights[name].astype(np.float32)
        if name == WORDS:
            return self._numbers_of_bytes(name, table, pick, output)
        # The first position, which a classifier reads, has numbers ten times those of the others,
        # in a few columns: with scales of their own these do not coarsen the rest of the row.
        columns = columns_of(table)
        numbers = self._numbers_of_bytes(name, table / columns, pick, f"{output}.of_columns")
        return self.node("Mul", [numbers, self.constant(f"columns.{name}", columns)], output)

    def _numbers_of_bytes(self, name: str, table: Array, pick: Pick, output: str) -> str:
        rows, scales = quantized(table, axis=1)
        picked = pick(self.constant(name, rows), f"{output}.int8")
        numbers = self.node("Cast", [picked], f"{output}.numbers", to=TensorProto.FLOAT)
        scale = pick(self.constant(f"scales.{name}", scales), f"{output}.scales")
        return self.node("Mul", [numbers, scale], output)

    def _numbers_of_codes(
        self, name: str, words: WordCodes, pick: Pick, pick_up_to: PickUpTo, output: str
    ) -> str:
        """Two tables: the 2 highest bits of every row, and the 4 others of fine rows.

        The second has one row more, of what the other rows have in place of bits of their own.
        """
        codes, fine = words.codes, words.fine
        width = codes.shape[1]
        fine_codes = np.vstack([codes[:fine] & 15, np.full((1, width), 8, dtype=np.uint8)])
        high_bits = self.constant(name, packed(codes >> 4, 2))
        low_bits = self.constant(f"fine.{name}", packed(fine_codes, 4))
        if self.numerics.words_unpacked == "at load":
            high = pick(self._shifted(high_bits, 2, width), f"{output}.high.codes")
            low = pick_up_to(fine)(self._shifted(low_bits, 4, width), f"{output}.low.codes")
            step = self.constant("high_step", np.asarray(16.0, dtype=np.float32))
            zero = self.constant("high_zero", np.asarray(CODE_ZERO // 16, dtype=np.uint8))
            # Cast, Mul and Sub in one.
            high = self.node("DequantizeLinear", [high, step, zero], f"{output}.high")
            low = self.node("Cast", [low], f"{output}.low", to=TensorProto.FLOAT)
        else:
            high = self._divided(pick(high_bits, f"{output}.high.packed"), 2, width)
            high = self.node("Mul", [high, self.number("sixteen", 16.0)], f"{output}.high.scaled")
            zero = self.number("code_zero", float(CODE_ZERO))
            high = self.node("Sub", [high, zero], f"{output}.high")
            low = self._divided(pick_up_to(fine)(low_bits, f"{output}.low.packed"), 4, width)
        numbers = self.node("Add", [high, low], f"{output}.numbers")
        scale = pick(self.constant(f"scales.{name}", words.scales), f"{output}.scales")
        return self.node("Mul", [numbers, scale], output)

    def _shifted(self, x: str, bits: int, width: int) -> str:
        """Bytes of `packed` as the codes in them, in bytes: for constants, in ONNX Runtime.

        Not for OpenVINO, which computes BitShift in fp32, and rounds.
        """
        parts = []
        for index in range(8 // bits):
            part, above = f"{x}.{index}", 8 - bits * (index + 1)
            shifted = x
            if above:
                left = self.constant(f"shift_{above}", np.asarray(above, dtype=np.uint8))
                shifted = self.node("BitShift", [x, left], f"{part}.left", direction="LEFT")
            right = self.constant(f"shift_{8 - bits}", np.asarray(8 - bits, dtype=np.uint8))
            parts.append(self.node("BitShift", [shifted, right], part, direction="RIGHT"))
        return self._side_by_side(parts, x, bits, width)

    def _divided(self, x: str, bits: int, width: int) -> str:
        """Bytes of `packed` as the codes in them, in fp32 arithmetic that every runtime has."""
        base = self.number(f"base_{bits}", 2.0**bits)
        rest = self.node("Cast", [x], f"{x}.numbers", to=TensorProto.FLOAT)
        parts = []
        for index in range(8 // bits - 1):
            part = f"{x}.{index}"
            quotient = self.node("Div", [rest, base], f"{part}.divided")
            quotient = self.node("Floor", [quotient], f"{part}.above")
            whole = self.node("Mul", [quotient, base], f"{part}.whole")
            parts.append(self.node("Sub", [rest, whole], part))
            rest = quotient
        return self._side_by_side([*parts, rest], x, bits, width)

    def _side_by_side(self, parts: Sequence[str], x: str, bits: int, width: int) -> str:
        """The parts of each row one after the other, without the zeros at the end."""
        codes = self.node("Concat", parts, f"{x}.codes", axis=-1)
        if width % (8 // bits) == 0:
            return codes
        ends = [self.integers("zero", [0]), self.integers("word_width", [width])]
        return self.node(
            "Slice", [codes, *ends, self.integers("last_axis", [-1])], f"{x}.codes.even"
        )

    def linear(self, x: str, module: str, *, output: str | None = None) -> str:
        """``x @ W.T + b`` over the last axis; without ``b`` where the weights have none."""
        if not self.one_text or f"{module}.bias" not in self.weights:
            return self.plus_bias(self._product(x, module), module, output=output)
        bias = self.parameter(f"{module}.bias")
        return self.node("Gemm", [x, self._map(module), bias], output or f"{module}.out")

    def linear_and_sum(self, x: str, module: str, summand: str, output: str) -> str:
        """``linear(x) + summand``, in one node where that can be."""
        if not self.one_text or f"{module}.bias" in self.weights:
            return self.node("Add", [self.linear(x, module), summand], output)
        return self.node("Gemm", [x, self._map(module), summand], output)

    def plus_bias(self, x: str, module: str, *, output: str | None = None) -> str:
        """``x + b`` of a linear map; ``x`` where the weights have none."""
        if f"{module}.bias" not in self.weights:
            return x
        bias = self.parameter(f"{module}.bias")
        return self.node("Add", [x, bias], output or f"{module}.out")

    def by_head(
        self, x: str, module: str, heads: int, *, into: Literal["inputs", "outputs"]
    ) -> str:
        """Each head's part of a linear map, without its bias.

        Args:
            x: (heads, batch, outputs of a head) or (heads, batch, inputs), as ``into`` needs.
            module: A map to the outputs of all heads, one head after the other.
            heads: How many.
            into: "outputs": the map itself; "inputs": its transpose.

        Returns:
            (heads, batch, inputs) or (heads, batch, outputs of a head).
        """
        name = f"{module}.weight"
        matrices = self.weights[name].reshape(heads, -1, self.weights[name].shape[1])
        if into == "outputs":
            matrices = matrices.transpose(0, 2, 1)
        return self.node("MatMul", [x, self._matrix(name, matrices)], f"{module}.product")

    def norm(self, x: str, module: str, eps: float) -> str:
        """LayerNorm over the last axis, always computed in fp32; gives the usual precision."""
        x = self._cast(x, "fp32", f"{module}.in_fp32", given=self._computed)
        with self.in_fp32():
            inputs = [x, self.parameter(f"{module}.weight"), self.parameter(f"{module}.bias")]
        out = self.node("LayerNormalization", inputs, f"{module}.out", axis=-1, epsilon=eps)
        return self._cast(out, self._usual, f"{module}.out_{self._usual}", given="fp32")

    def softmax(self, x: str, name: str) -> str:
        """Softmax over the last axis, in fp32 where that was decided."""
        if not self.numerics.fp32_softmax or self._computed == "fp32":
            return self.node("Softmax", [x], name, axis=-1)
        x = self._cast(x, "fp32", f"{name}.in_fp32", given=self._computed)
        out = self.node("Softmax", [x], f"{name}.fp32", axis=-1)
        return self._cast(out, self._computed, name, given="fp32")

    def enter(self, x: str) -> str:
        """``x`` of the graph's usual precision in that of this sublayer, converted once."""
        if self._computed == self._usual:
            return x
        return self.once("Cast", [x], f"{x}.{self._computed}", to=_ONNX_TYPES[self._computed])

    def leave(self, x: str) -> str:
        """``x`` of this sublayer's precision in the graph's usual one."""
        return self._cast(x, self._usual, f"{x}.{self._usual}", given=self._computed)

    def to_usual(self, x: str, name: str) -> str:
        """An integer tensor as numbers of the graph's usual precision."""
        return self.node("Cast", [x], name, to=_ONNX_TYPES[self._usual])

    def _add(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> None:
        own = name if name.startswith(self._sublayer) else f"{self._sublayer}/{name}"
        node = helper.make_node(op, list(inputs), list(outputs), name=own, **attributes)
        self.nodes.append(node)

    def _cast(self, x: str, to: Computed, name: str, *, given: Computed) -> str:
        """Change the precision, where it is another one."""
        return x if to == given else self.node("Cast", [x], name, to=_ONNX_TYPES[to])

    def _product(self, x: str, module: str) -> str:
        name, output = f"{module}.weight", f"{module}.product"
        if module in self.numerics.int8 and self.numerics.strongly_typed:
            weight = self._weight_of_bytes(name)
        elif module in self.numerics.int8:
            return self._int8_product(x, module, self.numerics.int8[module])
        else:
            weight = self._map(module)
        return self.node("MatMul", [x, weight], output)

    def _map(self, module: str) -> str:
        """The weight of a linear map, (in, out), as numbers to compute with."""
        return self._matrix(f"{module}.weight", self.weights[f"{module}.weight"].T)

    def _matrix(self, name: str, value: Array) -> str:
        """The weight ``name``, in the layout of ``value``, as numbers to compute with.

        Stored in half the space where that costs nothing, and converted when a runtime opens it.
        """
        numerics = self.numerics
        if numerics.precision == "bf16" and self._usual == "fp32" and not self._is_exact:
            stored = self._bfloat16(name, value)
        elif numerics.precision == "int8" and self._usual == "fp32" and _fits_half(value):
            stored = self.constant(name, value.astype(np.float16))
        else:
            return self._in_computed(name, value)
        return self.node("Cast", [stored], f"{name}.fp32", to=TensorProto.FLOAT)

    def _weight_of_bytes(self, name: str) -> str:
        """Signed bytes with one scale for each output, as numbers to compute with."""
        rows, scales = quantized(self.weights[name].astype(np.float32), axis=1)
        names = [
            self.constant(name, rows.T),
            self.constant(f"scales.{name}", scales[:, 0]),
            self.constant(f"zeros.{name}", np.zeros(len(scales), dtype=np.int8)),
        ]
        numbers = self.node("DequantizeLinear", names, f"{name}.numbers", axis=1)
        return self._cast(numbers, self._computed, f"{name}.{self._computed}", given="fp32")

    def _int8_product(self, x: str, module: str, limits: Range | None) -> str:
        """A product of bytes: unsigned inputs, signed weights with one scale for each output."""
        name, output = f"{module}.weight", f"{module}.product"
        rows, scales = quantized_matrix(self.weights[name].astype(np.float32))
        weight = self.constant(name, rows.T)
        scale = self.constant(f"scales.{name}", scales[:, 0])
        zeros = self.constant(f"zeros.{name}", np.zeros(len(scales), dtype=np.int8))
        if limits is None:
            return self._dynamic_product(x, (weight, scale, zeros), output)
        x = self._rounded(x, limits)
        numbers = self.node("DequantizeLinear", [weight, scale, zeros], f"{name}.numbers", axis=1)
        return self.node("MatMul", [x, numbers], output)

    def _rounded(self, x: str, limits: Range) -> str:
        """``x`` rounded to 256 steps of a fixed range; runtimes merge this with the product."""
        scale, zero = affine(limits)
        names = [self.constant(f"scales.{x}", scale), self.constant(f"zeros.{x}", zero)]
        bytes_ = self.once("QuantizeLinear", [x, *names], f"{x}.uint8")
        return self.once("DequantizeLinear", [bytes_, *names], f"{x}.rounded")

    def _dynamic_product(self, x: str, weight: tuple[str, str, str], output: str) -> str:
        """The order of operations that ONNX Runtime fuses into one."""
        matrix, scale, zeros = weight
        outputs = [f"{x}.uint8", f"{x}.scale", f"{x}.zero"]
        if outputs[0] not in self._tensors:
            self._tensors.add(outputs[0])
            self._add("DynamicQuantizeLinear", [x], outputs, f"{x}.quantized")
        inputs = [outputs[0], matrix, outputs[2], zeros]
        sums = self.node("MatMulInteger", inputs, f"{output}.sums")
        sums = self.node("Cast", [sums], f"{output}.numbers", to=TensorProto.FLOAT)
        both = self.node("Mul", [outputs[1], scale], f"{output}.scale")
        return self.node("Mul", [sums, both], output)

    def _in_computed(self, name: str, value: Array) -> str:
        """An initializer of the type that is computed in."""
        if self._computed == "bf16":
            return self._bfloat16(name, value)
        return self.constant(name, value.astype(_DTYPES[self._computed]))

    def _bfloat16(self, name: str, value: Array) -> str:
        """An initializer of the upper 16 bits of fp32 numbers, rounded to nearest, ties to even."""
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(
                name, TensorProto.BFLOAT16, value.shape, bfloat16_bits(value).tobytes(), raw=True
            )
        return name


def _fits_half(value: Array) -> bool:
    return bool(np.abs(value).max() <= np.finfo(np.float16).max)
