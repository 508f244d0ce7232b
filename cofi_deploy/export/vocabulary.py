"""The vocabulary cut to what a task's text needs, and the table of word embeddings with it.

At 95 % sparsity this table is nine tenths of a model. Comes in: source, model, text. Goes out: the
same two with a smaller tokenizer and table; on the text they answer exactly as before, because it
is split into the same pieces, with the same rows. Other words are split into smaller pieces.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from cofi_deploy.errors import ConfigError, ExportError
from cofi_deploy.export.calibration import CalibrationText
from cofi_deploy.export.manifest import Source
from cofi_deploy.export.tokenizer_cut import cut_tokenizer
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build

logger = logging.getLogger(__name__)

# Share of the vocabulary that stays in any case, the most common pieces first: text that was not
# seen has other words, too. Measured with MiniLMs at 95 %, the predictions that change. On 1,500
# unseen tweets: with the pieces of 3,240 training tweets alone (a third of the vocabulary) 2.2 %,
# with half of it 0.9 %, with two thirds 0.6 %. On the development sets of SST-2 and MRPC: with half
# 1.5 and 2.2 %, with 0.85 of it 0.5 and 0.7 %, with this none and 0.2 %.
KEPT_SHARE = 0.95
# Likewise, of pieces that get more bits than others at int8, where they have not all the same. Mean
# differences of logits by words of 6 and 2 bits, on the training data of SST-2 and MRPC: 0.020 and
# 0.019 with a fifth of them, 0.012 and 0.014 with a quarter, 0.009 and 0.011 with half. With this
# a MiniLM at 95 % stays below 6 MB, and of 2,448 answers of six models on MRPC's development set 14
# became wrong by it and 10 right.
FREQUENT_SHARE = 2 / 5

_TABLE = "encoder.embeddings.word.weight"
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """A source and its model with a smaller vocabulary.

    Of their word embeddings the first ``frequent`` rows are those of the pieces that the text has
    most of.
    """

    source: Source
    model: CofiPreTrainedModel
    frequent: int


def shrink_vocabulary(
    source: Source, model: CofiPreTrainedModel, text: CalibrationText | None
) -> Shrunk:
    """Cut tokenizer and word embeddings to what ``text`` needs.

    Raises:
        ConfigError: No text, or a tokenizer that cannot be cut.
        ExportError: A text would be split otherwise than before.
    """
    if text is None:
        raise ConfigError(
            "--shrink-embeddings needs the text of the task, to keep what it is made of; export a "
            "model that lies in its run directory, or give --calibration FILE"
        )
    texts = list(dict.fromkeys(part for pair in text.texts for part in pair if part is not None))
    uses = Counter(i for ids in _encode(source.tokenizer, texts) for i in ids)
    uses[model.arch.pad_token_id] += 1
    pieces = len(source.tokenizer)
    cut = cut_tokenizer(
        source.tokenizer,
        uses,
        frequent=int(FREQUENT_SHARE * pieces),
        common=int(KEPT_SHARE * pieces),
    )
    _check_same_pieces(source.tokenizer, cut.tokenizer, cut.old_ids, texts)
    small = _with_rows(model, cut.old_ids)
    logger.info(
        "vocabulary cut from %d to %d pieces, of which %d occur in the %s",
        model.arch.vocab_size,
        len(cut.old_ids),
        len(uses),
        text.source,
    )
    source = replace(source, arch=small.arch, tokenizer=cut.tokenizer)
    return Shrunk(source=source, model=small, frequent=cut.frequent)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of each text, special tokens included, of whatever length."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        batch = list(texts[start : start + _TEXTS_AT_ONCE])
        yield from tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]


def _check_same_pieces(
    before: PreTrainedTokenizerBase,
    after: PreTrainedTokenizerBase,
    old_ids: Sequence[int],
    texts: Sequence[str],
) -> None:
    pairs = zip(texts, _encode(before, texts), _encode(after, texts), strict=True)
    for text, expected, got in pairs:
        if expected != [old_ids[i] for i in got]:
            raise ExportError(
                f"the cut vocabulary splits {text[:80]!r} otherwise than the whole one; "
                "export without --shrink-embeddings"
            )


def _with_rows(model: CofiPreTrainedModel, old_ids: Sequence[int]) -> CofiPreTrainedModel:
    """The model with these rows of its word embeddings, in this order."""
    arch = replace(
        model.arch,
        vocab_size=len(old_ids),
        pad_token_id=old_ids.index(model.arch.pad_token_id),
    )
    config = CofiConfig(**{**model.config.to_dict(), "arch": arch.to_json()})
    small = build(config)
    weights = model.state_dict()
    small.load_state_dict({**weights, _TABLE: weights[_TABLE][torch.tensor(old_ids)]})
    small.train(False)
    return small
