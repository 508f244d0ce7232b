"""Tiny tokenizers of every family as its checkpoints hold them, and opened as ours opens them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = ("good", "fine", "great", "bad", "dull", "poor", "a", "the", "film", "plot", "is", "was")
CORPUS = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))]
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?"
CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


def write_tokenizer(family: str, folder: Path, *, model_max_length: int = 512) -> int:
    """Write the tokenizer's files as the family's checkpoints have them; gives its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": CLASSES[family], "model_max_length": model_max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if family == "roberta":
        return _write_byte_level(folder)
    if family == "xlm-roberta":
        return _write_unigram(folder)
    pieces = [*WORDPIECE, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = list(dict.fromkeys(pieces))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return len(vocabulary)


def _write_byte_level(folder: Path) -> int:
    """vocab.json and merges.txt: every byte is a token, frequent words are one."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        CORPUS, vocab_size=320, min_frequency=2, special_tokens=FAIRSEQ, show_progress=False
    )
    tokenizer.save_model(str(folder))
    return tokenizer.get_vocab_size()


def _write_unigram(folder: Path) -> int:
    """tokenizer.json of a unigram model over words that begin with a mark for the space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=FAIRSEQ, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, " ".join(LETTERS), LETTERS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()
