"""A Triton server behind a repository: one of our own, or one that somebody else runs.

In: an export of format ``triton``. Out: a `TritonService`, which answers requests over gRPC. Our
own server runs on free loopback ports and ends with the service; `running_server` names another
one. Used by `runner_triton.py` (token ids) and `triton_text_accuracy.py` (text).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cofi_deploy.caches import cache_root
from cofi_deploy.errors import (
    EnvironmentProblem,
    MissingDependencyError,
    RunnerError,
    UsageError,
    did_you_mean,
)
from cofi_deploy.exports import ExportManifest
from cofi_deploy.serve.exported import open_export
from cofi_deploy.serve.triton_command import ServerSettings
from cofi_deploy.serve.triton_launchers import find_tritonserver, plan_launch
from cofi_deploy.serve.triton_log import explain
from cofi_deploy.serve.triton_ports import on_free_ports
from cofi_deploy.serve.triton_served import needs_of, remove_compiled_code
from cofi_deploy.serve.triton_server import STOP_TIMEOUT_S, TritonServer, start_server
from cofi_deploy.triton_repository import (
    CONFIG_FILE,
    CONFIGS_FOLDER,
    ModelConfig,
    check_repository,
    read_config,
    version_folders,
)

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

# A full batch of long texts takes seconds on a slow machine; what takes this long hangs.
_ANSWER_TIMEOUT_S = 300.0
_CONNECT_TIMEOUT_S = 5.0
# A connection breaks a moment before the process behind it is seen to be gone.
_DEATH_S, _DEATH_POLL_S = 2.0, 0.02
_BROKEN_STOP_S = 2.0

_url: ContextVar[str | None] = ContextVar("triton_url", default=None)


class RefusedRequestError(RunnerError):
    """Triton takes exception to what was sent, not to the model; other requests are answered."""


@dataclass(kw_only=True)
class TritonService:
    """A server that serves the models of an export; close it, or use `closing`.

    Attributes:
        name: Of the encoder on the server; `<name>_text` takes text.
        manifest: Of the export.
        config: Of the encoder, as the server runs it.
        server: Ours, or None where it is somebody else's.
    """

    name: str
    manifest: ExportManifest
    config: ModelConfig
    client: InferenceServerClient
    server: TritonServer | None = None
    _failed: bool = field(default=False, init=False)

    def ask(self, model: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Outputs of one request, by name.

        Args:
            model: Name on the server.
            inputs: int64 arrays, or object arrays of UTF-8 bytes, with the batch axis.

        Raises:
            RefusedRequestError: The server answers that the request is wrong.
            RunnerError: It gives no answer, or is gone; carries its words and names its log.
        """
        from tritonclient.grpc import InferInput  # noqa: PLC0415 - optional
        from tritonclient.utils import (  # noqa: PLC0415 - optional
            InferenceServerException,
            np_to_triton_dtype,
        )

        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensors.append(tensor.set_data_from_numpy(array))
        try:
            answer = self.client.infer(model, tensors, client_timeout=_ANSWER_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._problem(model, error) from error
        return {
            output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs
        }

    def close(self) -> None:
        """Hang up, and end the server with all of its processes where it is ours."""
        try:
            self.client.close()
        finally:
            if self.server is not None:
                # A broken one would wait half a minute for answers that never come.
                self.server.stop(timeout_s=_BROKEN_STOP_S if self._failed else STOP_TIMEOUT_S)
        if self.server is not None and not self._failed:
            self.server.log_file.unlink(missing_ok=True)

    def _problem(self, model: str, error: InferenceServerException) -> RunnerError:
        words = str(error.message())
        if error.status() == "StatusCode.INVALID_ARGUMENT":
            return RefusedRequestError(f"Triton refuses a request to {model!r}: {words}")
        self._failed = True
        meaning = explain(words)
        said = f"Triton gives no answer from {model!r}: {words}{f'; {meaning}' if meaning else ''}"
        if self.server is None:
            return RunnerError(f"{said}; see the log of the server at {_url.get()!r}")
        try:
            self._check_server()
        except RunnerError as gone:
            return gone
        return RunnerError(f"{said}; its log: {str(self.server.log_file)!r}")

    def _check_server(self) -> None:
        deadline = time.monotonic() + _DEATH_S
        while self.server is not None and time.monotonic() < deadline:
            self.server.check_alive(" while it was asked")
            time.sleep(_DEATH_POLL_S)


def open_service(artifact: Path) -> TritonService:
    """A server that serves an export: started here, or the one that `running_server` names.

    Call it from the main thread: a server that is started ends with the thread that started it.

    Raises:
        ArtifactError: The export is missing or corrupt, or a server would refuse it.
        RunnerError: Another format; a server that does not get ready; or a running one that serves
            other models.
        EnvironmentProblem: No server can be started, or none answers.
    """
    manifest, model_file = open_export(artifact, "triton", "triton", "model.onnx")
    folder = model_file.parent.parent
    newest = version_folders(folder)[-1]
    if newest != model_file.parent:
        raise RunnerError(
            f"{str(artifact)!r} serves version {newest.name} of {folder.name!r}, but its "
            f"export.json describes version {model_file.parent.name}; export the model once more "
            "with --output"
        )
    url = _url.get()
    if url is not None:
        return _connected(url, folder, manifest)
    return _started(artifact, folder, manifest)


@contextlib.contextmanager
def running_server(url: str | None) -> Iterator[None]:
    """Within it, services are those of a server that runs already; None changes nothing.

    Args:
        url: `HOST:PORT` of its gRPC service.

    Raises:
        UsageError: No `HOST:PORT`.
        MissingDependencyError: tritonclient is not installed.
        EnvironmentProblem: Nothing answers there.
    """
    if url is not None:
        _check_answers(url)
    token = _url.set(url)
    try:
        yield
    finally:
        _url.reset(token)


def server_url() -> str | None:
    """What `running_server` named."""
    return _url.get()


def _started(artifact: Path, folder: Path, manifest: ExportManifest) -> TritonService:
    remove_compiled_code(artifact)
    check_repository(artifact)
    # Without polling a server that waits for its turn does nothing at all.
    settings = on_free_ports(ServerSettings(model_control="none"))
    launch = plan_launch(
        artifact.resolve(),
        needs_of(artifact),
        settings,
        server="pip" if find_tritonserver() is None else "tritonserver",
    )
    name = launch.config_name
    path = folder / CONFIGS_FOLDER / f"{name}.pbtxt" if name else folder / CONFIG_FILE
    config = read_config(path)
    log = cache_root() / "logs" / f"triton-verify-{settings.http_port}.log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_server(launch, settings, log))
        server.wait_until_ready()
        client = _client(server.grpc_address)
        stack.pop_all()
    return TritonService(
        name=folder.name, manifest=manifest, config=config, client=client, server=server
    )


def _connected(url: str, folder: Path, manifest: ExportManifest) -> TritonService:
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415 - optional

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(_client(url)))
        try:
            config = _served_config(url, client, folder)
        except InferenceServerException as error:
            raise RunnerError(
                f"the server at {url!r} (--triton-url) gives no answer: {error.message()}"
            ) from error
        stack.pop_all()
    return TritonService(name=folder.name, manifest=manifest, config=config, client=client)


