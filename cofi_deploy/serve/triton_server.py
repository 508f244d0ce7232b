"""The process of a Triton server: start it, wait until it answers, end it without leftovers.

In: a `Launch` of `triton_launchers.py`. Out: a `TritonServer` with addresses, process id and log
file. What the server says in its log is explained by `triton_log.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cofi_deploy.errors import EnvironmentProblem, RunnerError
from cofi_deploy.serve.triton_command import (
    EXIT_TIMEOUT_S,
    Launch,
    Preparation,
    ServerSettings,
    reachable_host,
    shm_prefix,
)
from cofi_deploy.serve.triton_log import explain, last_error
from cofi_deploy.serve.triton_ports import check_ports

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = EXIT_TIMEOUT_S + 10.0

_CHILD = Path(__file__).with_name("triton_child.py")
_POLL_S = 0.1
_KILL_TIMEOUT_S, _KILL_POLL_S = 2.0, 0.01
_PROGRESS_S = 5.0
_REQUEST_TIMEOUT_S = 5.0
_SHARED_MEMORY = Path("/dev/shm")


class TritonServer:
    """A server that was started; leaving its `with` block stops it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        launch: Launch,
        settings: ServerSettings,
        *,
        log_file: Path,
        log_start: int,
    ) -> None:
        """Take over what `start_server` started; ``log_start`` is in bytes."""
        self.launch = launch
        self.log_file = log_file
        self._process = process
        self._settings = settings
        self._log_start = self._log_read = log_start
        self._stopped = False

    @property
    def pid(self) -> int:
        """Process id of the server; for a container, that of the engine's client."""
        return self._process.pid

    @property
    def http_address(self) -> str:
        """`host:port` of the HTTP service, as clients on this machine reach it."""
        return f"{reachable_host(self._settings.host)}:{self._settings.http_port}"

    @property
    def grpc_address(self) -> str:
        """`host:port` of the gRPC service: what `tritonclient.grpc` takes."""
        return f"{reachable_host(self._settings.host)}:{self._settings.grpc_port}"

    @property
    def http_url(self) -> str:
        """Address of the HTTP service."""
        return f"http://{self.http_address}"

    @property
    def metrics_url(self) -> str:
        """Address of the metrics, in Prometheus' text format."""
        return f"http://{reachable_host(self._settings.host)}:{self._settings.metrics_port}/metrics"

    def wait_until_ready(
        self,
        timeout_s: float = READY_TIMEOUT_S,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Return when every model of the repository is ready.

        Args:
            timeout_s: Seconds until it is given up.
            say: Called with a line for a person every few seconds.

        Raises:
            RunnerError: The server ended, or is not ready in time; carries Triton's own words.
        """
        began = said = time.monotonic()
        while not self.is_ready():
            self.check_alive(" before it was ready")
            now = time.monotonic()
            if now - began > timeout_s:
                raise RunnerError(
                    f"the server is not ready after {timeout_s:g} s (--ready-timeout): "
                    f"{self.last_words()}"
                )
            if now - said >= _PROGRESS_S:
                said = now
                say(f"waiting for the server: {now - began:.0f} s")
            time.sleep(_POLL_S)

    def is_ready(self) -> bool:
        """Whether the server answers, with every model loaded."""
        try:
            status, _ = self.request("GET", "/v2/health/ready")
        except (OSError, http.client.HTTPException):
            return False
        return status == http.client.OK

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask the HTTP service; no proxy of the environment is in between.

        Returns:
            Status and content of the answer.

        Raises:
            OSError: Nothing listens, or nothing answers in time.
        """
        connection = http.client.HTTPConnection(
            reachable_host(self._settings.host),
            self._settings.http_port,
            timeout=_REQUEST_TIMEOUT_S,
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def models(self) -> list[dict[str, str]]:
        """Triton's index of its repository: name, version, state, and a reason where it has one."""
        status, content = self.request("POST", "/v2/repository/index", b"{}")
        if status != http.client.OK:
            raise RunnerError(f"the server answers /v2/repository/index with {status}: {content!r}")
        found: list[dict[str, str]] = json.loads(content)
        return found

    def wait(self, *, each_second: Callable[[], None] = lambda: None) -> None:
        """Return never; ends with Ctrl-C, or when the server does.

        Args:
            each_second: Called between two looks at the process.

        Raises:
            RunnerError: The server ended by itself; carries Triton's own words.
        """
        while True:
            self.check_alive()
            each_second()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)

    def check_alive(self, when: str = "") -> None:
        """Do nothing while the server runs.

        Raises:
            RunnerError: It ended, ``when``; carries Triton's own words and names its log.
        """
        code = self._process.poll()
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
            raise RunnerError(f"the server {how}{when}: {self.last_words()}")

    def log_text(self) -> str:
        """What the server has logged since this start."""
        return self._log_from(self._log_start).decode("utf-8", errors="replace")

    def new_log_text(self) -> str:
        """Whole lines that the server has logged since this was last called."""
        text = self._log_from(self._log_read)
        whole = text[: text.rfind(b"\n") + 1]
        self._log_read += len(whole)
        return whole.decode("utf-8", errors="replace")

    def last_words(self) -> str:
        """The last error of the log and what it means, with the place of the log."""
        words = last_error(self.log_text())
        said = f"Triton says {words!r}" if words else "Triton says nothing about it"
        meaning = explain(words)
        return f"{said}{f'; {meaning}' if meaning else ''}; its log: {str(self.log_file)!r}"

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the server and all of its processes; what it is asked already, it still answers.

        Args:
            timeout_s: Seconds for an orderly end; after that, or at a second Ctrl-C, it is killed.
        """
        if self._stopped:
            return
        try:
            if self._process.poll() is None:
                self._process.terminate()
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._stopped = True
            self._remove_leftovers()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self.stop()

    def _log_from(self, start: int) -> bytes:
        try:
            with self.log_file.open("rb") as stream:
                stream.seek(start)
                return stream.read()
        except OSError:  # somebody took it away; the server writes on
            return b""

    def _remove_leftovers(self) -> None:
        """What a killed server leaves: a container, the processes of its Python models, memory."""
        if self.launch.stop:
            subprocess.run(self.launch.stop, capture_output=True, check=False)
        self._kill_group()
        self._process.wait()
        if self.launch.server != "container":
            for path in _SHARED_MEMORY.glob(f"{shm_prefix(self._settings)}*"):
                path.unlink(missing_ok=True)

    def _kill_group(self) -> None:
        """The server leads a group of its own, so its children are reached after it is gone, too.

        A process that is killed is there for another moment; so is its memory.
        """
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.poll()  # a child that nobody asks after stays in its group
                time.sleep(_KILL_POLL_S)


def start_server(
    launch: Launch,
    settings: ServerSettings,
    log_file: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> TritonServer:
    """Start a server; it ends with this process, however that ends.

    Call it from the main thread: the kernel watches the thread that starts a process.

    Args:
        launch: What to start.
        settings: The settings that ``launch`` was made with.
        log_file: Gets what the server says, behind what is in it already.
        say: Called with a line for a person before an image is built.

    Raises:
        UsageError: A port is given twice.
        EnvironmentProblem: A port is taken, the log cannot be written, an image cannot be built.
    """
    check_ports(settings)
    if launch.preparation is not None:
        say(f"building the image, once: {launch.preparation.shell_line()}")
        _prepare(launch.preparation)
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        stream = log_file.open("ab")
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the log {str(log_file)!r}: {error}; name another file with --log"
        ) from error
    with stream:
        log_start = stream.tell()
        process = _start(launch, stream.fileno())
    return TritonServer(process, launch, settings, log_file=log_file, log_start=log_start)


def _prepare(preparation: Preparation) -> None:
    done = subprocess.run(
        preparation.argv, input=preparation.text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise EnvironmentProblem(
            f"the image cannot be built: {last}; try it by hand: {preparation.shell_line()}, "
            "or choose --server pip"
        )


def _start(launch: Launch, log: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), str(os.getpid()), *launch.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **launch.variables},
            # Ctrl-C reaches us alone; we then ask the server to end in order.
            start_new_session=True,
        )
    except OSError as error:
        raise EnvironmentProblem(f"cannot start {launch.argv[0]!r}: {error}") from error
