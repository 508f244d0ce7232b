"""Token ids in, logits out: `model.onnx` beside this file, in ONNX Runtime.

Runs inside Triton's Python backend, copied into a version folder as `model.py`; it imports nothing
of cofi_deploy and keeps to Python 3.8. Requests that Triton has merged may differ in length. Each
is checked by itself, so that a bad one fails alone; the rows of the good ones are sorted by their
real length and run in a few batches with little padding.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PER_TOKEN_KINDS = ("token-classification", "question-answering")

CUDA = "CUDAExecutionProvider"

# What one more run costs, in tokens of padding that would cost the same. On one CPU thread anything
# from 16 to 64 is within 7 % of the best, for a dense model and for one pruned by 92 %, while one
# padded run of all rows takes 1.5 to 5 times as long. The number for a GPU is an estimate.
RUN_COST = {"CPU": 64, "GPU": 4096}


class Rejected(Exception):  # noqa: N818 - an answer to the caller, not a fault of ours
    """A request that gets an error instead of an answer."""


class Limits(NamedTuple):
    """What the embeddings of the model can take."""

    max_positions: int
    vocab_size: int
    type_vocab_size: int
    pad_token_id: int


class Manifest(NamedTuple):
    """What `export.json` says about this version."""

    limits: Limits
    per_token: bool  # an output has a value for each token
    checksums: Mapping[str, str]  # file -> SHA-256


class Row(NamedTuple):
    """One sequence of one request."""

    request: int
    row: int
    length: int  # up to its last real token


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model of this version.

        Raises:
            TritonModelException: A file of the version is missing or corrupt; Triton then goes on
                serving the version before.
        """
        version = Path(args["model_repository"]) / args["model_version"]
        manifest = _read_manifest(version)
        self._limits, self._per_token = manifest.limits, manifest.per_token
        self._device = "GPU" if args.get("model_instance_kind") == "GPU" else "CPU"
        parameters = json.loads(args["model_config"]).get("parameters", {})
        threads = int(parameters.get("intra_op_thread_count", {}).get("string_value", "0"))
        content = _checked_content(version, manifest.checksums)
        device_id = args.get("model_instance_device_id", "0")
        self._session = _open_session(content, threads, self._device, device_id)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in their order."""
        responses: list[Any] = [None] * len(requests)
        tensors: dict[int, dict[str, Array]] = {}
        for index, request in enumerate(requests):
            try:
                tensors[index] = _checked_tensors(request, self._limits)
            except Rejected as rejection:
                responses[index] = _error(str(rejection), pb_utils.TritonError.INVALID_ARG)
        try:
            answers = self._answers(tensors)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no class
            for index in tensors:
                responses[index] = _error(f"ONNX Runtime: {error}", pb_utils.TritonError.INTERNAL)
            return responses
        for index, answer in answers.items():
            outputs = [pb_utils.Tensor(name, array) for name, array in answer.items()]
            responses[index] = pb_utils.InferenceResponse(output_tensors=outputs)
        return responses

    def finalize(self) -> None:
        """Free the model before a version after it takes its memory."""
        del self._session

    def _answers(self, tensors: Mapping[int, Mapping[str, Array]]) -> dict[int, dict[str, Array]]:
        """Run the rows of all requests in batches of similar length.

        Where an output has a value for each token, those of padding are zero.
        """
        rows = [row for index in tensors for row in _rows(index, tensors[index]["attention_mask"])]
        answers: dict[int, dict[str, Array]] = {index: {} for index in tensors}
        for batch in batches_of_similar_length(rows, RUN_COST[self._device]):
            inputs = _padded(batch, tensors, self._limits.pad_token_id)
            for name, output in zip(self._outputs, self._session.run(self._outputs, inputs)):
                for position, (request, row, length) in enumerate(batch):
                    if name not in answers[request]:
                        answers[request][name] = self._zeros(tensors[request]["input_ids"], output)
                    if self._per_token:
                        answers[request][name][row, :length] = output[position, :length]
                    else:
                        answers[request][name][row] = output[position]
        return answers

    def _zeros(self, ids: Array, output: Array) -> Array:
        """Room for the answer to one request: (rows, ...) or (rows, length, ...)."""
        leading = ids.shape if self._per_token else ids.shape[:1]
        return np.zeros((*leading, *output.shape[len(leading) :]), dtype=output.dtype)


def batches_of_similar_length(rows: Sequence[Row], run_cost: int) -> list[list[Row]]:
    """Sort rows by length and cut them where one more run costs less than the padding it saves.

    A batch costs ``run_cost`` plus its tokens, padding included. The cheapest way to cut is found
    exactly: for every place where the length changes, from the best ways to the places before.
    The batch of the longest rows comes first.
    """
    ordered = sorted(rows, key=lambda row: row.length)
    cheapest, start_of = {0: 0}, {}
    for end in range(1, len(ordered) + 1):
        width = ordered[end - 1].length
        if end == len(ordered) or ordered[end].length > width:
            cheapest[end], start_of[end] = min(
                (cost + run_cost + (end - start) * width, start) for start, cost in cheapest.items()
            )
    batches = []
    end = len(ordered)
    while end:
        batches.append(ordered[start_of[end] : end])
        end = start_of[end]
    return batches


def _rows(request: int, mask: Array) -> list[Row]:
    """The rows of one request; what follows the last real token of a row needs no computing."""
    trailing = np.argmax(mask[:, ::-1] != 0, axis=1)  # 0 for a row without any real token
    return [Row(request, row, mask.shape[1] - int(size)) for row, size in enumerate(trailing)]


def _padded(
    batch: Sequence[Row], tensors: Mapping[int, Mapping[str, Array]], pad_token_id: int
) -> dict[str, Array]:
    """Inputs (rows, longest row) of one run."""
    shape = (len(batch), max(row.length for row in batch))
    request = batch[0].request
    whole = tensors[request]["input_ids"].shape
    in_order = all(row[:2] == (request, index) for index, row in enumerate(batch))
    if shape == whole and in_order:
        return dict(tensors[request])  # nothing merged, nothing padded: no copy
    inputs = {name: np.zeros(shape, dtype=np.int64) for name in INPUTS}
    inputs["input_ids"].fill(pad_token_id)
    for position, (request, row, length) in enumerate(batch):
        for name in INPUTS:
            inputs[name][position, :length] = tensors[request][name][row, :length]
    return inputs


def _checked_tensors(request: Any, limits: Limits) -> dict[str, Array]:
    """The inputs of one request, each (rows, length) of int64.

    Raises:
        Rejected: An input is missing, has another type or shape, or a value out of range.
    """
    tensors = {}
    for name in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise Rejected(f"input {name!r} is missing, expected: {', '.join(INPUTS)}")
        tensors[name] = tensor.as_numpy()
        _check_shape(name, tensors[name], tensors["input_ids"].shape, limits.max_positions)
    _check_range("input_ids", tensors["input_ids"], limits.vocab_size)
    _check_range("attention_mask", tensors["attention_mask"], 2)
    # With fewer than two types the model ignores them; every tokenizer may still send 0 and 1.
    _check_range("token_type_ids", tensors["token_type_ids"], max(2, limits.type_vocab_size))
    return tensors


def _check_shape(name: str, array: Array, expected: Sequence[int], longest: int) -> None:
    if array.dtype != np.int64:
        raise Rejected(f"{name} has type {array.dtype}, expected int64")
    if array.ndim != 2 or not array.size:
        raise Rejected(f"{name} has shape {list(array.shape)}, expected rows x tokens, 1 or more")
    if array.shape != expected:
        raise Rejected(
            f"{name} has shape {list(array.shape)}, but input_ids has {list(expected)}; "
            "give all inputs the same shape"
        )
    if array.shape[1] > longest:
        raise Rejected(f"{name} has {array.shape[1]} tokens in a row, the model takes {longest}")


def _check_range(name: str, array: Array, size: int) -> None:
    # Read as unsigned, a negative number is a huge one: one pass instead of two.
    if int(array.view(np.uint64).max()) >= size:
        wrong = array[(array < 0) | (array >= size)]
        raise Rejected(f"{name} has {int(wrong[0])}, allowed: 0 to {size - 1}")


def _error(message: str, code: int) -> Any:
    error = pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _read_manifest(version: Path) -> Manifest:
    path = version / "export.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(
            limits=Limits(*(int(data["arch"][name]) for name in Limits._fields)),
            per_token=data["kind"] in PER_TOKEN_KINDS,
            checksums=dict(data["files"]),
        )
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    except (KeyError, TypeError) as error:
        problem = f"has a missing or unknown entry: {error}"
    raise pb_utils.TritonModelException(f"{str(path)!r} {problem}; export the version again")


def _checked_content(version: Path, checksums: Mapping[str, str]) -> bytes:
    """The bytes of the model file, as they were when it was exported."""
    path = version / "model.onnx"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise pb_utils.TritonModelException(
            f"{str(path)!r} cannot be read: {error}; export the version again"
        ) from error
    got, recorded = hashlib.sha256(content).hexdigest(), checksums.get(path.name, "none")
    if got != recorded:
        raise pb_utils.TritonModelException(
            f"{str(path)!r} has sha256 {got[:12]}, but {recorded[:12]} was recorded when it was "
            "written: it is corrupt, truncated or was replaced; export the version again"
        )
    return content


def _open_session(content: bytes, threads: int, device: str, device_id: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # 0: all cores
    # A waiting thread must not burn the core that another model's process needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "GPU" and CUDA in onnxruntime.get_available_providers():
        providers.insert(0, (CUDA, {"device_id": device_id}))
    elif device == "GPU":
        pb_utils.Logger.log_warn(
            f"ONNX Runtime {onnxruntime.__version__} has no {CUDA}, so a GPU instance runs on the "
            "CPU; install onnxruntime-gpu where the server looks for packages"
        )
    return onnxruntime.InferenceSession(content, options, providers=providers)
