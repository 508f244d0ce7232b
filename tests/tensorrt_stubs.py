"""Type stubs of TensorRT that mypy can read: `make check` runs this before mypy.

`tensorrt-stubs` 10.13 has two slips of the generator that no parser takes: parameters called `in`,
and one without a default after others with one. Its packages lack `py.typed`, too, so mypy would
pass over them where they are installed. Usage: python tests/tensorrt_stubs.py FOLDER
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

PACKAGE = "tensorrt-stubs"


def write_stubs(folder: Path) -> None:
    """Write mended copies of every stub file below ``folder``."""
    for file in importlib.metadata.files(PACKAGE) or ():
        if file.suffix != ".pyi":
            continue
        text = mended(Path(file.locate()).read_text("utf-8"))
        ast.parse(text)
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")


def mended(text: str) -> str:
    """The same declarations, spelt so that they can be parsed."""
    text = re.sub(r"\bin: list\[", "in_: list[", text)
    # The module's constant of that name hides the type that most methods return.
    text = re.sub(r"^bool: DataType.*\n", "", text, flags=re.MULTILINE)
    return text.replace("channel_axis: int)", "channel_axis: int = ...)")


if __name__ == "__main__":
    write_stubs(Path(sys.argv[1]))
