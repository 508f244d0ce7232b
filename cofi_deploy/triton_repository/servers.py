"""Which fields of a configuration a server is too old for.

A server refuses a whole file for one field that it does not know. Comes in: a configuration and a
server version. Goes out: the fields that are too new. Next file: `fields.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cofi_deploy.triton_repository.schema import ModelConfig

ServerVersion = tuple[int, int]

# First server version that surely has a field: release notes, and the schema inside 2.51.
FIRST_SERVER: dict[str, ServerVersion] = {
    "response_cache": (2, 15),
    "model_metrics": (2, 54),
    "ensemble_scheduling.max_inflight_requests": (2, 64),
}

# Container release "25.10" is server 2.62: one minor version each month since 2.42 in 24.01,
# except for 25.07, which repeated 2.59.
_FIRST_YEAR, _FIRST_MINOR = 24, 42
_REPEATED = (25, 7)


def server_version(text: str) -> ServerVersion | None:
    """`2.51`, `2.51.0` or a container release like `24.10`; None where it is neither."""
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})(\.\d+)?(-py3.*)?", text)
    if match is None:
        return None
    major, minor = int(match[1]), int(match[2])
    if major == 2:
        return major, minor
    if major < _FIRST_YEAR or not 1 <= minor <= 12:
        return None
    months = 12 * (major - _FIRST_YEAR) + minor - 1
    return 2, _FIRST_MINOR + months - ((major, minor) >= _REPEATED)


def too_new(config: ModelConfig, server: ServerVersion) -> Iterator[str]:
    """Fields in ``config`` that ``server`` does not know."""
    for path, first in FIRST_SERVER.items():
        if server < first and _is_set(config, path):
            yield (
                f"{path} needs server {first[0]}.{first[1]} or newer, the target is "
                f"{server[0]}.{server[1]}; remove it"
            )


def _is_set(message: ModelConfig, path: str) -> bool:
    name, _, rest = path.partition(".")
    if rest:
        return message.HasField(name) and _is_set(getattr(message, name), rest)
    return any(field.name == name for field, _ in message.ListFields())
