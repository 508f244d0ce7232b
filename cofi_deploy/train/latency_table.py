"""`LatencyTable`: milliseconds by kept size, and the `Cost` of a speedup that follows from it.

Comes in: what `api/latency_tables.py` measured at one operating point. Goes out: the time of any
structure, expected under keep probabilities or of fixed masks. A sublayer of size 0 costs nothing,
one with a single unit what it always costs (LayerNorm, launches). Next file: `projection.py`.

Source: per-layer latency tables: ZipLM, arXiv:2302.04089. That behind the last attention a graph
computes the first token alone (`export/graph.py`), and the expectation over it, are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cofi_deploy.arch import DenseShape
from cofi_deploy.errors import ArtifactError
from cofi_deploy.masks import Masks
from cofi_deploy.train.cost import Number, alive, alive_blocks

TOLERANCE = 0.05  # product.md: within 5 % of the speedup

Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SublayerTable:
    """Milliseconds of one attention or FFN sublayer.

    Attributes:
        sizes: Heads or FFN units, ascending, from 1 to those of the dense model.
        all_ms: (hidden, sizes), where every token is computed.
        first_ms: The same where the sublayer hands on the first token alone.
    """

    sizes: tuple[int, ...]
    all_ms: Grid
    first_ms: Grid

    def monotone(self) -> SublayerTable:
        """Without what noise alone can do: more that costs less, and a first token beyond all."""
        everything = monotone(np.asarray(self.all_ms))
        first = np.minimum(monotone(np.asarray(self.first_ms)), everything)
        return dataclasses.replace(self, all_ms=_grid(everything), first_ms=_grid(first))


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What one batch takes, by kept sizes, at one operating point.

    Attributes:
        point: As typed: `onnxruntime-cpu@1x128`.
        threads: Of one inference.
        key: Everything that the times depend on; a table with another key does not count.
        hidden: Widths of the residual stream, ascending, up to that of the dense model.
        base_ms: At each of them, of a model without sublayers: embeddings, head, the call.
        dense_ms: Of the whole dense model.
        scale: Times the sum of the sublayers: whole models against the table.
        notes: For people: what it was measured under, and how well it foretold whole models.
    """

    point: str
    threads: int
    key: Mapping[str, Any]
    hidden: tuple[int, ...]
    base_ms: tuple[float, ...]
    attention: SublayerTable
    ffn: SublayerTable
    dense_ms: float
    scale: float = 1.0
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """What `to_json` gave.

        Raises:
            ArtifactError: A missing or unknown entry.
        """
        values = {key: value for key, value in data.items() if key != "schema_version"}
        try:
            for name in ("attention", "ffn"):
                table = values[name]
                values[name] = SublayerTable(
                    sizes=tuple(table["sizes"]),
                    all_ms=_grid(np.asarray(table["all_ms"])),
                    first_ms=_grid(np.asarray(table["first_ms"])),
                )
            for name in ("hidden", "base_ms"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"the latency table has a missing or unknown entry: {error}; remove its file, and "
                "it is measured again"
            ) from error


@dataclass(frozen=True)
class LatencyCost:
    """The `Cost` of a speedup: milliseconds, as a table foretells them."""

    table: LatencyTable
    shape: DenseShape
    name = "speedup"

    @property
    def total(self) -> float:
        """Milliseconds of the dense model."""
        return self.table.dense_ms

    def value(self, share: Number) -> Number:
        """How many times faster a model is that saves this share of the time."""
        faster: Number = 1.0 / (1.0 - share)
        return faster

    def tolerance(self, target: float) -> float:
        """Five percent of the speedup, as a share of the dense time."""
        return TOLERANCE * (1.0 - target)

    def expected(self, probabilities: Masks) -> Float[Tensor, ""]:
        """Milliseconds at the expected sizes; gates are independent, so means multiply."""
        hidden = probabilities.hidden.sum()
        attention_on = alive_blocks(probabilities.heads, probabilities.attn_block)  # (layers,)
        ffn_on = alive_blocks(probabilities.ffn, probabilities.ffn_block)
        heads = _size_if_any(probabilities.heads)
        units = _size_if_any(probabilities.ffn)
        # P(no attention follows): the layer's sublayers hand on the first token alone.
        ends = torch.cat([(1.0 - attention_on).flip(0).cumprod(0).flip(0)[1:], hidden.new_ones(1)])
        layers = attention_on * self._sublayers_ms(self.table.attention, hidden, heads, ends)
        layers = layers + ffn_on * self._sublayers_ms(self.table.ffn, hidden, units, ends)
        at = _place(self.table.hidden, hidden)
        base = _between(hidden.new_tensor(self.table.base_ms), at)
        return self.table.scale * (base + layers.sum())

    def kept(self, masks: Masks) -> float:
        """Milliseconds of the model that cutting under ``masks`` leaves."""
        with torch.no_grad():
            return float(self.expected(alive(masks)))

    def corrected(self, factor: float) -> LatencyCost:
        """The same, foretelling ``factor`` times as many milliseconds."""
        table = dataclasses.replace(self.table, scale=self.table.scale * factor)
        return dataclasses.replace(self, table=table)

    def _sublayers_ms(
        self, table: SublayerTable, hidden: Tensor, sizes: Tensor, ends: Tensor
    ) -> Float[Tensor, " layers"]:
        """Milliseconds of one kind of sublayer in every layer, where it is there."""
        at_hidden, at_size = _place(self.table.hidden, hidden), _place(table.sizes, sizes)

        def looked_up(grid: Grid) -> Tensor:
            rows = hidden.new_tensor(grid)  # (hidden, sizes)
            return _between(_between(rows, at_hidden), at_size)

        return (1.0 - ends) * looked_up(table.all_ms) + ends * looked_up(table.first_ms)


def monotone(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest simple table that is above 0 and never falls along any axis.

    Midway between the running maximum from below and the running minimum from above: a table that
    is monotone already stays as it is, and noise neither adds to it nor takes from it.
    """
    values = np.maximum(values, 0.0)
    for axis in range(values.ndim):
        flipped = np.flip(values, axis)
        from_above = np.flip(np.minimum.accumulate(flipped, axis), axis)
        values = (np.maximum.accumulate(values, axis) + from_above) / 2.0
    return values


def _grid(values: npt.NDArray[np.float64]) -> Grid:
    return tuple(tuple(float(value) for value in row) for row in values)


def _size_if_any(units: Float[Tensor, "layers units"]) -> Float[Tensor, " layers"]:
    """Expected number of units in a sublayer that has at least one."""
    some = 1.0 - (1.0 - units).prod(dim=-1)
    return units.sum(dim=-1) / some.clamp(min=1e-6)


_Place = tuple[Tensor, Tensor]  # index of the grid point below, and the share of the way up


def _place(grid: tuple[int, ...], size: Tensor) -> _Place:
    """Where ``size`` lies between the points of a grid; beyond its ends it is at the end."""
    points = size.new_tensor(grid)
    size = size.clamp(points[0], points[-1])
    below = torch.searchsorted(points, size.detach().contiguous(), right=True) - 1
    below = below.clamp(min=0, max=max(0, len(grid) - 2))
    if len(grid) == 1:
        return below, torch.zeros_like(size)
    step = points[below + 1] - points[below]
    return below, (size - points[below]) / step


def _between(values: Tensor, place: _Place) -> Tensor:
    """Linear interpolation along the first axis: one row, or one number for each place."""
    below, way = place
    above = (below + 1).clamp(max=len(values) - 1)
    return values[below] + way * (values[above] - values[below])
