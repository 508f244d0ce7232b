"""Whether the numbers of a shrunk table of word embeddings get 6 and 2 bits at int8, or else 8.

Comes in: the model with its vocabulary cut, and the model as it was. Goes out: a choice, made on
the text that artifacts are judged on, never on the development set. Next file: `lossy.py`.
"""

from __future__ import annotations

import copy
import logging

import torch
from transformers import PreTrainedTokenizerBase

from cofi_deploy.export.graph_builder import WORDS
from cofi_deploy.export.parity import Inputs, Outputs, torch_outputs
from cofi_deploy.export.quantized import fine_and_coarse, numbers_of_codes
from cofi_deploy.export.text_parity import MAX_METRIC_DROP, Yardstick, measure_on_text
from cofi_deploy.exports import TextParity
from cofi_deploy.model import CofiPreTrainedModel

logger = logging.getLogger(__name__)


def choose_fine_words(
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    yardstick: Yardstick,
    frequent: int,
) -> int | None:
    """``frequent`` where 6 bits for so many rows and 2 for the others will do, else None.

    They do if the cut and the rounding together lose no more than half a point. All else is fp32
    here, so that the rounding of other weights neither hides nor adds a loss. No allowance for
    chance: where the text leaves it open, the larger table is taken.

    Args:
        model: With the cut vocabulary; it stays as it is.
        tokenizer: With the cut vocabulary.
        yardstick: Text, and what the loss is counted from.
        frequent: How many rows, the first ones, are of pieces that the text needs or that are
            common.

    Raises:
        DataError: The task's data is missing or unusable.

    Source:
        Measured on SST-2's and MRPC's development sets (MiniLM at 95 %), the mean difference of a
        logit from that of the whole table: 0.045 and 0.044, of which the cut 0.017 and 0.009. In
        as many bytes: 4 bits for all rows 0.091 and 0.092; 5 bits for two thirds of the vocabulary
        0.075 and 0.062, 6 and 4 bits for two thirds 0.057 and 0.049.
    """
    rounded = with_rounded_words(model, frequent)

    def infer(inputs: Inputs) -> Outputs:
        return torch_outputs(rounded, inputs)

    parity = measure_on_text(infer, tokenizer, yardstick, "int8")
    is_right = _loss(parity) <= MAX_METRIC_DROP + 1e-9
    logger.info(
        "word embeddings at %s bits: with 6 and 2, %.1f %% are lost on %s",
        "6 and 2" if is_right else "8",
        100 * _loss(parity),
        parity.source,
    )
    return frequent if is_right else None


def _loss(parity: TextParity) -> float:
    """Drop of the metric; without labels, the predictions that change, which bound it."""
    if parity.metric is None or parity.metric_pytorch is None:
        return 1.0 - parity.agreement
    return parity.metric_pytorch - parity.metric


def with_rounded_words(model: CofiPreTrainedModel, fine_words: int | None) -> CofiPreTrainedModel:
    """A copy that computes with rows of 6 and 2 bits; the model itself where there are none."""
    if fine_words is None:
        return model
    small = copy.deepcopy(model)
    table = small.state_dict()[WORDS]
    table.copy_(torch.from_numpy(numbers_of_codes(*fine_and_coarse(table.numpy(), fine_words))))
    return small
