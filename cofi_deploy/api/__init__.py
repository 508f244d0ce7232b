"""The Python API: `train`, `export`, `verify`, `bench`, `compare`, `profile`, `serve`, `rollback`.

The stages meet here and only here, and hand over nothing but paths. Each function is imported when
it is first used, so that asking for one does not load the libraries of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cofi_deploy.api.comparing import compare
    from cofi_deploy.api.exporting import export
    from cofi_deploy.api.profiling import profile
    from cofi_deploy.api.serving import serve
    from cofi_deploy.api.training import train
    from cofi_deploy.api.verifying import bench, verify
    from cofi_deploy.api.versions import rollback

__all__ = ["bench", "compare", "export", "profile", "rollback", "serve", "train", "verify"]

_HOMES = {
    "bench": "verifying",
    "compare": "comparing",
    "export": "exporting",
    "profile": "profiling",
    "rollback": "versions",
    "serve": "serving",
    "train": "training",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cofi_deploy.api' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(f"cofi_deploy.api.{_HOMES[name]}"), name)
