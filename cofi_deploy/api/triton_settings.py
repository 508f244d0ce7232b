"""What `export --set KEY=VALUE` says about a Triton server -> `TritonOptions`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from cofi_deploy.errors import ConfigError, did_you_mean
from cofi_deploy.export.triton_config import TritonOptions

# Options with flags of their own.
_FLAGS = {"backend": "--backend", "max_batch_size": "--batch-size MIN:OPT:MAX"}
# What `--set` takes.
TRITON_SETTINGS = tuple(
    each.name for each in dataclasses.fields(TritonOptions) if each.name not in _FLAGS
)

# A container sees all cores of its node; an instance that took them all would be throttled.
POD_THREADS = 4


def triton_options(
    flags: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    served: Mapping[str, Any] | None = None,
    kserve: bool = False,
) -> TritonOptions:
    """Options of the server: what is served already, then the flags of the command line.

    Args:
        flags: Fields of `TritonOptions` that have flags of their own; None where not given.
        settings: Any other field, by name.
        served: What the version before was exported with; the next one must fit to it.
        kserve: The server will run in a pod: an instance gets `POD_THREADS` where nothing is said.

    Raises:
        ConfigError: Unknown names and values of a wrong type, all at once.
    """
    hints = typing.get_type_hints(TritonOptions)
    _check_settings(settings, hints)
    # An older or newer cofi-deploy may have recorded more than there is here.
    values = {key: value for key, value in (served or {}).items() if key in hints}
    values |= {key: value for key, value in flags.items() if value is not None}
    values |= settings
    options = TritonOptions(**{key: _frozen(value) for key, value in values.items()})
    if kserve and options.threads is None and options.runs_on == "cpu":
        return dataclasses.replace(options, threads=POD_THREADS)
    return options


def _check_settings(settings: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    problems = []
    for key, value in settings.items():
        if key in _FLAGS:
            problems.append(f"{key} is set with {_FLAGS[key]}")
        elif key not in hints:
            problems.append(f"unknown setting {key!r}, {did_you_mean(key, TRITON_SETTINGS)}")
        elif not _fits(value, hints[key]):
            problems.append(f"{key} is {value!r}, expected {_described(hints[key])}")
    if problems:
        raise ConfigError("; ".join(problems))


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return any(_fits(value, choice) for choice in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is not None:  # a mapping
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    return type(value) is hint  # a bool is no int here


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_described(choice) for choice in arguments if choice is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple:
        return f"a list like [{', '.join(['16', '128'])}]"
    if origin is not None:
        return 'a table like {team = "search"}'
    names = {int: "a whole number", bool: "true or false", str: "text"}
    return names.get(hint, str(hint))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