def _served_config(url: str, client: InferenceServerClient, folder: Path) -> ModelConfig:
    """Configuration of the encoder on somebody else's server, which must serve the same."""
    index = client.get_model_repository_index(client_timeout=_CONNECT_TIMEOUT_S).models
    ready = sorted({model.name for model in index if model.state == "READY"})
    if folder.name not in ready:
        raise RunnerError(
            f"the server at {url!r} (--triton-url) has no model {folder.name!r} that is ready, "
            f"{did_you_mean(folder.name, ready)}; serve {str(folder.parent)!r} there, or leave "
            "--triton-url out"
        )
    config = client.get_model_config(folder.name, client_timeout=_CONNECT_TIMEOUT_S).config
    _check_same_answers(url, config, read_config(folder / CONFIG_FILE))
    return config


def _check_same_answers(url: str, served: ModelConfig, exported: ModelConfig) -> None:
    """A model of the same name may be of another task; of other weights tells the agreement."""
    got, expected = (
        {output.name: list(output.dims) for output in config.output}
        for config in (served, exported)
    )
    if got != expected:
        raise RunnerError(
            f"model {exported.name!r} of the server at {url!r} (--triton-url) gives {got}, this "
            f"export {expected}; serve the export there, or leave --triton-url out"
        )


def _check_answers(url: str) -> None:
    host, _, port = url.rpartition(":")
    if not host or "/" in url or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(
            f"--triton-url is {url!r}, expected HOST:PORT of the gRPC service, such as "
            "localhost:8001"
        )
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415 - after `_client`

    with contextlib.closing(_client(url)) as client:
        try:
            client.get_server_metadata(client_timeout=_CONNECT_TIMEOUT_S)
        except InferenceServerException as error:
            raise EnvironmentProblem(
                f"no Triton server answers gRPC at {url!r} (--triton-url): {error.message()}; "
                "start one with: cofi-deploy serve"
            ) from error


def _client(url: str) -> InferenceServerClient:
    try:
        from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingDependencyError("tritonclient", "triton", "runtime 'triton'") from error
    return InferenceServerClient(url)
