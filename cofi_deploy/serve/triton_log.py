r"""Triton's own words, and what they mean.

In: the text that a server has logged since it was started. Out: the error that matters in it
(`last_error`), a sentence on what to do about it (`explain`), and what happened to each version of
a model (`model_events`). Used by `triton_server.py`; the table at the end is where a new cause
goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# `E1124 03:06:30.156454 2772 server.cc:241] "words"`; servers before 2.44 leave the quotes out.
_ENTRY = re.compile(r"^([EWIF])\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] +(.*)$", re.MULTILINE)

# What a server without a GPU says at every start; it goes on.
_HARMLESS = re.compile(r"CUDA driver version is insufficient|CudaDriverHelper|NVML|DCGM")

_ENGINE_CAUSE = re.compile(r"Serialized Engine Version|incompatible device")

_FAILED = re.compile(r"failed to load '([^']+)' version (\d+): (?:\w[\w ]*: )?(.*)", re.DOTALL)
_UNFIT = re.compile(
    r"Poll failed for model directory '([^']+)': (.*)|failed to load model '([^']+)': (.*)",
    re.DOTALL,
)
_LOADING = re.compile(r"loading: (\S+):(\d+)$")
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_UNLOADED = re.compile(r"successfully unloaded '([^']+)' version (\d+)")


@dataclass(frozen=True, kw_only=True)
class ModelEvent:
    """What happened to a model; ``version`` is empty where Triton does not say it."""

    kind: Literal["loading", "loaded", "unloaded", "refused"]
    model: str
    version: str = ""
    words: str = ""  # why it was refused


def last_error(text: str) -> str:
    """The error of a log that says why: models that do not load, else the last one there is.

    Returns:
        Triton's own words without time, place and Python's traceback; empty when there are none.
    """
    refused = _refused(text)
    if refused:
        return "; ".join([*_engine_causes(text), *refused])
    errors = [words for level, words in _entries(text) if level in "EF" and not _is_noise(words)]
    if errors:
        return errors[-1]
    # What is no entry comes from before the log was set up, or from another program.
    rest = (line.strip() for line in text.splitlines() if not _ENTRY.match(line))
    lines = [line for line in rest if line and not _is_noise(line)]
    plain = [line for line in lines if line.lower().startswith("error") or ": error" in line]
    return (plain or lines or [""])[-1]


def explain(words: str) -> str:
    """What Triton's words mean and what to do; empty where they speak for themselves."""
    for pattern, meaning in _MEANINGS:
        match = re.search(pattern, words)
        if match is not None:
            return match.expand(meaning)
    return ""


def model_events(text: str) -> Iterator[ModelEvent]:
    """What a log tells about models, in its order."""
    for _, words in _entries(text):
        event = _event(words)
        if event is not None:
            yield event


class ModelNews:
    """Turns what a running server logs into lines for a person."""

    def __init__(self) -> None:
        """Begin with a server of which nothing has been told."""
        self._loading: dict[str, str] = {}  # model -> the version that is being loaded
        self._told: set[str] = set()

    def read(self, text: str) -> list[str]:
        """A line for each change that ``text``, the next part of the log, tells."""
        lines = []
        for event in model_events(text):
            if event.kind == "loading":
                self._loading[event.model] = event.version
                continue
            line = self._line(event)
            # A server that polls says at every poll again what it cannot load.
            if event.kind != "refused" or line not in self._told:
                lines.append(line)
            self._told.add(line)
        return lines

    def _line(self, event: ModelEvent) -> str:
        version = event.version or self._loading.get(event.model, "")
        what = f"{event.model} version {version}" if version else event.model
        if event.kind != "refused":
            return f"{what} is {event.kind}"
        meaning = explain(event.words)
        return (
            f"{what} is refused: {event.words}{f'; {meaning}' if meaning else ''}; "
            "what was served before goes on"
        )


def _refused(text: str) -> list[str]:
    """The models that are not loaded in the end, each with the reason."""
    reasons: dict[str, str] = {}
    for event in model_events(text):
        if event.kind == "refused":
            version = f" version {event.version}" if event.version else ""
            reasons[event.model] = f"{event.model}{version}: {event.words}"
        elif event.kind == "loaded":
            reasons.pop(event.model, None)
    return list(reasons.values())


