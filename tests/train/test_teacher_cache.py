"""Cached answers of the teacher equal live ones, and a cache is whole or absent."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cofi_deploy.kinds import TASK_KINDS, TaskKind, output_names
from cofi_deploy.tasks import EncodedSplit
from cofi_deploy.train.batches import Batch, as_batch
from cofi_deploy.train.teacher import (
    CachedTeacher,
    LiveTeacher,
    TeacherAnswers,
    build_cache,
    cache_bytes,
)
from tests.builders import SMALL, random_model, random_split

CPU = torch.device("cpu")
LAYERS = (1, 3)
# More than one batch of 64, of mixed lengths.
LENGTHS = [1 + (7 * index) % 23 for index in range(150)]
FP16_ROUNDING = 2.0**-11


def teacher_of(kind: TaskKind, seed: int = 0) -> LiveTeacher:
    return LiveTeacher(random_model(kind, seed=seed), LAYERS)


def build(
    teacher: LiveTeacher, encoded: EncodedSplit, directory: Path, key: str = "a"
) -> list[int]:
    done: list[int] = []
    build_cache(teacher, encoded, directory, key=key, device=CPU, advance=done.append)
    assert sum(done) == len(encoded)
    return done


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_cached_answers_equal_live_ones_within_fp16_rounding(kind: TaskKind, tmp_path: Path):
    encoded, teacher = random_split(LENGTHS, kind), teacher_of(kind)
    build(teacher, encoded, tmp_path / "cache")
    cached = CachedTeacher(tmp_path / "cache", encoded, CPU)
    for rows in ([0], [3, 1, 2], [149, 0, 74, 10, 149], list(range(40, 80))):
        batch = as_batch(encoded, np.array(rows), CPU)
        live, stored = teacher.answers(batch), cached.answers(batch)
        tokens = sum(LENGTHS[row] for row in rows)
        assert stored.states.shape == live.states.shape == (len(LAYERS), tokens, SMALL.hidden)
        assert stored.states.dtype == torch.float32
        torch.testing.assert_close(stored.states, live.states, rtol=FP16_ROUNDING * 1.01, atol=1e-5)
        assert set(stored.outputs) == set(output_names(kind))
        for name, value in stored.outputs.items():
            expected = live.outputs[name]
            if "text" not in kind:
                expected = expected * batch.valid.view(
                    *batch.valid.shape, *[1] * (expected.ndim - 2)
                )
            assert value.shape == expected.shape
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_live_answers_are_states_of_the_numbered_layers_without_gradients(kind: TaskKind):
    encoded, teacher = random_split([5, 3], kind), teacher_of(kind)
    batch = as_batch(encoded, np.array([0, 1]), CPU)
    answers = teacher.answers(batch)
    states = teacher.model.encode(**batch.inputs).states
    for number, got in zip(LAYERS, answers.states, strict=True):
        assert torch.equal(got, states[number][batch.valid])
    assert not answers.states.requires_grad
    assert not any(value.requires_grad for value in answers.outputs.values())
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_cache_with_the_same_key_is_used_again(tmp_path: Path):
    encoded = random_split([5, 3, 4], "text-classification")
    build(teacher_of("text-classification"), encoded, tmp_path / "cache")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}

    # Asking this one would fail.
    broken = FailingTeacher(random_model("text-classification"), LAYERS, good_batches=0)
    assert build(broken, encoded, tmp_path / "cache") == [3]
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}


def test_another_key_builds_the_cache_anew(tmp_path: Path):
    encoded = random_split([5, 3, 4], "text-classification")
    batch = as_batch(encoded, np.array([0, 1, 2]), CPU)
    build(teacher_of("text-classification", seed=0), encoded, tmp_path / "cache", key="old")
    other = teacher_of("text-classification", seed=1)
    build(other, encoded, tmp_path / "cache", key="new")
    stored = CachedTeacher(tmp_path / "cache", encoded, CPU).answers(batch)
    expected = other.answers(batch).outputs["logits"]
    torch.testing.assert_close(stored.outputs["logits"], expected, rtol=0, atol=1e-5)


def test_another_split_with_another_key_may_have_another_size(tmp_path: Path):
    teacher = teacher_of("token-classification")
    build(teacher, random_split([9, 9, 9], "token-classification"), tmp_path / "cache", "long")
    encoded = random_split([2, 3], "token-classification")
    build(teacher, encoded, tmp_path / "cache", "short")
    batch = as_batch(encoded, np.array([1, 0]), CPU)
    stored = CachedTeacher(tmp_path / "cache", encoded, CPU).answers(batch)
    assert stored.states.shape == (2, 5, SMALL.hidden)


@pytest.mark.parametrize("good_batches", [0, 1])
def test_an_interrupted_build_leaves_nothing_behind(good_batches: int, tmp_path: Path):
    encoded = random_split(LENGTHS, "text-classification")
    teacher = FailingTeacher(random_model("text-classification"), LAYERS, good_batches)
    with pytest.raises(KeyboardInterrupt):
        build_cache(
            teacher, encoded, tmp_path / "cache", key="a", device=CPU, advance=lambda _: None
        )
    assert list(tmp_path.iterdir()) == []
    build(teacher_of("text-classification"), encoded, tmp_path / "cache")


def test_a_torn_description_is_no_cache(tmp_path: Path):
    encoded = random_split([5, 3, 4], "text-classification")
    build(teacher_of("text-classification"), encoded, tmp_path / "cache")
    description = tmp_path / "cache" / "cache.json"
    description.write_text(description.read_text()[:20])
    assert build(teacher_of("text-classification"), encoded, tmp_path / "cache") == [3]
    CachedTeacher(tmp_path / "cache", encoded, CPU)


def test_size_of_the_states_is_foretold(tmp_path: Path):
    encoded = random_split([5, 3, 4], "text-classification")
    build(teacher_of("text-classification"), encoded, tmp_path / "cache")
    stored = np.load(tmp_path / "cache" / "states.npy", mmap_mode="r")
    assert cache_bytes(encoded, len(LAYERS), SMALL.hidden) == stored.nbytes == 12 * 2 * 24 * 2


SMALL_DISK = """
import sys
from pathlib import Path
import torch
from cofi_deploy.errors import EnvironmentProblem
from tests.train.test_teacher_cache import LENGTHS, build, random_split, teacher_of
try:
    build(teacher_of("text-classification"), random_split(LENGTHS, "text-classification"),
          Path(sys.argv[1]) / "cache")
except EnvironmentProblem as error:
    print(error)
    print([path.name for path in Path(sys.argv[1]).iterdir()])
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path):
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mounted = f"mount -t tmpfs -o size=64k tmpfs '{tmp_path}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, mounted], check=False).returncode
    ):
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [*inside, f'{mounted} && exec "$@"', "sh", sys.executable, "-c", SMALL_DISK, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # SIGBUS would be a negative one
    said, left = done.stdout.splitlines()
    assert said.startswith(f"cannot write '{tmp_path}/cache': [Errno 28] No space left on device; ")
    assert left == "[]"


class FailingTeacher(LiveTeacher):
    """Is interrupted after some batches."""

    def __init__(self, model, layers, good_batches: int) -> None:
        super().__init__(model, layers)
        self.left = good_batches

    def answers(self, batch: Batch) -> TeacherAnswers:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().answers(batch)
