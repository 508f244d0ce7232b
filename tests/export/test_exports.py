"""`export.json` is read strictly, and every file is compared with its checksum."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest

from cofi_deploy.errors import ArtifactError, CheckpointError
from cofi_deploy.export.manifest import open_source, source_of_export, weights_sha256
from cofi_deploy.exports import MANIFEST, check_export, read_manifest, rebuild_command


@pytest.fixture
def copied(onnx_directory, tmp_path):
    return shutil.copytree(onnx_directory, tmp_path / "copy")


def rewrite(directory, **changes):
    path = directory / MANIFEST
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_an_untouched_directory_passes_and_is_frozen(copied):
    manifest = check_export(copied)
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.precision = "fp16"


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json"])
def test_a_changed_byte_names_the_file_and_the_way_back(name, copied):
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    words = (
        rf"{re.escape(str(path))!s}' has sha256 [0-9a-f]{{12}}, but .* cofi-deploy export .*onnx"
    )
    with pytest.raises(ArtifactError, match=words):
        check_export(copied)


def test_a_missing_file_is_named(copied):
    (copied / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx' is missing; export it again"):
        check_export(copied)


def test_a_link_that_leaves_the_directory_is_refused(copied, tmp_path):
    outside = tmp_path / "elsewhere.onnx"
    (copied / "model.onnx").rename(outside)
    (copied / "model.onnx").symlink_to(outside)
    with pytest.raises(ArtifactError, match="points outside of"):
        check_export(copied)


def test_a_directory_without_manifest_says_what_was_expected(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no export\.json; expected a directory"):
        check_export(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 99}, "has schema_version 99"),
        ({"format": "tflite"}, "describes format 'tflite' and kind 'text-classification'"),
        ({"kind": "poetry"}, "kind 'poetry', allowed: onnx, openvino, trt, triton"),
        ({"parity": {"speed": 1}}, "has a missing or unknown entry"),
        ({"source": {}}, "has a missing or unknown entry: 'path'"),
        ({"files": 3}, "has a missing or unknown entry"),
    ],
)
def test_an_entry_that_is_not_ours_is_refused(changes, words, copied):
    rewrite(copied, **changes)
    with pytest.raises(ArtifactError, match=re.escape(words)):
        read_manifest(copied)


def test_an_impossible_arch_is_refused(copied):
    arch = json.loads((copied / MANIFEST).read_text())["arch"]
    rewrite(copied, arch={**arch, "hidden": 10_000})
    with pytest.raises(CheckpointError, match="hidden is 10000, allowed: 1 to 32"):
        read_manifest(copied)


def test_the_rebuild_command_carries_precision_and_shapes(copied):
    manifest = check_export(copied)
    plain = f"cofi-deploy export {manifest.source_path} --format onnx"
    assert rebuild_command(manifest) == plain
    engine = dataclasses.replace(
        manifest,
        format="trt",
        precision="fp16",
        options={"batch_size": [1, 8, 32], "seq_len": [16, 64, 64]},
    )
    assert rebuild_command(engine) == (
        f"cofi-deploy export {manifest.source_path} --format trt --precision fp16 "
        "--batch-size 1:8:32 --seq-len 16:64:64"
    )


def test_an_export_can_be_the_source_of_another(onnx_directory, write_model):
    source, _ = open_source(write_model())
    again = source_of_export(check_export(onnx_directory))
    for name in ("path", "sha256", "arch", "kind", "labels"):
        assert getattr(again, name) == getattr(source, name)


def test_sharded_weights_have_one_checksum_that_sees_every_shard(tmp_path):
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    before = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"2")
    assert weights_sha256(tmp_path) != before
    assert len(before) == 64


@pytest.mark.parametrize("kind", ["text-regression", "question-answering"])
def test_kinds_without_classes_have_no_labels(kind, write_model):
    assert open_source(write_model(kind))[0].labels == ()
