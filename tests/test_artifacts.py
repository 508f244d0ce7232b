"""JSON and checksums that are read back, and what is refused in a model directory."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.artifacts import (
    check_checksums,
    check_inside,
    check_model_directory,
    checksums,
    newest_run,
    read_json,
    sha256_file,
    size_bytes,
    write_json,
)
from cofi_deploy.errors import ArtifactError, UsageError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def artifact(tmp_path):
    """A directory of two files."""
    folder = tmp_path / "artifact"
    write_json(folder / "state.json", {"number": 1})
    (folder / "weights").write_bytes(b"old")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_json_comes_back_as_it_was_written(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, data)
    assert read_json(path) == {"schema_version": 1, **data} or "schema_version" in data


def test_nan_never_gets_into_a_json_file(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"metric": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": ', "is not readable JSON"),
        (b'{"a": "\xff"}', "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[1]", "holds a list, expected an object"),
        (b'{"schema_version": 2}', "has schema_version 2, but this cofi-deploy reads up to 1"),
        (b'{"schema_version": "x"}', "has schema_version 'x'"),
    ],
    ids=["truncated", "encoding", "nesting", "list", "newer", "no number"],
)
def test_unreadable_json_names_the_file_and_the_reason(tmp_path, content, words):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(repr(str(path))) + ".*" + re.escape(words)):
        read_json(path)


def test_absent_json_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"run.json' does not exist"):
        read_json(tmp_path / "run.json")


def damage(folder, how):
    path = folder / "weights"
    if how == "changed":
        path.write_bytes(b"olD")
    if how == "truncated":
        path.write_bytes(b"ol")
    if how == "swapped":
        path.write_bytes((folder / "state.json").read_bytes())
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["changed", "truncated", "swapped", "missing"])
def test_checksums_name_the_file_that_is_not_as_written(artifact, how):
    recorded = checksums(artifact)
    check_checksums(artifact, recorded, remedy="export again")
    damage(artifact, how)
    words = "is missing" if how == "missing" else f"but {recorded['weights'][:12]} was recorded"
    with pytest.raises(ArtifactError, match=rf"artifact/weights'.*{words}.*; export again"):
        check_checksums(artifact, recorded, remedy="export again")


def test_checksums_are_of_all_files_but_those_left_out(artifact):
    assert set(checksums(artifact)) == {"state.json", "weights"}
    assert set(checksums(artifact, exclude=frozenset({"weights"}))) == {"state.json"}
    assert checksums(artifact)["weights"] == sha256_file(artifact / "weights")
    assert size_bytes(artifact) == sum(path.stat().st_size for path in artifact.iterdir())


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_recorded_path_outside_is_refused(artifact, name):
    (artifact.parent / "secret").write_text("x")
    with pytest.raises(ArtifactError, match="points outside of"):
        check_checksums(artifact, {name: "0" * 64}, remedy="")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def test_a_directory_with_safetensors_is_a_model_directory(model):
    check_model_directory(model)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    words = r"weights as a pickle \(pytorch_model.bin\).*safe_serialization=True"
    with pytest.raises(ArtifactError, match=words):
        check_model_directory(model)


def test_a_directory_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"holds no \*.safetensors"):
        check_model_directory(model)
    with pytest.raises(ArtifactError, match="is not a directory"):
        check_model_directory(model / "absent")


def test_code_in_a_model_directory_is_refused(model):
    (model / "modeling_evil.py").write_text("raise SystemExit")
    with pytest.raises(ArtifactError, match=r"modeling_evil.py' is code in a model directory"):
        check_model_directory(model)


def test_a_symlink_that_leaves_the_model_directory_is_refused(model):
    (model.parent / "secret").write_text("x")
    (model / "vocab.txt").symlink_to(model.parent / "secret")
    with pytest.raises(ArtifactError, match=r"vocab.txt' is a symlink to '.*secret', outside"):
        check_model_directory(model)
    with pytest.raises(ArtifactError, match="points outside of"):
        check_inside(model, model / "vocab.txt")


def test_a_symlink_within_the_model_directory_is_allowed(model):
    (model / "alias").symlink_to("model.safetensors")
    check_model_directory(model)


def test_the_symlinks_of_a_hub_cache_are_allowed(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_bytes(b"x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    check_model_directory(snapshot)
    check_checksums(snapshot, checksums(snapshot), remedy="")


def test_the_newest_finished_run_is_found(tmp_path):
    for at, (name, state) in enumerate([("a", "done"), ("b", "done"), ("c", "failed"), ("d", "")]):
        write_json(tmp_path / name / "run.json", {"state": state})
        (tmp_path / name / "model").mkdir()
        os.utime(tmp_path / name / "run.json", (at, at))
    (tmp_path / "d" / "run.json").write_text("{broken")
    write_json(tmp_path / "e" / "run.json", {"state": "done"})  # its model is gone
    assert newest_run(tmp_path).name == "b"


def test_without_a_finished_run_the_way_to_make_one_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"no finished run below .*cofi-deploy train --task mrpc"):
        newest_run(tmp_path)


def test_a_written_file_is_json_for_everyone(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Käse"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"schema_version": 1, "name": "Käse"}
