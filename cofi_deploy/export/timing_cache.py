"""Tactic timings of earlier builds, one file for each library version and kind of GPU.

They lie in the cache of cofi-deploy and not beside an engine, so they outlive exports and serve
every model. A timing holds for the same version, GPU and driver only; all of it is in the name of
the file, and inside, since files can be moved. Whatever is wrong with a cache, the engine is built
without it. TensorRT-RTX compiles instead of timing: its cache does nothing, and it has none here.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from cofi_deploy.atomic import write_bytes
from cofi_deploy.caches import cache_root
from cofi_deploy.engines import CudaDevice, Flavour
from cofi_deploy.errors import EnvironmentProblem

logger = logging.getLogger(__name__)

_MAGIC = b"cofi-deploy timing cache 1\n"
_DIGEST_BYTES = 32


def timing_cache_file(flavour: Flavour, version: str, device: CudaDevice) -> Path:
    """Where the timings of a library version on a kind of GPU are kept."""
    parts = (
        flavour,
        version,
        device.name,
        f"sm{device.compute_capability}",
        f"driver{device.driver}",
    )
    name = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part) for part in parts)
    return cache_root() / "timing" / f"{name}.cache"


def read_timing_cache(path: Path) -> bytes:
    """Timings of earlier builds; empty where there are none, or none that can be used."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        logger.warning("the timing cache %r is ignored: %s", str(path), error)
        return b""
    head = _head(path)
    body = stored[len(head) + _DIGEST_BYTES :]
    if not stored.startswith(_MAGIC):
        reason = "it is not a timing cache of cofi-deploy"
    elif not stored.startswith(head):
        reason = "it was made by another version or on another GPU"
    elif stored[len(head) : len(head) + _DIGEST_BYTES] != hashlib.sha256(body).digest():
        reason = "it is truncated or was changed"
    else:
        return body
    logger.warning("the timing cache %r is ignored: %s", str(path), reason)
    return b""


def write_timing_cache(path: Path, timings: bytes) -> None:
    """Keep timings, whole or not at all; a disk that does not take them stops no export."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _head(path) + hashlib.sha256(timings).digest() + timings)
    except (OSError, EnvironmentProblem) as error:
        logger.warning("the timing cache is not kept: %s", error)


def _head(path: Path) -> bytes:
    """The key once more, so that a renamed file is not taken for another's."""
    return _MAGIC + path.stem.encode() + b"\n"
