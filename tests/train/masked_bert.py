"""The oracle: a masked BERT written literally from the paper's forward pass, shared with nothing.

Dense weights, multiplied by masks; LayerNorm over the kept dimensions only; float64; one loop per
layer and head. A sublayer whose units or whose switch are all zero is the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cofi_deploy.arch import Arch
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}


def masked_outputs(
    model: CofiPreTrainedModel, inputs: dict[str, Tensor], masks: Masks
) -> dict[str, Tensor]:
    """Named outputs of the dense ``model`` under ``masks``."""
    states = masked_states(model, inputs, masks)
    weights = {name: value.double() for name, value in model.named_parameters()}
    last = states[-1]
    if model.kind in {"text-classification", "text-regression"}:
        pooled = last[:, 0] @ weights["pooler.weight"].T + weights["pooler.bias"]
        pooled = ACTIVATIONS[model.arch.pooler_activation](pooled)
        return {"logits": pooled @ weights["classifier.weight"].T + weights["classifier.bias"]}
    logits = last @ weights["classifier.weight"].T + weights["classifier.bias"]
    if model.kind == "question-answering":
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    return {"logits": logits}


def masked_states(
    model: CofiPreTrainedModel, inputs: dict[str, Tensor], masks: Masks
) -> list[Tensor]:
    """Embeddings and each layer's output, all hidden dimensions, dead ones zero."""
    weights = {name: value.double() for name, value in model.named_parameters()}
    arch = model.arch
    z = masks.hidden.double()

    def norm(x: Tensor, prefix: str) -> Tensor:
        weight, bias = weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]
        kept = [index for index in range(arch.hidden) if z[index] != 0]
        part = x[..., kept]
        centred = part - part.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + arch.layer_norm_eps)
        full = torch.zeros_like(x)
        full[..., kept] = scaled * weight[kept] + bias[kept]
        return full * z

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = _tables(weights, inputs, arch)
    if arch.embedding is None:
        x = norm(x * z, "encoder.embeddings.norm")
    else:
        x = linear(x, "encoder.embeddings.project") * z
    states = [x]
    for index in range(len(arch.layers)):
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.ffn"
        heads, units = masks.heads[index].double(), masks.ffn[index].double()
        if masks.attn_block[index] != 0 and bool((heads != 0).any()):
            context = []
            for head in range(arch.dense.heads):
                columns = slice(head * arch.head_size, (head + 1) * arch.head_size)
                query = linear(x, f"{attention}.query")[..., columns]
                key = linear(x, f"{attention}.key")[..., columns]
                value = linear(x, f"{attention}.value")[..., columns]
                scores = query @ key.transpose(1, 2) / math.sqrt(arch.head_size)
                padding = inputs["attention_mask"][:, None, :] == 0
                shares = torch.softmax(scores.masked_fill(padding, -math.inf), dim=-1)
                context.append(shares @ value * heads[head])
            out = linear(torch.cat(context, dim=-1), f"{attention}.output")
            out = out * masks.attn_block[index].double() * z
            x = norm(out + x, f"{attention}.norm")
        if masks.ffn_block[index] != 0 and bool((units != 0).any()):
            inner = ACTIVATIONS[arch.activation](linear(x, f"{ffn}.up")) * units
            out = linear(inner, f"{ffn}.down") * masks.ffn_block[index].double() * z
            x = norm(out + x, f"{ffn}.norm")
        states.append(x)
    return states


def _tables(weights: dict[str, Tensor], inputs: dict[str, Tensor], arch: Arch) -> Tensor:
    """Sum of what is looked up; with its LayerNorm where a projection follows."""
    table, ids = "encoder.embeddings", inputs["input_ids"]
    x = weights[f"{table}.word.weight"][ids]
    if arch.type_vocab_size > 0:
        types = inputs["token_type_ids"] if arch.type_vocab_size > 1 else ids * 0
        x = x + weights[f"{table}.token_type.weight"][types]
    x = x + weights[f"{table}.position.weight"][_positions(ids, arch)]
    if arch.embedding is None:
        return x
    weight, bias = weights[f"{table}.norm.weight"], weights[f"{table}.norm.bias"]
    return torch.nn.functional.layer_norm(x, (arch.embedding,), weight, bias, arch.layer_norm_eps)


def _positions(ids: Tensor, arch: Arch) -> Tensor:
    """Row of the position table of every token, one after the other."""
    rows = []
    for sequence in ids.tolist():
        seen = 0
        row = []
        for place, token in enumerate(sequence):
            if arch.position_offset == 0:
                row.append(place)
            elif token == arch.pad_token_id:
                row.append(arch.pad_token_id)
            else:
                row.append(arch.pad_token_id + 1 + seen)
                seen += 1
        rows.append(row)
    return torch.tensor(rows)
