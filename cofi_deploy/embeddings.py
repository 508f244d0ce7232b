"""Token ids to the states that the first layer reads, for every family and under masks.

Word + position + token type, LayerNorm, and for ELECTRA a map into the residual stream; which of
these there are, the `Arch` says. Next file: `encoder.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cofi_deploy.arch import Arch
from cofi_deploy.folding import Kept, NormWeights, fold_columns, fold_norm, fold_rows


class Embeddings(nn.Module):
    """The tables of an `Arch` and what follows them."""

    def __init__(self, arch: Arch, dropout: float) -> None:
        """Tables as wide as the kept residual stream, or as the embedding where it has a width."""
        super().__init__()
        width, types = arch.embedding_width, arch.type_vocab_size
        self.position_offset = arch.position_offset
        self.word = nn.Embedding(arch.vocab_size, width, padding_idx=arch.pad_token_id)
        self.position = nn.Embedding(arch.position_rows, width)
        self.token_type = nn.Embedding(types, width) if types else None
        self.norm = nn.LayerNorm(width, eps=arch.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.project = None if arch.embedding is None else nn.Linear(width, arch.hidden)

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        token_type_ids: Int[Tensor, "batch sequence"],
        kept: Kept | None,
    ) -> Float[Tensor, "batch sequence kept_hidden"]:
        """States of the tokens, on the kept dimensions."""
        x = self._sum(input_ids, token_type_ids)
        if self.project is not None:
            return self._project(self.project, self.dropout(self.norm(x)), kept)
        if kept is None:
            return self.dropout(self.norm(x))  # type: ignore[no-any-return]
        weight, bias = fold_norm(NormWeights(self.norm.weight, self.norm.bias), kept)
        x = fold_columns(x, kept)
        return self.dropout(F.layer_norm(x, (x.shape[-1],), weight, bias, self.norm.eps))  # type: ignore[no-any-return]

    def _sum(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        x: Tensor = self.word(input_ids)
        if self.token_type is not None and self.token_type.num_embeddings == 1:
            x = x + self.token_type.weight[0]
        elif self.token_type is not None:
            x = x + self.token_type(token_type_ids)
        return x + self.position(position_ids(input_ids, self.position_offset))  # type: ignore[no-any-return]

    def _project(self, project: nn.Linear, x: Tensor, kept: Kept | None) -> Tensor:
        if kept is None:
            return project(x)  # type: ignore[no-any-return]
        return F.linear(x, *fold_rows(project.weight, project.bias, kept))


def position_ids(input_ids: Int[Tensor, "batch sequence"], offset: int) -> Int[Tensor, ...]:
    """Rows of the position table: (sequence,) for offset 0, else (batch, sequence).

    With an offset, the tokens that are no padding are counted from there on, and padding, whose
    id is ``offset - 1``, reads the row of that number.

    Source:
        fairseq's make_positions, which RoBERTa was trained with.
    """
    if not offset:
        return torch.arange(input_ids.shape[1], device=input_ids.device)
    padding = offset - 1
    counted = (input_ids != padding).long()
    return counted.cumsum(dim=1) * counted + padding
