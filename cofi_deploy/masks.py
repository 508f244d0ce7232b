"""`Masks`: one value in [0, 1] for everything that can be pruned; zero means gone.

Gates (train/gates.py) sample them or fix them, the model (encoder.py) computes under them, and
`train/cut.py` folds them into the weights for good.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.errors import CheckpointError

FAMILIES = ("hidden", "heads", "ffn", "attn_block", "ffn_block")


@dataclass(frozen=True, eq=False)
class Masks:
    """The five mask families of CoFi (Xia et al. 2022, Fig. 1)."""

    hidden: Float[Tensor, " hidden"]
    heads: Float[Tensor, "layers heads"]
    ffn: Float[Tensor, "layers ffn"]
    attn_block: Float[Tensor, " layers"]
    ffn_block: Float[Tensor, " layers"]

    @classmethod
    def ones(cls, shape: DenseShape, device: torch.device | str = "cpu") -> Masks:
        """Masks that prune nothing."""
        return cls(
            **{name: torch.ones(size, device=device) for name, size in mask_shapes(shape).items()}
        )

    def detach(self) -> Masks:
        """The same values, cut off from autograd."""
        return Masks(**{field.name: getattr(self, field.name).detach() for field in fields(self)})

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def kept_heads(self, layer: int) -> list[int]:
        """Heads of ``layer`` that survive, its own switch included."""
        return _nonzero(self.heads[layer] * self.attn_block[layer])

    def kept_ffn(self, layer: int) -> list[int]:
        """FFN units of ``layer`` that survive, its own switch included."""
        return _nonzero(self.ffn[layer] * self.ffn_block[layer])

    def kept_hidden(self) -> list[int]:
        """Dimensions of the residual stream that survive."""
        return _nonzero(self.hidden)

    def arch(self, dense: Arch) -> Arch:
        """The `Arch` that cutting ``dense`` under these masks gives.

        Raises:
            CheckpointError: The masks have other sizes than ``dense``, or no hidden dimension.
        """
        for name, size in mask_shapes(dense.dense).items():
            got = tuple(getattr(self, name).shape)
            if got != size:
                raise CheckpointError(f"mask {name!r} has shape {got}, but the model needs {size}")
        layers = tuple(
            LayerArch(heads=len(self.kept_heads(index)), ffn=len(self.kept_ffn(index)))
            for index in range(dense.dense.layers)
        )
        return Arch(
            **{
                **{field.name: getattr(dense, field.name) for field in fields(dense)},
                "hidden": len(self.kept_hidden()),
                "layers": layers,
            }
        )


def mask_shapes(shape: DenseShape) -> dict[str, tuple[int, ...]]:
    """Tensor shape of each mask family."""
    return {
        "hidden": (shape.hidden,),
        "heads": (shape.layers, shape.heads),
        "ffn": (shape.layers, shape.ffn),
        "attn_block": (shape.layers,),
        "ffn_block": (shape.layers,),
    }


def _nonzero(values: Tensor) -> list[int]:
    kept: list[int] = values.detach().nonzero().flatten().tolist()
    return kept
