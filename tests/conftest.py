"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

# Read by the libraries when they are imported, so set before any test module imports them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # noqa: PLC0415 - a run without such tests need not wait for it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup() -> None:
    """The same random numbers in a test whatever ran before it in its process."""
    random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of GLUE, SQuAD and WNUT17 files: $COFI_DEPLOY_DATA, or ../shared/data."""
    named = os.environ.get("COFI_DEPLOY_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "glue").is_dir():
        pytest.skip(f"no benchmark data below {str(folder)!r}; set COFI_DEPLOY_DATA")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser that pages are looked at in."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("no Chromium on PATH; on Debian: apt-get install chromium")
    return binary
