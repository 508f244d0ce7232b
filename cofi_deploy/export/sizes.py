"""Where the bytes of an ONNX export are: at high sparsity mostly in the table of embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

_WORDS = "word embeddings"
_OTHER_TABLES = "other embeddings"
_LAYERS = "layers"
_HEAD = "head"
_GRAPH = "graph"
_TOKENIZER = "tokenizer"


def size_by_part(directory: Path) -> dict[str, int]:
    """Bytes of each part of an ONNX export directory; together, its model and tokenizer files."""
    file = next(directory.glob("*.onnx"))
    parts = dict.fromkeys((_WORDS, _OTHER_TABLES, _LAYERS, _HEAD, _GRAPH, _TOKENIZER), 0)
    for item in onnx.load(file).graph.initializer:
        parts[_part_of(item.name)] += len(item.raw_data)
    # Nodes, names, scalars: what is in the file beside the weights.
    parts[_GRAPH] += file.stat().st_size - sum(parts.values())
    parts[_TOKENIZER] = sum(path.stat().st_size for path in _tokenizer_files(directory))
    return parts


def _part_of(name: str) -> str:
    name = name.removeprefix("scales.").removeprefix("zeros.")
    if name.startswith("encoder.embeddings.word"):
        return _WORDS
    if name.startswith("encoder.embeddings."):
        return _OTHER_TABLES
    if name.startswith("encoder.layers."):
        return _LAYERS
    return _HEAD if name.startswith(("pooler.", "classifier.")) else _GRAPH


def _tokenizer_files(directory: Path) -> Iterable[Path]:
    known = {"vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json"}
    return (path for path in directory.iterdir() if "token" in path.name or path.name in known)
