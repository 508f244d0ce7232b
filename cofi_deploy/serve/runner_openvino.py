"""OpenVINO on the CPU: an export of format ``openvino``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cofi_deploy.errors import MissingDependencyError, RunnerError
from cofi_deploy.exports import ExportManifest, SessionChoice
from cofi_deploy.kinds import is_per_token
from cofi_deploy.openvino_core import openvino_core
from cofi_deploy.pieces import pieces_of
from cofi_deploy.serve.exported import check_precision, open_export
from cofi_deploy.serve.inputs import InputLimits, Tensors
from cofi_deploy.serve.runner import RunnerSettings, physical_cores

if TYPE_CHECKING:
    import openvino

_DEVICE = "CPU"

# What an artifact of each precision may be computed in; the first is what it is made for. fp16 is
# how weights are stored, the processor computes in fp32.
_COMPUTED = {
    "fp32": ("fp32", "bf16"),
    "fp16": ("fp16", "bf16"),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8",),
}


def unavailable(runtime: str) -> str | None:
    """The package is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return "the package 'openvino' is not installed; run: pip install 'cofi-deploy[openvino]'"
    return None


def open_session(artifact: Path, settings: RunnerSettings) -> OpenVinoSession:
    """Open an OpenVINO export with the latency hint, for one caller or several at once.

    An fp32 artifact may be run in bf16 (``settings.precision``) on processors that have it, a
    bf16 one in fp32 on those that have not. OpenVINO would choose by itself; here it does what it
    is told.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ArtifactError: See `exports.check_export`.
        RunnerError: Another format, or a precision that artifact or processor does not have.
    """
    compiled, manifest, precision = compile_export(artifact, settings)
    names = tuple(item.any_name for item in compiled.inputs)
    limits = InputLimits.from_arch(manifest.arch, names)
    threads = settings.threads_of(manifest.session)
    shape = static_shape(compiled)
    if shape is None:
        pieces = _streams(manifest.session)
        return OpenVinoSession(compiled, limits, precision, threads, pieces=pieces)
    limits = replace(limits, max_positions=shape.length)
    fixed = replace(shape, pad_id=manifest.arch.pad_token_id, per_token=is_per_token(manifest.kind))
    return OpenVinoSession(compiled, limits, precision, threads, fixed)


def compile_export(
    artifact: Path, settings: RunnerSettings, extra: Mapping[str, Any] | None = None
) -> tuple[openvino.CompiledModel, ExportManifest, str]:
    """The compiled graph, the export's manifest, and what it computes in; see `open_session`.

    Args:
        artifact: An export of format ``openvino``.
        settings: Threads and precision.
        extra: More properties for the compiler.
    """
    try:
        core = openvino_core()
    except ImportError as error:
        raise MissingDependencyError("openvino", "openvino", "runtime 'openvino'") from error

    manifest, path = open_export(artifact, settings.runtime, "openvino", ".xml")
    choice = manifest.session
    threads = settings.threads_of(choice)
    precision = settings.precision or manifest.precision
    check_precision(settings.runtime, precision, _COMPUTED[manifest.precision])
    if precision == "bf16" and "BF16" not in core.get_property(
        _DEVICE, "OPTIMIZATION_CAPABILITIES"
    ):
        raise RunnerError(
            "openvino: precision is 'bf16', but this processor has no bf16 (AVX512-BF16 or AMX); "
            f"use {next(name for name in _COMPUTED[manifest.precision] if name != 'bf16')!r}"
        )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(max(settings.streams, _streams(choice))),
        # The threads of all streams together; a stream has one at the least.
        "INFERENCE_NUM_THREADS": max(threads, min(threads * settings.streams, physical_cores())),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        **_tuned(core, choice, precision == manifest.precision),
        **(extra or {}),
    }
    return core.compile_model(path, _DEVICE, config), manifest, precision


def _tuned(
    core: openvino.Core, choice: SessionChoice | None, is_own_precision: bool
) -> Mapping[str, Any]:
    """What the artifact was tuned to; no precision beside another one, or that is not here."""
    settings = dict({} if choice is None else choice.settings)
    settings.pop("NUM_STREAMS", None)  # beside those that callers need
    has_bf16 = "BF16" in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if not (is_own_precision and has_bf16):
        settings.pop("INFERENCE_PRECISION_HINT", None)
    return settings


