"""Requests that no server may answer: every kind of bad input, over gRPC and HTTP.

In: the name of a model and what it takes. Out: `Malformed` requests as bytes on the wire, so that
no client library repairs or refuses them first, and `Doors.refusal`, which sends one and says how
the server turned it down. Next: `triton_faults.py`.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cofi_deploy.kinds import INPUT_NAMES

TIMEOUT_S = 30.0
MEGABYTES = 2 * 2**20
LENGTH = 8  # tokens of a request that is bad in another way

Ids = npt.NDArray[Any]
Tensor = tuple[str, Sequence[int], bytes]  # data type, shape, content


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked, and what it takes."""

    model: str
    vocab_size: int
    max_positions: int
    max_batch_size: int

    @property
    def text(self) -> str:
        """Name of the ensemble."""
        return f"{self.model}_text"


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """One bad request: a gRPC message, or an HTTP body with its path and headers."""

    name: str
    message: Any = None
    path: str = ""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Doors:
    """One connection of each kind to a server; not to be shared between threads."""

    def __init__(self, grpc_address: str, http_address: str) -> None:
        self._channel = grpc.insecure_channel(grpc_address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._http_address = http_address

    def refusal(self, request: Malformed) -> str | None:
        """How the server turned a request down; None where it answered."""
        if request.message is None:
            return self._over_http(request)
        try:
            self._stub.ModelInfer(request.message, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return None

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _over_http(self, request: Malformed) -> str | None:
        connection = http.client.HTTPConnection(self._http_address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", request.path, request.body, request.headers)
            status = connection.getresponse().status
        except http.client.HTTPException as error:
            return type(error).__name__
        finally:
            connection.close()
        return None if status < http.client.BAD_REQUEST else str(status)


def malformed_requests(target: Target) -> list[Malformed]:
    """Every kind once."""
    found = [Malformed(name=f"grpc ids: {name}", message=m) for name, m in _grpc_ids(target)]
    found += [Malformed(name=f"grpc text: {name}", message=m) for name, m in _grpc_text(target)]
    return [*found, *_http_ids(target), *_http_text(target)]


def crashing_requests(target: Target) -> list[Malformed]:
    """What ends the process of Triton 2.51 itself, in its own JSON code, before any model sees it.

    A shape of 2**40 numbers is allocated before the data is looked at (std::bad_alloc); a million
    brackets are parsed recursively (stack overflow). Over gRPC neither exists.
    """
    path = f"/v2/models/{target.model}/infer"
    huge = json.dumps(_json(LENGTH, shape=[1, 2**40])).encode()
    return [
        Malformed(name="http: a shape of 2**40 numbers", path=path, body=huge),
        Malformed(name="http: a million brackets", path=path, body=b"[" * 10**6),
    ]


def _grpc_ids(target: Target) -> Iterator[tuple[str, Any]]:
    for name, tensors in _bad_ids(target):
        yield name, _message(target.model, tensors)
    good = _ids()
    content = good["input_ids"][2]
    raw_lengths = {"truncated raw bytes": content[:-3], "too many raw bytes": content + b"\0" * 8}
    for name, raw in raw_lengths.items():
        yield name, _message(target.model, {**good, "input_ids": ("INT64", [1, LENGTH], raw)})
    yield "unknown model", _message("nobody", good)
    yield "unknown version", _message(target.model, good, version="99")
    yield "version that is no number", _message(target.model, good, version="first")
    yield "no model name", _message("", good)
    yield "nothing at all", service_pb2.ModelInferRequest()
    unknown = _message(target.model, good)
    unknown.outputs.add(name="nothing")
    yield "unknown output", unknown
    twice = _message(target.model, good)
    twice.inputs.add(name="input_ids", datatype="INT64", shape=[1, LENGTH])
    twice.raw_input_contents.append(content)
    yield "an input twice", twice
    without = _message(target.model, good)
    del without.raw_input_contents[-1]
    yield "an input without content", without
    shared = _message(target.model, good)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "nowhere"
    shared.inputs[0].parameters["shared_memory_byte_size"].int64_param = 64
    yield "unknown shared memory", shared


def _bad_ids(target: Target) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors that are what they say, and not what the model takes."""
    ones = np.ones((1, LENGTH), np.int64)
    yield "INT32", _ids(input_ids=ones.astype(np.int32))
    yield "FP32 with NaN", _ids(input_ids=np.full((1, LENGTH), np.nan, np.float32))
    yield "strings", {**_ids(), "input_ids": ("BYTES", [1, LENGTH], _strings([b"7"] * LENGTH))}
    yield "one axis", _all_shapes([LENGTH])
    yield "three axes", _all_shapes([1, LENGTH, 1])
    yield "no tokens", _all_shapes([1, 0])
    yield "no rows", _all_shapes([0, LENGTH])
    yield "a negative axis", {**_ids(), "input_ids": ("INT64", [1, -LENGTH], ones.tobytes())}
    yield "shapes that differ", _ids(attention_mask=np.ones((1, LENGTH + 1), np.int64))
    yield "too long", _all_shapes([1, target.max_positions + 1])
    yield "megabytes of ids", _all_shapes([1, MEGABYTES // 24])
    yield "batch above the maximum", _all_shapes([target.max_batch_size + 1, LENGTH])
    bad_values = {
        "input_ids": (-1, -(2**63), target.vocab_size, 2**63 - 1),
        "attention_mask": (-1, 2),
        "token_type_ids": (-1, 2),
    }
    for name, values in bad_values.items():
        for value in values:
            wrong = ones.copy() if name != "token_type_ids" else ones * 0
            wrong[0, -1] = value
            yield f"{name} of {value}", _ids(**{name: wrong})
    for name in INPUT_NAMES:
        yield f"no {name}", {key: value for key, value in _ids().items() if key != name}
    yield "an unknown input", {**_ids(), "position_ids": ("INT64", [1, LENGTH], ones.tobytes())}


def _grpc_text(target: Target) -> Iterator[tuple[str, Any]]:
    bad: dict[str, Tensor] = {
        "INT64": ("INT64", [1, 1], b"\1" * 8),
        "empty": ("BYTES", [1, 1], _strings([b""])),
        "megabytes": ("BYTES", [1, 1], _strings([b"word " * (MEGABYTES // 5)])),
        "invalid UTF-8": ("BYTES", [1, 1], _strings([b"caf\xe9 \xff\xfe"])),
        "a lone surrogate": ("BYTES", [1, 1], _strings([b"\xed\xa0\x80"])),
        "three texts in a row": ("BYTES", [1, 3], _strings([b"one", b"two", b"three"])),
        "no texts": ("BYTES", [1, 0], b""),
        "no rows": ("BYTES", [0, 1], b""),
        "one axis": ("BYTES", [1], _strings([b"one"])),
        "three axes": ("BYTES", [1, 1, 1], _strings([b"one"])),
        "fewer strings than the shape": ("BYTES", [2, 1], _strings([b"one"])),
        "more strings than the shape": ("BYTES", [1, 1], _strings([b"one", b"two"])),
        "a string cut short": ("BYTES", [1, 1], _strings([b"a whole sentence"])[:-5]),
        "a length that lies": ("BYTES", [1, 1], struct.pack("<I", 2**31) + b"short"),
        "half a length": ("BYTES", [1, 1], b"\5\0"),
        "batch above the maximum": (
            "BYTES",
            [target.max_batch_size + 1, 1],
            _strings([b"one"] * (target.max_batch_size + 1)),
        ),
    }
    for name, tensor in bad.items():
        yield name, _message(target.text, {"text": tensor})
    yield "no text", _message(target.text, {})
    yield "another name", _message(target.text, {"sentence": ("BYTES", [1, 1], _strings([b"a"]))})


def _http_ids(target: Target) -> Iterator[Malformed]:
    path = f"/v2/models/{target.model}/infer"
    good = json.dumps(_json(LENGTH)).encode()
    bodies = {
        "nothing": b"",
        "no JSON": b"hello",
        "broken JSON": good[: len(good) // 2],
        "a list": b"[]",
        "no inputs": b"{}",
        "inputs that are no list": b'{"inputs": 7}',
        "deep nesting": b"[" * 10_000,
        "NaN": good.replace(b"[1, 1", b"[NaN, 1", 1),
        "a fraction": good.replace(b"[1, 1", b"[1.5, 1", 1),
        "a string": good.replace(b"[1, 1", b'["one", 1', 1),
        "null": good.replace(b"[1, 1", b"[null, 1", 1),
        "a number above 64 bits": good.replace(b"[1, 1", b"[1" + b"0" * 30 + b", 1", 1),
        "less data than the shape": json.dumps(_json(LENGTH, shape=[1, LENGTH + 1])).encode(),
        "a shape of millions": json.dumps(_json(LENGTH, shape=[1, 2**20])).encode(),
        "a shape that overflows": json.dumps(_json(LENGTH, shape=[2**33, 2**33])).encode(),
        "a negative shape": json.dumps(_json(LENGTH, shape=[-1, LENGTH])).encode(),
        "unknown type": good.replace(b"INT64", b"INT65"),
        "too long": json.dumps(_json(target.max_positions + 1)).encode(),
        "ids out of range": good.replace(b"[1, 1", b"[%d, 1" % target.vocab_size, 1),
        "negative ids": good.replace(b"[1, 1", b"[-5, 1", 1),
    }
    for name, body in bodies.items():
        yield Malformed(name=f"http ids: {name}", path=path, body=body)
    header, content = _binary(_ids())
    lengths = {
        "raw bytes cut short": (str(len(header)), content[:-9]),
        "raw bytes and more": (str(len(header)), content + b"\0" * 16),
        "a header length beyond the body": (str(10**9), content),
        "a header length below 0": ("-1", content),
        "a header length that is no number": ("many", content),
    }
    for name, (length, raw) in lengths.items():
        yield Malformed(
            name=f"http ids: {name}",
            path=path,
            body=header + raw,
            headers={"Inference-Header-Content-Length": length},
        )
    yield Malformed(name="http: unknown model", path="/v2/models/nobody/infer", body=good)
    yield Malformed(name="http: unknown version", path=path.replace("/infer", "/versions/9/infer"))
    yield Malformed(name="http: unknown path", path="/v2/models/../../etc/passwd", body=good)


def _http_text(target: Target) -> Iterator[Malformed]:
    path = f"/v2/models/{target.text}/infer"
    texts = {
        "empty": b'""',
        "megabytes": b'"' + b"word " * (MEGABYTES // 5) + b'"',
        "invalid UTF-8": b'"caf\xe9 \xff\xfe"',
        "a lone surrogate": b'"\\ud800"',
        "a broken escape": b'"\\u12"',
        "a number": b"7",
        "null": b"null",
        "NaN": b"NaN",
    }
    for name, text in texts.items():
        body = b'{"inputs":[{"name":"text","shape":[1,1],"datatype":"BYTES","data":[%s]}]}' % text
        yield Malformed(name=f"http text: {name}", path=path, body=body)


def _ids(**changes: Ids) -> dict[str, Tensor]:
    """Good inputs, with arrays of another kind in place of some."""
    ones = np.ones((1, LENGTH), np.int64)
    arrays = {**dict.fromkeys(INPUT_NAMES, ones), "token_type_ids": ones * 0, **changes}
    types = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
    return {
        name: (types[array.dtype.name], array.shape, array.tobytes())
        for name, array in arrays.items()
    }


def _all_shapes(shape: Sequence[int]) -> dict[str, Tensor]:
    ones = np.ones(shape, np.int64)
    return _ids(input_ids=ones, attention_mask=ones, token_type_ids=ones * 0)


def _message(model: str, tensors: dict[str, Tensor], version: str = "") -> Any:
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, (data_type, shape, content) in tensors.items():
        message.inputs.add(name=name, datatype=data_type, shape=shape)
        message.raw_input_contents.append(content)
    return message


def _strings(strings: Sequence[bytes]) -> bytes:
    """Triton's form of strings: a length of four bytes before each."""
    return b"".join(struct.pack("<I", len(item)) + item for item in strings)


def _json(length: int, *, shape: Sequence[int] | None = None) -> dict[str, Any]:
    values = {**dict.fromkeys(INPUT_NAMES, [1] * length), "token_type_ids": [0] * length}
    return {
        "inputs": [
            {"name": name, "shape": shape or [1, length], "datatype": "INT64", "data": data}
            for name, data in values.items()
        ]
    }


def _binary(tensors: dict[str, Tensor]) -> tuple[bytes, bytes]:
    """Header and content of Triton's binary form of an HTTP request."""
    inputs = [
        {
            "name": name,
            "shape": list(shape),
            "datatype": data_type,
            "parameters": {"binary_data_size": len(content)},
        }
        for name, (data_type, shape, content) in tensors.items()
    ]
    header = json.dumps({"inputs": inputs}).encode()
    return header, b"".join(content for _, _, content in tensors.values())
