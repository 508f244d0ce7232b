"""What Triton's Python backend gives a model as `triton_python_backend_utils`, in memory.

The real module works only inside the server's own process. Names and behaviour follow it; what a
model of ours does not use is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """Raised in `initialize` to refuse to load."""


class TritonError:
    """What goes wrong with one request."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = range(6)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A named array; strings are arrays of bytes of dtype object."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name!r} is a {type(array).__name__}, expected a numpy array")
        if array.dtype.kind in "US":
            raise TypeError(f"{name!r} has dtype {array.dtype}; strings go as dtype object")
        self._name, self._array = name, np.ascontiguousarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceRequest:
    """The tensors of one request."""

    def __init__(self, inputs: Sequence[Tensor], request_id: str = "") -> None:
        self._inputs, self._request_id = list(inputs), request_id

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._request_id


class InferenceResponse:
    """Tensors, or an error, for one request."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    """Log lines of the server; kept for tests."""

    lines: list[str] = []  # noqa: RUF012 - of the class, as in the server

    @classmethod
    def _log(cls, message: str) -> None:
        cls.lines.append(message)

    log = log_info = log_warn = log_error = log_verbose = _log


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def request(**arrays: Any) -> InferenceRequest:
    """A request of these arrays; not part of Triton's module."""
    return InferenceRequest([Tensor(name, array) for name, array in arrays.items()])


def outputs(response: InferenceResponse) -> dict[str, np.ndarray]:
    """The arrays of a good response; not part of Triton's module."""
    error = response.error()
    if error is not None:
        raise AssertionError(error.message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
