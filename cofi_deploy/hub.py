"""Is the Hugging Face hub within reach? Asked once, answered within seconds, never retried."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request

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
