"""Whether the numbers of a shrunk table of word embeddings get 6 and 2 bits at int8, or else 8.

Comes in: the model with its vocabulary cut, and the model as it was. Goes out: the table in those
bits, or none, by held-out and training examples, never by the development set. Next file:
`lossy.py`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from cofi_deploy.export.calibration import Row
from cofi_deploy.export.graph_builder import WORDS
from cofi_deploy.export.parity import Inputs, Outputs, batch_of, torch_outputs
from cofi_deploy.export.quantized import Array
from cofi_deploy.export.text_parity import MAX_EXAMPLES, MAX_METRIC_DROP, Yardstick, measure_on_text
from cofi_deploy.export.word_codes import WordCodes, rounded_words
from cofi_deploy.exports import TextParity
from cofi_deploy.model import CofiPreTrainedModel

logger = logging.getLogger(__name__)


def choose_words(
    model: CofiPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    yardstick: Yardstick,
    *,
    rows: Sequence[Row],
    frequent: int,
) -> WordCodes | None:
    """The table with 6 bits for ``frequent`` rows and 2 for the others, or None if it loses much.

    The cut and the rounding together may lose half a point. All else is fp32 here, so that the
    rounding of other weights neither hides nor adds a loss. Where few examples are held out, two of
    which may be half a point, training examples count, too.

    Args:
        model: With the cut vocabulary; it stays as it is.
        tokenizer: With the cut vocabulary.
        yardstick: Text, and what the loss is counted from.
        rows: Real text with the ids of the cut vocabulary, which shows what in a row matters.
        frequent: How many rows, the first ones, are of the pieces that are most common.

    Raises:
        DataError: The task's data is missing or unusable.
    """
    table = model.state_dict()[WORDS].numpy()
    words = rounded_words(table, frequent, importance_of_words(model, rows))
    rounded = with_words(model, words)

    def infer(inputs: Inputs) -> Outputs:
        return torch_outputs(rounded, inputs)

    found = [measure_on_text(infer, tokenizer, each, "int8") for each in _with_enough(yardstick)]
    loss = sum(_loss(each) * each.examples for each in found)
    loss /= sum(each.examples for each in found)
    is_right = loss <= MAX_METRIC_DROP + 1e-9
    logger.info(
        "word embeddings at %s bits: with 6 and 2, %.1f %% are lost on %s",
        "6 and 2" if is_right else "8",
        100 * loss,
        " and ".join(each.source for each in found),
    )
    return words if is_right else None


def _with_enough(yardstick: Yardstick) -> Iterator[Yardstick]:
    yield yardstick
    if yardstick.text.task is not None and yardstick.expected.examples < MAX_EXAMPLES:
        yield replace(yardstick, split="train")


def _loss(parity: TextParity) -> float:
    """Drop of the metric; without labels, the predictions that change, which bound it."""
    if parity.metric is None or parity.metric_pytorch is None:
        return 1.0 - parity.agreement
    return parity.metric_pytorch - parity.metric


def importance_of_words(model: CofiPreTrainedModel, rows: Sequence[Row], *, seed: int = 0) -> Array:
    """By how much answers change with what is added to a word's embedding, (width, width), fp64.

    The mean over tokens of ``g @ g.T``, where ``g`` is the gradient of an answer by the embedding.
    Of each text one sum of its outputs with random signs is derived, which is in the mean square as
    much as all of them. Texts are taken one by one, so that none has padding.

    Args:
        model: It stays as it is.
        rows: Real text.
        seed: Of the signs.
    """
    signs = torch.Generator().manual_seed(seed)
    words = model.get_submodule(WORDS.removesuffix(".weight"))
    width = model.state_dict()[WORDS].shape[1]
    total, tokens = np.zeros((width, width)), 0
    found: list[torch.Tensor] = []
    hook = words.register_forward_hook(lambda *given: found.append(given[-1].requires_grad_(True)))
    try:
        for row in rows:
            inputs = {name: torch.from_numpy(each) for name, each in batch_of([row]).items()}
            with torch.enable_grad():
                outputs = model.outputs(inputs).values()
                answer = sum((_signed(output, signs).sum() for output in outputs), torch.zeros(()))
            (gradient,) = torch.autograd.grad(answer, found.pop())
            gradients = gradient.reshape(-1, width).double().numpy()
            total += gradients.T @ gradients
            tokens += len(gradients)
    finally:
        hook.remove()
    return total / max(1, tokens)


def _signed(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return output * (torch.randint(2, output.shape, generator=generator) * 2 - 1)


def with_words(model: CofiPreTrainedModel, words: WordCodes | None) -> CofiPreTrainedModel:
    """A copy that computes with the rounded table; the model itself where there is none."""
    if words is None:
        return model
    small = copy.deepcopy(model)
    small.state_dict()[WORDS].copy_(torch.from_numpy(words.numbers()))
    return small
