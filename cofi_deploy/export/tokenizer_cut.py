"""A tokenizer with a smaller vocabulary that splits given text as before, and can split any other.

Comes in: a fast tokenizer and the ids that the text needs. Goes out: the tokenizer cut to them, to
every single character (WordPiece) or byte (byte-level BPE) and to the most common other pieces,
with new ids, those of frequent pieces first, and the old id behind each new one. Next file:
`vocabulary.py`, which cuts the table of embeddings to match.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cofi_deploy.errors import ConfigError
from cofi_deploy.loading import load_tokenizer, save_tokenizer

# Older forms of the same vocabulary, which would contradict tokenizer.json.
_OTHER_FORMS = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")

# Places that BERT's vocabularies keep free.
_UNUSED = re.compile(r"\[unused\d+\]")

_Merge = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class CutTokenizer:
    """A tokenizer, and for each of its ids the old one.

    The first ``frequent`` ids are those of the pieces with the most uses; both they and the others
    are in the order that they had.
    """

    tokenizer: PreTrainedTokenizerBase
    old_ids: Sequence[int]
    frequent: int


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    uses: Mapping[int, int],
    *,
    frequent: int = 0,
    common: int = 0,
) -> CutTokenizer:
    """Cut a fast tokenizer.

    Args:
        tokenizer: WordPiece or byte-level BPE.
        uses: Of the pieces that must stay: how often the text has each, by its id.
        frequent: How many pieces get the first ids: those with the most uses. Of pieces with as
            many, here and below, the most common come first: both types of vocabulary are in the
            order in which they were learnt.
        common: Where fewer pieces than that must stay, the most common others do, too.

    Raises:
        ConfigError: A tokenizer of another type.
    """
    with tempfile.TemporaryDirectory(prefix="cofi-deploy-") as scratch:
        directory = Path(scratch)
        save_tokenizer(tokenizer, directory)
        for name in _OTHER_FORMS:
            (directory / name).unlink(missing_ok=True)
        document = _read(directory / "tokenizer.json")
        needed = _needed_ids(document, uses)
        kept = _needed_ids(document, _with_common(document, needed, common))
        first = sorted(kept, key=lambda i: (-uses.get(i, 0), i))[:frequent]
        old_ids = [*sorted(first), *sorted(kept.difference(first))]
        new_ids = {old: new for new, old in enumerate(old_ids)}
        _renumber(document, new_ids)
        _write(directory / "tokenizer.json", document)
        _renumber_config(directory / "tokenizer_config.json", new_ids)
        return CutTokenizer(
            tokenizer=load_tokenizer(directory), old_ids=old_ids, frequent=len(first)
        )


def _with_common(document: Mapping[str, Any], needed: set[int], common: int) -> set[int]:
    """``needed`` and the first pieces of the vocabulary, up to ``common`` in all."""
    candidates = sorted(
        i for piece, i in document["model"]["vocab"].items() if not _UNUSED.fullmatch(piece)
    )
    others = [i for i in candidates if i not in needed]
    return needed | set(others[: max(0, common - len(needed))])


def _needed_ids(document: Mapping[str, Any], used: Collection[int]) -> set[int]:
    """Ids in use, of special tokens, of single characters or bytes, and of what merges need."""
    model = document["model"]
    special = {token["id"] for token in document["added_tokens"]}
    vocabulary: dict[str, int] = model["vocab"] if isinstance(model["vocab"], dict) else {}
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        single = {i for piece, i in vocabulary.items() if len(piece.removeprefix(prefix)) == 1}
        return {*used, *special, *single, vocabulary[model["unk_token"]]}
    if model["type"] == "BPE" and "ByteLevel" in json.dumps(document["pre_tokenizer"]):
        single = {i for piece, i in vocabulary.items() if len(piece) == 1}
        parts = _parts_of({*used, *single}, vocabulary, _merges(model))
        return {*special, *parts}
    raise ConfigError(
        f"a tokenizer of type {model['type']!r} cannot be cut, allowed: WordPiece and byte-level "
        "BPE; export without --shrink-embeddings"
    )


def _parts_of(
    ids: Collection[int], vocabulary: Mapping[str, int], merges: Collection[_Merge]
) -> set[int]:
    """``ids`` and all pieces that they are merged from, in every way there is.

    Merging applies the first merge of the list that fits, so a text is split as before when every
    merge on its way is still there: the others could only have been passed over.
    """
    made_of: dict[str, list[_Merge]] = {}
    for one, other in merges:
        made_of.setdefault(one + other, []).append((one, other))
    pieces = {i: piece for piece, i in vocabulary.items()}
    waiting = [pieces[i] for i in ids if i in pieces]
    found: set[str] = set()
    while waiting:
        piece = waiting.pop()
        if piece not in found:
            found.add(piece)
            waiting += [part for merge in made_of.get(piece, []) for part in merge]
    return {*ids, *(vocabulary[piece] for piece in found)}


def _merges(model: Mapping[str, Any]) -> list[_Merge]:
    """Pairs, whichever of its two forms the file has them in."""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(one, other) for one, other in pairs]


def _renumber(document: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Cut the vocabulary in place, and give new ids to whatever has one."""
    model = document["model"]
    vocabulary = {piece: new_ids[i] for piece, i in model["vocab"].items() if i in new_ids}
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    if "merges" in model:
        model["merges"] = [
            [one, other]
            for one, other in _merges(model)
            if {one, other, one + other} <= vocabulary.keys()
        ]
    for token in document["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    _renumber_processor(document.get("post_processor") or {}, new_ids)
    # Both are switched off when the file is opened, and padding names an old id.
    document["padding"] = document["truncation"] = None


def _renumber_processor(processor: Mapping[str, Any], new_ids: Mapping[int, int]) -> None:
    for inner in processor.get("processors", []):
        _renumber_processor(inner, new_ids)
    for name in ("sep", "cls"):  # BertProcessing, RobertaProcessing
        if name in processor:
            processor[name][1] = new_ids[processor[name][1]]
    if processor.get("type") == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new_ids[i] for i in token["ids"]]


def _renumber_config(path: Path, new_ids: Mapping[int, int]) -> None:
    config = _read(path)
    decoder = config.get("added_tokens_decoder")
    if decoder:
        config["added_tokens_decoder"] = {
            str(new_ids[int(old)]): token for old, token in decoder.items()
        }
        _write(path, config)


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
