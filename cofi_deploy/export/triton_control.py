"""Tell a running server of a version that was added or set aside, and wait for its answer.

Comes in: the address of a server and the version that it should serve from now on. Goes out:
nothing once it does, else Triton's own words. With explicit model control the server is asked to
load; one that polls finds the version by itself, so that it is only waited for.

Source: Triton's model repository extension, `/v2/repository/models/<name>/load` and
`/v2/repository/index`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cofi_deploy.errors import EnvironmentProblem, RunnerError, UsageError

CHANGE_TIMEOUT_S = 300.0  # for a version to be loaded and warmed up
NOTICE_TIMEOUT_S = 60.0  # for a server that polls to find it; 15 s by Triton's default

_ANSWER_TIMEOUT_S = 10.0
_POLL_S = 0.2

# What a server says that polls, and one that loads models only when it starts, in the same words.
_NOT_EXPLICIT = "explicit model load / unload is not allowed"

# Nothing of the environment's proxies: the server is on this machine or in this cluster.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    body: Any  # JSON, or text where it is none

    @property
    def words(self) -> str:
        """What Triton says, on one line."""
        said = self.body.get("error", self.body) if isinstance(self.body, dict) else self.body
        return _one_line(str(said)) or f"status {self.status}"


@dataclass(frozen=True, kw_only=True)
class TritonControl:
    """The HTTP address of a server, `http://host:8000`."""

    url: str
    timeout_s: float = CHANGE_TIMEOUT_S
    notice_s: float = NOTICE_TIMEOUT_S

    def check_live(self) -> None:
        """Find out that a server is there before any work is done for it.

        Raises:
            UsageError: ``url`` is no address.
            EnvironmentProblem: No Triton answers there.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"--url is {self.url!r}, expected an address like http://host:8000")
        answer = self._ask("GET", "/v2/health/live")
        if answer.status != http.client.OK:
            raise EnvironmentProblem(
                f"{self.url!r} answers /v2/health/live with status {answer.status}, which no live "
                "Triton server does; --url is its HTTP address, http://host:8000 by default"
            )

    def serve(self, name: str, version: int) -> None:
        """Have the server change over to a version, and return when it has.

        Requests go on being answered by the version before until then, and after a failure.

        Args:
            name: Of the encoder; the ensemble `<name>_text` is loaded with it.
            version: The one that must be ready.

        Raises:
            RunnerError: The version could not be loaded; carries Triton's words.
            EnvironmentProblem: The server is gone.
        """
        loaded = self._load(name)
        self._wait_for(name, version, at_once=loaded)
        if loaded and not self._is_ready(f"{name}_text"):
            self._load(f"{name}_text")

    def unload(self, names: Iterable[str]) -> None:
        """Let models go that are taken out of the repository, as far as the server is there."""
        with contextlib.suppress(EnvironmentProblem):
            for name in names:
                self._ask("POST", f"/v2/repository/models/{name}/unload", {})

    def _load(self, name: str) -> bool:
        """Ask for a model; False when the server finds it by itself."""
        answer = self._ask("POST", f"/v2/repository/models/{name}/load", {}, timeout=self.timeout_s)
        if answer.status == http.client.OK:
            return True
        if _NOT_EXPLICIT in answer.words:
            return False
        raise RunnerError(f"the server at {self.url!r} refused {name!r}: {answer.words}")

    def _wait_for(self, name: str, version: int, *, at_once: bool) -> None:
        began = time.monotonic()
        patience = 0.0 if at_once else self.notice_s
        while not self._is_ready(f"{name}/versions/{version}"):
            state, reason = self._state(name, version)
            if state == "UNAVAILABLE" and reason not in {"", "unloaded"}:
                raise RunnerError(
                    f"the server at {self.url!r} refused version {version} of {name!r}: {reason}"
                )
            if state == "LOADING":
                patience = self.timeout_s
            if time.monotonic() - began > patience:
                raise RunnerError(
                    f"the server at {self.url!r} does not serve version {version} of {name!r} "
                    f"after {patience:g} s (state: {state or 'unknown'}); does it run from this "
                    "repository, with --model-control-mode=explicit or poll?"
                )
            time.sleep(_POLL_S)

    def _is_ready(self, model: str) -> bool:
        return self._ask("GET", f"/v2/models/{model}/ready").status == http.client.OK

    def _state(self, name: str, version: int) -> tuple[str, str]:
        """State and reason in the server's index of its repository."""
        index = self._ask("POST", "/v2/repository/index", {}).body
        for item in index if isinstance(index, list) else []:
            if item.get("name") == name and item.get("version") == str(version):
                return item.get("state", ""), _one_line(item.get("reason", ""))
        return "", ""

    def _ask(
        self, method: str, path: str, body: Any = None, *, timeout: float = _ANSWER_TIMEOUT_S
    ) -> _Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, method=method)
        try:
            with _OPENER.open(request, timeout=timeout) as response:
                return _Answer(status=response.status, body=_parsed(response.read()))
        except urllib.error.HTTPError as error:
            return _Answer(status=error.code, body=_parsed(error.read()))
        except (OSError, http.client.HTTPException) as error:
            raise EnvironmentProblem(
                f"no Triton server answers at {self.url!r}: {error}; --url is its HTTP address, "
                "http://host:8000 by default"
            ) from error


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(" ;")


def _parsed(data: bytes) -> Any:
    text = data.decode(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
