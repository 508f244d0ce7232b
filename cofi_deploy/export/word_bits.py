"""How many bits each number of a shrunk table of word embeddings gets at int8: 4, or else 8.

Comes in: the model with its vocabulary cut, and the model as it was. Goes out: a choice, made on
the text that artifacts are judged on, never on the development set. Next file: `lossy.py`.
"""

from __future__ import annotations

import copy
import logging

import torch
from transformers import PreTrainedTokenizerBase

from cofi_deploy.export.graph_builder import WORDS
from cofi_deploy.export.numerics import WordBits
from cofi_deploy.export.parity import (
    RELATIVE_TOLERANCE,
    TOLERANCE,
    Inputs,
    Outputs,
    batch_of,
    encode_sentences,
    largest_difference,
    largest_value,
    torch_outputs,
)
from cofi_deploy.export.quantized import nibbles, numbers_of_nibbles
from cofi_deploy.export.text_parity import MAX_METRIC_DROP, Yardstick, measure_on_text
from cofi_deploy.exports import TextParity
from cofi_deploy.model import CofiPreTrainedModel

logger = logging.getLogger(__name__)

# Of what an int8 export may differ on the built-in sentences; all other roundings share the rest.
# On MRPC at 95 % words of 4 bits alone made a difference of 0.52 where 0.4 is allowed, and with 8
# bits all of them together one of 0.06.
_SHARE = 0.75


def choose_word_bits(
    model: CofiPreTrainedModel, tokenizer: PreTrainedTokenizerBase, yardstick: Yardstick
) -> WordBits:
    """4 where the cut and the rounding together lose no more than half a point, else 8.

    8 as well where 4 would move a logit so far that the export would be refused.

    All else is fp32 here, so that the rounding of other weights neither hides nor adds a loss. No
    allowance for chance: where the text leaves it open, the larger table is taken.

    Args:
        model: With the cut vocabulary; it stays as it is.
        tokenizer: With the cut vocabulary.
        yardstick: Text, and what the loss is counted from.

    Raises:
        DataError: The task's data is missing or unusable.
    """
    rounded = _rounded(model)

    def infer(inputs: Inputs) -> Outputs:
        return torch_outputs(rounded, inputs)

    parity = measure_on_text(infer, tokenizer, yardstick, "int8")
    is_right = _loss(parity) <= MAX_METRIC_DROP + 1e-9 and _stays_close(model, rounded, tokenizer)
    bits: WordBits = 4 if is_right else 8
    logger.info(
        "word embeddings at %d bits: with 4, %.1f %% are lost on %s",
        bits,
        100 * _loss(parity),
        parity.source,
    )
    return bits


def _stays_close(
    model: CofiPreTrainedModel, rounded: CofiPreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> bool:
    batches = [batch_of([row]) for row in encode_sentences(tokenizer, model.arch)]
    before = [torch_outputs(model, batch) for batch in batches]
    after = [torch_outputs(rounded, batch) for batch in batches]
    allowed = max(TOLERANCE["int8"], RELATIVE_TOLERANCE["int8"] * largest_value(before))
    return largest_difference(before, after) <= _SHARE * allowed


def _loss(parity: TextParity) -> float:
    """Drop of the metric; without labels, the predictions that change, which bound it."""
    if parity.metric is None or parity.metric_pytorch is None:
        return 1.0 - parity.agreement
    return parity.metric_pytorch - parity.metric


def _rounded(model: CofiPreTrainedModel) -> CofiPreTrainedModel:
    """A copy that computes with rows of 4 bits."""
    small = copy.deepcopy(model)
    table = small.state_dict()[WORDS]
    packed, scales = nibbles(table.numpy())
    table.copy_(torch.from_numpy(numbers_of_nibbles(packed, scales, table.shape[1])))
    return small