def _streams(choice: SessionChoice | None) -> int:
    """In how many pieces a batch is computed side by side."""
    return 1 if choice is None else int(choice.settings.get("NUM_STREAMS", 1))


@dataclass(frozen=True, kw_only=True)
class StaticShape:
    """The one shape that a graph computes, and how to bring other inputs to it."""

    batch: int
    length: int
    pad_id: int = 0
    per_token: bool = False

    def padded(self, inputs: Tensors) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Inputs in pieces of this shape; what is added is padding with mask 0."""
        for piece in pieces_of(inputs, self.batch):
            count, length = next(iter(piece.values())).shape
            room = ((0, self.batch - count), (0, self.length - length))
            yield {
                name: np.pad(array, room, constant_values=self.pad_id if name == "input_ids" else 0)
                for name, array in piece.items()
            }

    def cut(
        self, outputs: Sequence[Mapping[str, npt.NDArray[Any]]], shape: tuple[int, ...]
    ) -> dict[str, npt.NDArray[Any]]:
        """Outputs of the pieces as those of inputs of ``shape``, without what padding answered."""
        joined = {
            name: np.concatenate([piece[name] for piece in outputs])[: shape[0]]
            for name in outputs[0]
        }
        return {name: a[:, : shape[1]] for name, a in joined.items()} if self.per_token else joined


def static_shape(compiled: openvino.CompiledModel) -> StaticShape | None:
    """The one shape that a graph computes; None where it computes any."""
    shape = compiled.inputs[0].get_partial_shape()
    if shape.is_dynamic:
        return None
    batch, length = (dimension.get_length() for dimension in shape)
    return StaticShape(batch=batch, length=length)


class OpenVinoSession:
    """A compiled model, with an inference request for each concurrent caller."""

    device = "cpu"

    def __init__(
        self,
        compiled: openvino.CompiledModel,
        limits: InputLimits,
        precision: str,
        threads: int,
        shape: StaticShape | None = None,
        *,
        pieces: int = 1,
    ) -> None:
        """Take a compiled model, and its shape where it has but one.

        Of any other a batch is computed in ``pieces`` at once, where there are as many streams.
        """
        self.threads = threads
        self._shape = shape
        self._pieces = pieces
        self._compiled: openvino.CompiledModel | None = compiled
        # A request serves one caller; each waiting one takes an idle request, or makes its own.
        self._idle = [compiled.create_infer_request()]
        # Names, not ports: a port that outlives its model is one more thing that must go in order.
        self._outputs = tuple(item.any_name for item in compiled.outputs)
        self.precision = precision
        self.limits = limits

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs of checked inputs; for a static graph, padding and cutting are part of it."""
        if self._shape is None:
            count = min(self._pieces, len(next(iter(inputs.values()))))
            return self._infer(inputs) if count == 1 else self._infer_at_once(inputs, count)
        pieces = [self._infer(piece) for piece in self._shape.padded(inputs)]
        return self._shape.cut(pieces, next(iter(inputs.values())).shape)

    def _infer(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs, copied out of the request's buffers."""
        request = self._take_request()
        try:
            results = request.infer(dict(inputs), share_inputs=True, share_outputs=True)
            return {name: results[index].copy() for index, name in enumerate(self._outputs)}
        finally:
            self._idle.append(request)

    def _infer_at_once(self, inputs: Tensors, count: int) -> dict[str, npt.NDArray[Any]]:
        """Outputs of a batch that is cut into ``count`` pieces, one for each stream."""
        cut = {name: np.array_split(array, count) for name, array in inputs.items()}
        requests = [self._take_request() for _ in range(count)]
        for index, request in enumerate(requests):
            piece = {name: arrays[index] for name, arrays in cut.items()}
            request.start_async(piece, share_inputs=True)
        for request in requests:
            request.wait()
        outputs = {
            name: np.concatenate([request.get_tensor(name).data for request in requests])
            for name in self._outputs
        }
        self._idle.extend(requests)  # not those that failed: one may still be busy
        return outputs

    def _take_request(self) -> openvino.InferRequest:
        compiled = self._compiled  # one look: another thread may close the session
        if compiled is None:
            raise RunnerError("this openvino session is closed; open the artifact again")
        try:
            return self._idle.pop()  # atomic, as append is
        except IndexError:
            return compiled.create_infer_request()

    def close(self) -> None:
        """Drop the requests, then the model that they are of.

        The other way round, the model would be taken down by its own last request.
        """
        self._idle.clear()
        self._compiled = None
