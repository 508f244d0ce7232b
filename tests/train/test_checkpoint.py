"""A checkpoint holds everything, comes back exactly, and is refused when it is damaged."""

from __future__ import annotations

import re
import resource

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import ArtifactError, CheckpointError, EnvironmentProblem
from cofi_deploy.train.checkpoint import read_state, restore_checkpoint, save_checkpoint


def parts(width=3):
    module = nn.Linear(width, 2)
    optimizer = AdamW(module.parameters(), lr=0.1, fused=True)
    return {
        "modules": {"weights": module},
        "optimizers": {"weights": optimizer},
        "generators": {"gates": torch.Generator().manual_seed(5)},
    }


def step(things):
    module, optimizer = things["modules"]["weights"], things["optimizers"]["weights"]
    noise = torch.randn(4, 3) + torch.randn(4, 3, generator=things["generators"]["gates"])
    module(noise).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path):
    things = parts()
    step(things)
    save_checkpoint(
        tmp_path / "checkpoint",
        {"stage": "teacher", "step": 1},
        **things,
        extra={"extra/best": torch.tensor([1.0, 2.0])},
    )
    return tmp_path / "checkpoint", things


def test_without_a_checkpoint_there_is_no_state(tmp_path):
    assert read_state(tmp_path / "checkpoint") is None


def test_everything_comes_back_and_goes_on_bit_for_bit(saved):
    directory, things = saved
    rng = torch.get_rng_state()
    step(things)
    restored = parts()
    torch.rand(7)  # whatever was drawn in between
    extra = restore_checkpoint(directory, **restored)
    assert torch.equal(torch.get_rng_state(), rng)
    step(restored)
    for one, other in zip(
        things["modules"]["weights"].parameters(),
        restored["modules"]["weights"].parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert torch.equal(extra["best"], torch.tensor([1.0, 2.0]))
    state = read_state(directory)
    assert (state["stage"], state["step"]) == ("teacher", 1)


def test_a_later_checkpoint_replaces_the_earlier_one(saved):
    directory, things = saved
    save_checkpoint(directory, {"stage": "teacher", "step": 2}, **things, extra={})
    assert read_state(directory)["step"] == 2
    assert [path.name for path in directory.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("position", [0, 40, -1], ids=["size", "header", "data"])
def test_a_flipped_bit_is_found(saved, position):
    directory, _ = saved
    path = directory / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tensors.safetensors' is damaged.*without --resume"):
        restore_checkpoint(directory, **parts())


def test_an_absent_tensor_file_is_found(saved):
    directory, _ = saved
    (directory / "tensors.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tensors.safetensors' is damaged"):
        restore_checkpoint(directory, **parts())


def test_a_checkpoint_of_another_model_is_refused(saved):
    directory, _ = saved
    words = re.escape(repr(str(directory))) + " does not fit this run's settings: .*size mismatch"
    with pytest.raises(CheckpointError, match=re.compile(words, re.DOTALL)):
        restore_checkpoint(directory, **parts(width=4))


def test_a_checkpoint_without_a_generator_that_is_needed_is_refused(saved):
    directory, _ = saved
    things = parts()
    things["generators"]["other"] = torch.Generator()
    with pytest.raises(CheckpointError, match="does not fit this run's settings: 'rng/other'"):
        restore_checkpoint(directory, **things)


@pytest.mark.parametrize("state", [{}, {"stage": 1, "step": 2}, {"stage": "teacher", "step": "x"}])
def test_a_state_without_stage_and_step_is_refused(tmp_path, state):
    write_json(tmp_path / "state.json", state)
    with pytest.raises(CheckpointError, match=r"state.json' names no stage and step"):
        read_state(tmp_path)


def test_a_state_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"state.json' is not readable JSON"):
        read_state(tmp_path)


def test_a_full_disk_is_said_and_keeps_the_earlier_checkpoint(saved):
    directory, things = saved
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(EnvironmentProblem, match=r"cannot write .*free space"):
            save_checkpoint(directory, {"stage": "teacher", "step": 2}, **things, extra={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_state(directory)["step"] == 1
    restore_checkpoint(directory, **parts())
