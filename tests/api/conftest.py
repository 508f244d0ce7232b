"""A finished run of `api.train` on a tiny encoder, and copies of it to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cofi_deploy import api

# The tiny checkpoint and the tiny files of tasks are those of the training tests.
from tests.train.conftest import few_steps, one_thread, tiny_bert, tiny_data

__all__ = ["few_steps", "one_thread", "tiny_bert", "tiny_data"]


@pytest.fixture(scope="session")
def train_tiny(tiny_bert: Path, tiny_data: Path, few_steps: dict[str, Any]) -> Callable[..., Path]:
    """`api.train` on the tiny encoder; keywords win, settings are changes of `few_steps`."""

    def train(output: Path, task: str = "sst2", *, settings: Any = None, **arguments: Any) -> Path:
        return api.train(
            task,
            **{
                "model": tiny_bert,
                "data_dir": tiny_data,
                "output": output,
                "overrides": {**few_steps, "max_length": 48, **(settings or {})},
                **arguments,
            },
        )

    return train


@pytest.fixture(scope="session")
def tiny_run(train_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 with two target sparsities, finished; read only."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "sst2-tiny")


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "copy"))
