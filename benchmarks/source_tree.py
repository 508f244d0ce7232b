"""Imported first by scripts that run from a bare source tree: PyTorch and transformers are enough.

The tree comes before an installed cofi-deploy. jaxtyping, where it is missing, is replaced by
names: shapes in signatures are never evaluated, only read, by people and type checkers.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def _name_shapes() -> None:
    if importlib.util.find_spec("jaxtyping") is not None:
        return
    names = ModuleType("jaxtyping")
    for name in ("Bool", "Float", "Int"):
        setattr(names, name, object)
    sys.modules["jaxtyping"] = names


sys.path.insert(0, str(ROOT))
_name_shapes()
