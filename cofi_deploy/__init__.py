"""Prune BERT-like encoders, export them, and prove the speedup in the runtime that serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cofi_deploy.registration import register_auto_classes

if TYPE_CHECKING:
    from cofi_deploy.api import export, train, verify
    from cofi_deploy.arch import Arch
    from cofi_deploy.loading import load

__version__ = "0.1.0"
__all__ = ["Arch", "export", "load", "train", "verify"]

_HOMES = {
    "Arch": "cofi_deploy.arch",
    "export": "cofi_deploy.api",
    "load": "cofi_deploy.loading",
    "train": "cofi_deploy.api",
    "verify": "cofi_deploy.api",
}

register_auto_classes()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import cofi_deploy` loads no framework."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cofi_deploy' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(_HOMES[name]), name)
