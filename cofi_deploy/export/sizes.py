"""Where the bytes of an export are: at high sparsity mostly in the table of embeddings."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import onnx

_WORDS = "word embeddings"
_OTHER_TABLES = "other embeddings"
_LAYERS = "layers"
_HEAD = "head"
_GRAPH = "graph"
_TOKENIZER = "tokenizer"


def size_by_part(directory: Path) -> dict[str, int]:
    """Bytes of each part of an ONNX or OpenVINO export; together, its model and tokenizer files."""
    files = [path for ending in ("onnx", "xml", "bin") for path in directory.glob(f"*.{ending}")]
    read = _onnx_weights if files[0].suffix == ".onnx" else _ir_weights
    parts = dict.fromkeys((_WORDS, _OTHER_TABLES, _LAYERS, _HEAD, _GRAPH, _TOKENIZER), 0)
    for part, size in read(files[0]):
        parts[part] += size
    # Nodes, names, scalars: what is in the files beside the weights.
    parts[_GRAPH] += sum(path.stat().st_size for path in files) - sum(parts.values())
    parts[_TOKENIZER] = sum(path.stat().st_size for path in _tokenizer_files(directory))
    return parts


def _onnx_weights(file: Path) -> Iterator[tuple[str, int]]:
    """Part and bytes of every initializer."""
    for item in onnx.load(file).graph.initializer:
        yield _part_of(item.name) or _GRAPH, len(item.raw_data)


def _ir_weights(file: Path) -> Iterator[tuple[str, int]]:
    """Part and bytes of every constant; OpenVINO stores equal ones once.

    Where its conversion folded or moved a constant, the name is gone: it then belongs to the part
    of the first layer behind it that has one.
    """
    root = ElementTree.parse(file).getroot()
    layers = {layer.attrib["id"]: layer for layer in root.findall("layers/layer")}
    users: dict[str, list[str]] = defaultdict(list)
    for edge in root.findall("edges/edge"):
        users[edge.attrib["from-layer"]].append(edge.attrib["to-layer"])
    stored: set[tuple[str, str]] = set()
    for number, layer in layers.items():
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        place = data.attrib["offset"], data.attrib["size"]
        if place not in stored:
            stored.add(place)
            behind = _in_order(number, users)
            parts = (_part_of(layers[each].attrib["name"]) for each in behind)
            yield next(filter(None, parts), _GRAPH), int(place[1])


def _in_order(start: str, users: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """``start`` and what uses it, the nearest first."""
    waiting, seen = deque([start]), {start}
    while waiting:
        each = waiting.popleft()
        yield each
        new = [user for user in users.get(each, []) if user not in seen]
        waiting.extend(new)
        seen.update(new)


def _part_of(name: str) -> str | None:
    for beside in ("scales.", "zeros.", "columns.", "fine."):
        name = name.removeprefix(beside)
    if name.startswith("encoder.embeddings.word"):
        return _WORDS
    if name.startswith("encoder.embeddings."):
        return _OTHER_TABLES
    if name.startswith("encoder.layers."):
        return _LAYERS
    return _HEAD if name.startswith(("pooler.", "classifier.", "head/")) else None


def _tokenizer_files(directory: Path) -> Iterable[Path]:
    known = {"vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json"}
    return (path for path in directory.iterdir() if "token" in path.name or path.name in known)