def _engine_causes(text: str) -> list[str]:
    """What TensorRT itself says; Triton's line has only that the plan could not be loaded."""
    return [words for _, words in _entries(text) if _ENGINE_CAUSE.search(words)][:1]


def _event(words: str) -> ModelEvent | None:
    if match := _FAILED.search(words):
        return ModelEvent(kind="refused", model=match[1], version=match[2], words=match[3])
    if match := _UNFIT.search(words):
        model, why = match[1] or match[3], match[2] or match[4]
        return ModelEvent(kind="refused", model=model, words=why)
    if match := _UNLOADED.search(words):
        return ModelEvent(kind="unloaded", model=match[1], version=match[2])
    if match := _LOADED.search(words):
        return ModelEvent(kind="loaded", model=match[1])
    if match := _LOADING.search(words):
        return ModelEvent(kind="loading", model=match[1], version=match[2])
    return None


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Level and words of each entry, without quotes and Python's traceback."""
    for match in _ENTRY.finditer(text):
        words = match[2].strip()
        if words.startswith('"') and words.endswith('"'):
            words = words[1:-1].replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
        yield match[1], words.split("\n\nAt:")[0].strip()


def _is_noise(words: str) -> bool:
    return bool(_HARMLESS.search(words)) or words.startswith(("|", "+"))


# Pattern in Triton's words -> what it means; the first that fits is taken. `\1` is a group.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"unable to find backend library for backend '([^']+)'",
        r"this server has no backend '\1': export with --backend python, or start one that has it "
        "(--server container)",
    ),
    (
        r"No module named '([^'.]+)",
        r"the Python of this server has no package '\1': install it for the python3 that the "
        "server finds on PATH (numpy, onnxruntime and tokenizers are needed), or take --server pip",
    ),
    (
        r"Socket '([^']+)' already in use",
        r"another process took \1 while the server started: stop it, or choose other ports",
    ),
    (
        r"has sha256 \w+, but \w+ was recorded",
        "the file is not the one that was exported: export the version again, or go back to the "
        "version before with cofi-deploy rollback",
    ),
    (
        r"failed to read text proto from (\S+)",
        r"\1 has a typing error, or a field too new for this server: export the model again",
    ),
    (
        r"directory name must equal model name",
        "a model folder was renamed: give it its old name, or export with --name",
    ),
    (
        r"at least one version must be available",
        "the model folder has no version folder (1, 2, ...): export the model again",
    ),
    (
        r"contains models that are not available or ambiguous: (\w[\w, .-]*)",
        r"the ensemble needs \1, which is not in the repository or did not load: see the errors "
        "before this one, or export the model again",
    ),
    (
        r"Unable to initialize shared memory|No space left on device",
        "shared memory or the disk is full: free /dev/shm (a container gets more with --shm-size) "
        "or disk space",
    ),
    (
        r"output tensor shape does not match size of output",
        "the Python models run with numpy 2, with which this server sends empty answers: install "
        "'numpy<2' for the python3 that it finds on PATH, or take --server pip",
    ),
    (
        r"has kind KIND_GPU but no GPUs are available",
        "the model is configured for a GPU, and the server sees none: start it where there is one, "
        "or export again on this machine",
    ),
    (
        r"Serialized Engine Version|unable to load plan file|incompatible device"
        r"|unable to create TensorRT engine|Engine deserialization failed",
        "the TensorRT engine was built for another TensorRT version or GPU: build it with this "
        "server's version on this GPU (cofi-deploy export --format triton --backend tensorrt), or "
        "export with --backend onnxruntime",
    ),
    (
        r"libtritoncache_(\w+)\.so",
        r"this server has no '\1' response cache: leave --cache-mib out",
    ),
    (
        r"libpython\d+\.\d+\S*",
        r"the Python backend of this server is built for a Python that is not here (\g<0>): "
        "take --server pip",
    ),
    (
        r"error while loading shared libraries: (\S+):",
        r"the server's program needs the library \1, which is not here: take --server container "
        "or --server pip",
    ),
    (
        r"Load model from .* failed|Protobuf parsing failed|ModelProto does not have a graph",
        "model.onnx is damaged: export the version again",
    ),
    (
        r"bad_alloc|[Cc]annot allocate memory|MemoryError",
        "there is not enough memory: serve fewer models or instances",
    ),
    (
        r"failed to stat file (\S+)",
        r"\1 does not exist, or the server may not read it",
    ),
)
