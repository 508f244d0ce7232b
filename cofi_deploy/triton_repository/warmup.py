"""Would the warm-up samples of a configuration be accepted?

A model whose warm-up fails is never ready. Comes in: a configuration and its folder. Goes out:
sentences about samples whose tensors do not fit the inputs, or whose files do not fit the shapes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from cofi_deploy.triton_repository.schema import ModelConfig, leaves_folder, type_name

WARMUP_FOLDER = "warmup"

ITEM_BYTES = {
    "TYPE_BOOL": 1,
    "TYPE_INT8": 1,
    "TYPE_UINT8": 1,
    "TYPE_INT16": 2,
    "TYPE_UINT16": 2,
    "TYPE_FP16": 2,
    "TYPE_BF16": 2,
    "TYPE_INT32": 4,
    "TYPE_UINT32": 4,
    "TYPE_FP32": 4,
    "TYPE_INT64": 8,
    "TYPE_UINT64": 8,
    "TYPE_FP64": 8,
}


def warmup_problems(config: ModelConfig, folder: Path) -> Iterator[str]:
    """What is wrong with the samples, one sentence for each."""
    inputs = {item.name: item for item in config.input}
    largest = max(1, config.max_batch_size)
    for sample in config.model_warmup:
        what = f"warm-up {sample.name!r}"
        if not 1 <= sample.batch_size <= largest:
            yield f"{what} has batch_size {sample.batch_size}, allowed: 1 to {largest}"
        if set(sample.inputs) != set(inputs):
            yield f"{what} has inputs {sorted(sample.inputs)}, not {sorted(inputs)}"
            continue
        for name, item in sample.inputs.items():
            for problem in _input_problems(item, inputs[name], folder):
                yield f"{what}: {name!r} {problem}"


def _input_problems(item: ModelConfig, declared: ModelConfig, folder: Path) -> Iterator[str]:
    if item.data_type != declared.data_type:
        yield (
            f"has data_type {type_name(item.data_type)}, the input has "
            f"{type_name(declared.data_type)}"
        )
    if not fits(item.dims, declared.dims):
        yield f"has dims {list(item.dims)}, the input has {list(declared.dims)}"
    elif leaves_folder(item.input_data_file):
        yield f"names {item.input_data_file!r}, expected the plain name of a file in 'warmup'"
    elif item.input_data_file:
        yield from _file_problems(item, folder / WARMUP_FOLDER / item.input_data_file)


def fits(shape: ModelConfig, dims: ModelConfig) -> bool:
    """True when a shape is one of those that dims allow; -1 allows any size."""
    return len(shape) == len(dims) and all(
        size >= 1 and (dim in {-1, size}) for size, dim in zip(shape, dims, strict=True)
    )


def _file_problems(item: ModelConfig, file: Path) -> Iterator[str]:
    """The raw data of one input must have exactly the bytes that its shape needs."""
    if not file.is_file():
        yield f"names {str(file)!r}, which is missing"
        return
    elements = math.prod(item.dims)
    if type_name(item.data_type) == "TYPE_STRING":
        found = _strings(file.read_bytes())
        if found != elements:
            yield f"names {str(file)!r} with {found} strings, its shape needs {elements}"
        return
    needed = ITEM_BYTES.get(type_name(item.data_type), 0) * elements
    got = file.stat().st_size
    if got != needed:
        yield f"names {str(file)!r}, which has {got} bytes, its shape needs {needed}"


def _strings(data: bytes) -> int | None:
    """How many strings a file holds, each behind its length in four bytes; None when torn."""
    count = position = 0
    while position < len(data):
        if position + 4 > len(data):
            return None
        (length,) = struct.unpack_from("<I", data, position)
        position += 4 + length
        count += 1
    return count if position == len(data) else None
