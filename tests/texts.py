"""Odd texts, questions and a real word-piece tokenizer, for everything that takes text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.kinds import TaskKind
from cofi_deploy.loading import save_compact
from cofi_deploy.model import CofiConfig, build
from tests.builders import bert_tokenizer

MAX_LENGTH = 64
LABELS: dict[TaskKind, tuple[str, ...]] = {
    "text-classification": ("négatif", "neutral", "positive"),
    "text-regression": (),
    "token-classification": ("O", "B-place", "I-place", "B-person", "I-person", "other-thing"),
    "question-answering": (),
}

TEXTS = (
    "The delivery came two days late.",
    "no",
    "Zürich, 3.5 % & <unknown> — naïve Ångström café",
    "cafe\u0301 with a combining accent, and İstanbul",
    "漢字 and kana カナ, 한국어, العربية, ไทย",
    "😀 👩‍👩‍👧 🇨🇭 flags and families",
    "tabs\tand\nnew lines\r\n and   runs of    spaces  ",
    "  leading, non\u00a0breaking and zero\u200bwidth\ufeff",
    "control \x00 \x07 \x1b characters \ufffd \u2028",
    "[CLS] written out [SEP] and [MASK] [PAD] [UNK]",
    "☃☄ unknown ☇ signs☈inside",
    "aaaaaaaaaaaa" * 20,
    "don't stop-gap (e.g. U.S.A.'s) $1,000.00 #tag @name http://example.org/a?b=c",
    "Anna and Bob went to New York City with Karl in Berlin. " * 12,
    "MIXED Case, ﬁ ligature, \uff26\uff35\uff2c\uff2c width, ß and ŉ",
)
PAIRS = (
    ("A man is playing a large flute.", "A man plays the flute."),
    ("short", "The delivery came two days late. " * 20),
    ("The delivery came two days late. " * 20, "short"),
    ("Anna and Bob went to Berlin. " * 20, "Zürich 漢字 😀 no. " * 20),
    ("no", "yes"),
)

_STORY = (
    "When the river rose in March, the town closed both bridges and moved four hundred people to "
    "the school on the hill.  The mayor, Anna Karlsson,\tasked the army for boats; in 1947 nobody "
    "had believed the warnings until the water stood in the cellars of the market square.\n"
)
QUESTIONS = (
    ("Who asked the army?", _STORY),
    ("Who asked, and what, when?", _STORY * 3),
    ("where", "Berlin"),
    ("where?", "In Berlin."),
    ("What?", "aaaaaaaaaaaa" * 20),
    ("Où est le café ?", "Le café\u0301 est à Zürich — 漢字 😀 naïve. The THE the the."),
    (
        "What costs $1,000.00?",
        "  Karl's\u00a0car (e.g. U.S.A.)   costs $1,000.00!  \n\n  And more.  ",
    ),
    ("[SEP] what [MASK]?", "text with [SEP] and [CLS] written out, [UNK] too"),
    ("no no no no", "no no no no no no no no no no no no no No NO no"),
    ("signs", "☃☄ unknown ☇ signs☈inside " * 9),
    ("Anna and Bob and Karl " * 2, "They went to New York City. " * 9),
)

DENSE = DenseShape(layers=3, hidden=32, heads=4, ffn=64, head_size=8)
# Vanished sublayers, one head, odd widths.
UNEVEN = (LayerArch(heads=0, ffn=3), LayerArch(heads=1, ffn=0), LayerArch(heads=3, ffn=17))

_WORDS = (
    "the delivery came two days late no yes and with in to of city new york berlin anna bob karl "
    "play ##ing ##s ##ed man flute river town un ##known sign ##es went what who where where ##n"
)
_SIGNS = "漢字éà—$%&()[]<>.,:;!?'\"#@/=+-_*"


def word_piece_tokenizer(
    *, lowercase: bool = True, max_length: int = MAX_LENGTH
) -> PreTrainedTokenizerFast:
    """BERT's pipeline of normaliser, words and pieces, with a small vocabulary."""
    return bert_tokenizer(
        _vocabulary(),
        max_length=max_length,
        lowercase=lowercase,
        # As BertTokenizer has it: what a pipeline hands to the model.
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def text_arch(
    *, layers: tuple[LayerArch, ...] = UNEVEN, hidden: int = 29, dense: DenseShape = DENSE
) -> Arch:
    """A structure for the vocabulary of `word_piece_tokenizer`."""
    return Arch(
        family="bert",
        vocab_size=len(_vocabulary()),
        max_positions=MAX_LENGTH,
        type_vocab_size=2,
        hidden=hidden,
        head_size=8,
        layers=layers,
        dense=dense,
        pooler=dense.hidden,
    )


def save_text_model(
    kind: TaskKind,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    arch: Arch | None = None,
    seed: int = 2,
) -> Path:
    """Write a compact model of random weights whose every tensor matters to the answer."""
    arch = arch or text_arch()
    torch.manual_seed(seed)  # 2 gives every label of the usual structure to some text
    model = build(CofiConfig.from_arch(arch, kind, labels=LABELS[kind])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    save_compact(model, tokenizer or word_piece_tokenizer(), folder)
    return folder


def _vocabulary() -> dict[str, int]:
    letters = [
        chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))
    ]
    capitals = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    pieces = [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *(*letters, *capitals, *_SIGNS),
        *(f"##{letter}" for letter in (*letters, *capitals)),
        *_WORDS.split(),
    ]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
