"""Timings are kept for one version on one kind of GPU; anything else is ignored with a warning."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from cofi_deploy.engines import CudaDevice
from cofi_deploy.export.timing_cache import (
    read_timing_cache,
    timing_cache_file,
    write_timing_cache,
)

GPU = CudaDevice(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
TIMINGS = bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.WARNING, logger="cofi_deploy")


@pytest.fixture
def stored():
    path = timing_cache_file("tensorrt", "10.14.1", GPU)
    write_timing_cache(path, TIMINGS)
    return path


def test_timings_come_back_and_their_file_says_what_they_hold_for(stored, tmp_path, caplog):
    assert read_timing_cache(stored) == TIMINGS
    name = "tensorrt_10.14.1_NVIDIA-L4_sm8.9_driver13.0.cache"
    assert stored == tmp_path / "cache" / "timing" / name
    assert caplog.text == ""


def test_every_part_of_the_key_has_a_file_of_its_own():
    files = {
        timing_cache_file(flavour, version, device)
        for flavour in ("tensorrt", "tensorrt-rtx")
        for version in ("10.14.1", "11.4.0")
        for device in (
            GPU,
            replace(GPU, name="NVIDIA L40"),
            replace(GPU, compute_capability="9.0"),
            replace(GPU, driver="13.1"),
        )
    }
    assert len(files) == 16


def test_without_a_cache_there_is_nothing_to_warn_of(caplog):
    assert read_timing_cache(timing_cache_file("tensorrt", "10.14.1", GPU)) == b""
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "it is truncated or was changed"),
        (lambda data: data[:-1] + b"x", "it is truncated or was changed"),
        (lambda _: b"", "it is not a timing cache of cofi-deploy"),
        (lambda _: b"junk" * 50, "it is not a timing cache of cofi-deploy"),
    ],
    ids=["truncated", "corrupt", "empty", "junk"],
)
def test_a_broken_cache_is_ignored_with_the_reason(change, reason, stored, caplog):
    stored.write_bytes(change(stored.read_bytes()))
    assert read_timing_cache(stored) == b""
    assert f"{str(stored)!r} is ignored: {reason}" in caplog.text


def test_a_renamed_cache_of_another_gpu_is_ignored(stored, caplog):
    other = timing_cache_file("tensorrt", "10.14.1", replace(GPU, name="NVIDIA H100"))
    stored.rename(other)
    assert read_timing_cache(other) == b""
    assert "it was made by another version or on another GPU" in caplog.text


def test_a_cache_that_cannot_be_read_or_written_stops_nothing(tmp_path, caplog):
    blocked = tmp_path / "cache" / "timing"
    blocked.parent.mkdir()
    blocked.write_text("a file where the folder should be")
    path = timing_cache_file("tensorrt", "10.14.1", GPU)
    write_timing_cache(path, TIMINGS)
    assert "the timing cache is not kept" in caplog.text
    blocked.unlink()
    path.mkdir(parents=True)
    assert read_timing_cache(path) == b""
    assert "is ignored:" in caplog.text
