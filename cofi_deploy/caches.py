"""Where things are kept that are slow to make and may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$COFI_DEPLOY_CACHE`, else `$XDG_CACHE_HOME/cofi-deploy`, else `~/.cache/cofi-deploy`."""
    named = os.environ.get("COFI_DEPLOY_CACHE")
    if named:
        return Path(named).absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache").absolute() / "cofi-deploy"
