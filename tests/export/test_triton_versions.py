"""Versions of a served model on disk: added whole, set aside, never mixed up."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from cofi_deploy.errors import ArtifactError, EnvironmentProblem, RepositoryError, UsageError
from cofi_deploy.export import triton_versions
from cofi_deploy.export.triton_versions import (
    add_version,
    lock_repository,
    roll_back,
    served_options,
    undo,
    withdraw,
)
from tests.export.served_folders import model_folders

ALL_FOLDERS = ["tiny", "tiny_text", "tiny_tokenizer"]


def add(repository: Path, *, name: str = "tiny", **changes):
    with lock_repository(repository) as place:
        return add_version(place, name, model_folders(name, **changes))


def back(repository: Path, name: str | None = None):
    with lock_repository(repository) as place:
        return roll_back(place, name)


def folders(repository: Path) -> list[str]:
    return sorted(path.name for path in repository.iterdir() if path.is_dir())


def versions(repository: Path, name: str = "tiny") -> dict[str, str]:
    """What each version folder, and each that was set aside, weighs on."""
    return {path.parent.name: path.read_text() for path in (repository / name).glob("*/model.onnx")}


@pytest.fixture
def repository(tmp_path):
    place = tmp_path / "models"
    add(place)
    return place


def test_a_new_name_brings_all_its_folders_the_ensemble_last(tmp_path, monkeypatch):
    moved: list[str] = []
    rename = Path.rename

    def watched(source: Path, target: Path) -> Path:
        if target.parent == tmp_path / "new" / "models":
            moved.append(target.name)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", watched)
    added = add(tmp_path / "new" / "models")
    assert moved == ["tiny", "tiny_tokenizer", "tiny_text"] == list(added.folders)
    assert (added.number, added.previous) == (1, None)
    assert added.directory.is_dir()


def test_a_known_name_gets_one_folder_and_nothing_else_changes(repository):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}
    added = add(repository, weights="second")
    assert (added.number, added.previous, added.folders) == (2, 1, ())
    assert versions(repository) == {"1": "first", "2": "second"}
    after = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}
    new = {path.parent for path in after.keys() - before.keys()}
    assert new == {repository / "tiny" / "2"}
    assert {path: after[path] for path in before if path.name != ".lock"} == {
        path: when for path, when in before.items() if path.name != ".lock"
    }


def test_a_repository_holds_any_number_of_models(repository):
    add(repository, name="other", weights="others")
    assert folders(repository) == sorted([*ALL_FOLDERS, "other", "other_text", "other_tokenizer"])
    assert versions(repository, "other") == {"1": "others"}


def test_nothing_stays_beside_the_repository(repository):
    add(repository, weights="second")
    assert [path.name for path in repository.parent.iterdir()] == ["models"]
    assert [path.name for path in repository.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_link_to_a_repository_is_followed(repository, tmp_path):
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(repository)
    assert add(link, weights="second").repository == repository
    assert versions(repository)["2"] == "second"
    assert [path.name for path in link.parent.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"kind": "token-classification"},
            "serves text-classification with labels ['no', 'yes'], but this model is "
            "token-classification with labels ['no', 'yes']; export it under another --name",
        ),
        ({"labels": ("yes", "no")}, "but this model is text-classification with labels ['yes', "),
        ({"max_batch_size": 16}, "tiny/config.pbtxt: max_batch_size is 16, served is 8"),
        ({"instances": 2}, "tiny/config.pbtxt: instance_group differs"),
        (
            {"threads": 2},
            "tiny/config.pbtxt: parameter intra_op_thread_count is '2', served is '1'",
        ),
        ({"tokenizer": "x"}, "tiny_tokenizer/1/tokenizer.json is another one than is served"),
        (
            {"settings": {"max_length": 32}},
            "tiny_tokenizer/1/settings.json: max_length is 32, served is 64",
        ),
        (
            {"files": {"tiny/configs/onnxruntime.pbtxt": ""}},
            "tiny/configs/onnxruntime.pbtxt is not served, this model has one",
        ),
    ],
    ids=["kind", "labels", "batch", "instances", "threads", "tokenizer", "settings", "file"],
)
def test_a_model_that_clients_would_notice_is_refused(repository, changes, words):
    with pytest.raises(RepositoryError, match=re.escape(words)):
        add(repository, weights="second", **changes)
    assert versions(repository) == {"1": "first"}
    assert [path.name for path in repository.parent.iterdir()] == ["models"]


def test_a_file_that_is_gone_is_named(repository):
    (repository / "tiny" / "configs").mkdir()
    (repository / "tiny" / "configs" / "python.pbtxt").touch()
    words = "tiny/configs/python.pbtxt is served, this model has none"
    with pytest.raises(RepositoryError, match=re.escape(words)):
        add(repository)


def test_all_differences_are_told_at_once_with_the_way_on(repository):
    with pytest.raises(RepositoryError) as info:
        add(repository, max_batch_size=4, tokenizer="x")
    words = str(info.value)
    assert words.startswith(f"'tiny' in {str(repository)!r} cannot take this model as its next")
    assert "max_batch_size is 4, served is 8" in words
    assert "tokenizer.json is another one" in words
    assert words.endswith("; export it with what is served, or under another --name")


def test_newer_code_and_other_warm_up_data_are_no_difference(repository):
    add(repository, weights="second", code="newer code")
    assert versions(repository)["2"] == "second"
    assert (repository / "tiny" / "2" / "model.py").read_text() == "newer code"
    assert (repository / "tiny_tokenizer" / "1" / "model.py").read_text() == "code"


def test_a_folder_that_is_not_ours_is_left_alone(repository):
    (repository / "tiny" / "1" / "export.json").unlink()
    with pytest.raises(RepositoryError, match="was not written by cofi-deploy; choose another --n"):
        add(repository)


def test_a_first_export_that_was_killed_half_way_is_completed(repository):
    shutil.rmtree(repository / "tiny_text")
    added = add(repository)
    assert added.folders == ("tiny_text",)
    assert folders(repository) == ALL_FOLDERS


def test_rollback_sets_the_newest_aside_and_its_number_is_never_used_again(repository):
    add(repository, weights="second")
    add(repository, weights="third")
    result = back(repository)
    assert (result.name, result.number, result.serves) == ("tiny", 3, 2)
    assert versions(repository) == {"1": "first", "2": "second", ".rolled-back-3": "third"}
    assert add(repository, weights="fourth").number == 4
    assert back(repository).serves == 2
    assert back(repository).serves == 1
    assert add(repository, weights="fifth").number == 5


def test_rollback_can_be_undone(repository):
    add(repository, weights="second")
    undo(back(repository))
    assert versions(repository) == {"1": "first", "2": "second"}


def test_without_an_earlier_version_there_is_no_rollback(repository):
    words = f"{str(repository / 'tiny')!r} holds one version, 1, and none before it"
    with pytest.raises(RepositoryError, match=re.escape(words)):
        back(repository)
    assert versions(repository) == {"1": "first"}


def test_rollback_to_a_corrupt_version_is_refused(repository):
    add(repository, weights="second")
    (repository / "tiny" / "1" / "model.onnx").write_text("fir5t")
    with pytest.raises(ArtifactError, match=re.escape("tiny/1/model.onnx' has sha256")):
        back(repository)
    assert "2" in versions(repository)


def test_a_place_that_is_taken_is_not_overwritten(repository):
    add(repository, weights="second")
    (repository / "tiny" / ".rolled-back-2").mkdir()
    # Its number counts as used, so that no export made it.
    with pytest.raises(RepositoryError, match=r"rolled-back-2' exists already, where version 2 wo"):
        back(repository)


def test_the_model_to_roll_back_is_named_where_there_are_several(repository):
    add(repository, name="other")
    with pytest.raises(UsageError, match="say which with --model, allowed: other, tiny"):
        back(repository)
    with pytest.raises(UsageError, match=re.escape("no model 'tini' in") + ".*did you mean 'tiny'"):
        back(repository, "tini")
    add(repository, name="other", weights="second")
    assert back(repository, "other").serves == 1


def test_a_folder_without_models_is_said_to_be_none(tmp_path):
    with pytest.raises(UsageError, match="holds no model that cofi-deploy wrote"):
        back(tmp_path)


def test_the_options_of_the_newest_version_can_be_taken_over(repository):
    assert served_options(repository, "tiny") == {"threads": 1}
    add(repository, weights="second")
    assert served_options(repository, "tiny") == {"threads": 1}
    assert served_options(repository, "other") == {}


def test_a_withdrawn_version_is_set_aside(repository):
    withdraw(add(repository, weights="second"))
    assert versions(repository) == {"1": "first", ".rolled-back-2": "second"}
    assert add(repository, weights="third").number == 3


def test_a_withdrawn_first_version_takes_its_folders_along(repository):
    withdraw(add(repository, name="other"))
    assert folders(repository) == ALL_FOLDERS


def test_a_failure_while_writing_leaves_no_trace(repository):
    def fail(directory: Path) -> None:
        (directory / "tiny").mkdir()
        raise KeyboardInterrupt

    with lock_repository(repository) as place, pytest.raises(KeyboardInterrupt):
        add_version(place, "tiny", fail)
    assert versions(repository) == {"1": "first"}
    assert [path.name for path in repository.parent.iterdir()] == ["models"]


def test_a_second_export_is_told_to_wait(repository):
    words = f"another export or rollback is working in {str(repository)!r}; wait for it, then run"
    with (
        lock_repository(repository),
        pytest.raises(UsageError, match=re.escape(words)),
        lock_repository(repository),
    ):
        pass


def test_a_repository_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    words = f"cannot write into the repository {str(tmp_path / 'file' / 'models')!r}"
    with pytest.raises(EnvironmentProblem, match=re.escape(words)):
        add(tmp_path / "file" / "models")


def test_a_full_disk_is_told_and_nothing_changes(repository, monkeypatch):
    def full(source: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(triton_versions, "_rename", full)
        with pytest.raises(EnvironmentProblem, match=r"No space left on device; free space or cha"):
            add(repository, weights="second")
    assert versions(repository) == {"1": "first"}


@pytest.fixture
def mount(monkeypatch):
    """A repository that is a mount of its own: nothing can be renamed into it."""
    rename = Path.rename

    def within(source: Path, target: Path) -> Path:
        if "adding" in str(source) and "adding" not in str(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", within)


@pytest.mark.usefixtures("mount")
def test_into_a_mount_of_its_own_versions_are_copied_first(tmp_path):
    repository = tmp_path / "models"
    add(repository)
    add(repository, weights="second")
    assert versions(repository) == {"1": "first", "2": "second"}
    assert folders(repository) == ALL_FOLDERS
    hidden = [path.name for path in repository.rglob(".*")]
    assert hidden == [".lock"]


def test_a_parent_that_cannot_be_written_is_no_obstacle(repository, monkeypatch):
    mkdir = Path.mkdir

    def refused(path: Path, *arguments, **keywords) -> None:
        if path.name == ".models.adding":
            raise PermissionError(errno.EACCES, "Permission denied")
        mkdir(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", refused)
    assert add(repository, weights="second").number == 2


def _export_and_hang(repository: Path, started) -> None:
    def write(directory: Path) -> None:
        model_folders(weights="killed")(directory)
        started.set()
        time.sleep(60)

    with lock_repository(repository) as place:
        add_version(place, "tiny", write)


def test_what_a_killed_export_left_is_invisible_and_swept_by_the_next(repository):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_export_and_hang, args=(repository, started))
    process.start()
    assert started.wait(30)
    with pytest.raises(UsageError, match="another export or rollback is working"):
        add(repository)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert versions(repository) == {"1": "first"}
    assert folders(repository) == ALL_FOLDERS
    assert (repository.parent / ".models.adding").is_dir()
    (repository / "tiny" / ".2.abc.tmp").mkdir()  # of a killed copy into a mount of its own
    add(repository, weights="second")
    assert versions(repository) == {"1": "first", "2": "second"}
    assert [path.name for path in repository.parent.iterdir()] == ["models"]
    assert [path.name for path in (repository / "tiny").glob(".*")] == []


def test_what_lies_there_unused_is_reported_and_kept(repository, caplog):
    for weights in ("second", "third"):
        add(repository, weights=weights)
    with caplog.at_level("INFO", logger="cofi_deploy"):
        add(repository, weights="fourth")
    assert "keeps versions that no rollback needs (0 MiB): 1, 2" in caplog.text
    assert len(versions(repository)) == 4
