"""Is the Hugging Face hub within reach? Asked once, answered within seconds, never retried.

Light enough to ask before torch and transformers are imported.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from cofi_deploy.errors import HubUnreachableError, UsageError

DEFAULT_MODEL = "bert-base-uncased"
PROBE_TIMEOUT_S = 3.0
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def hub_endpoint() -> str:
    """Address of the hub: `HF_ENDPOINT`, or the public one."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def why_unreachable() -> str | None:
    """Why the hub cannot be reached, or None when it answers.

    A slow name server ignores socket timeouts, so the question is put in a thread.
    """
    offline = next((name for name in OFFLINE_VARIABLES if _is_set(name)), None)
    if offline is not None:
        return f"{offline} is set"
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_ask()), daemon=True)
    thread.start()
    thread.join(2 * PROBE_TIMEOUT_S)
    return answer[0] if answer else f"no answer from {hub_endpoint()}"


def check_model_reachable(name: str, *, data_is_local: bool) -> None:
    """Say at once that a model cannot be had, before the frameworks are imported.

    Args:
        name: As given for the model: a path, or a hub id.
        data_is_local: Whether the data would need the hub, too.

    Raises:
        UsageError: A path where nothing is.
        HubUnreachableError: A hub id that is not in the cache, and no hub.
    """
    if Path(name).exists():
        return
    if name.startswith((".", "/", "~")):
        raise UsageError(f"model {name!r} does not exist; expected a model directory or a hub id")
    if _is_cached(name):
        return
    reason = why_unreachable()
    if reason is None:
        return
    ways_on = ["give --model a local model directory"]
    if not data_is_local:
        ways_on.append("--data-dir a folder with the task's files (or --data your own)")
    raise HubUnreachableError(
        f"{name!r} is no local directory, not in the hub cache, and the hub cannot be reached "
        f"({reason}); {' and '.join(ways_on)}, or fill the cache on a machine with a network"
    )


def _is_cached(name: str) -> bool:
    import huggingface_hub  # noqa: PLC0415 - only a model that is no path needs it
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return True  # no hub id at all: let the model's own loading say so


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def _ask() -> str | None:
    endpoint = hub_endpoint()
    if not endpoint.startswith(("https://", "http://")):
        return f"HF_ENDPOINT is {endpoint!r}, which is no http address"
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        # A proxy that cannot get through answers with a 5xx; a 4xx is the hub's own word.
        return f"{endpoint} answers {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:
        return f"no answer from {endpoint}: {getattr(error, 'reason', error)}"
