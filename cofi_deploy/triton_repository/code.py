"""The Python files that a server runs: ours, byte for byte, or nothing.

They lie in `cofi_deploy/triton_models` and are copied verbatim into repositories. The package
never imports them: they run inside the server, with its Python and its packages.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal, get_args

Role = Literal["encoder", "tokenizer", "answer"]
ROLES: tuple[Role, ...] = get_args(Role)

CODE_FILE = "model.py"  # its name in a version folder


def served_code(role: Role) -> Path:
    """The packaged file behind `model.py` of a model with this role."""
    # A wheel is unpacked into files, so the resource is a path.
    return Path(str(resources.files("cofi_deploy") / "triton_models" / f"{role}.py"))


def role_of(path: Path) -> Role | None:
    """Which of the packaged files this is, byte for byte; None when it is none of them."""
    content = path.read_bytes()
    return next((role for role in ROLES if served_code(role).read_bytes() == content), None)


def is_ours(path: Path) -> bool:
    """True when a file is one of the packaged ones, unchanged."""
    return role_of(path) is not None
