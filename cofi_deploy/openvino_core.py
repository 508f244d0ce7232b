"""The one `openvino.Core` of this process, which export and serving share."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def openvino_core() -> Any:
    """Plugins are opened once, and stay open.

    While a Core with its CPU plugin lives, the thread has a signal stack of that plugin. Two of
    them that go in another order than they came leave a freed stack behind, and the next Ctrl-C
    ends in a segmentation fault (seen with OpenVINO 2026.4 on Linux).

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino  # noqa: PLC0415 - optional

    return openvino.Core()
