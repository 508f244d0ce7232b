"""Triton repositories: written through the schema, read back through it, checked against files."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import pytest

from cofi_deploy.errors import (
    ArtifactError,
    ConfigError,
    MissingDependencyError,
    RepositoryError,
)
from cofi_deploy.export import triton as exporter
from cofi_deploy.export.triton import export_triton
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import INPUT_NAMES, output_names
from cofi_deploy.triton_repository import check_repository, read_config

schema = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra 'triton' is not installed"
)


@pytest.fixture(scope="module")
def repository(onnx_directory, tmp_path_factory):
    return export_triton(onnx_directory, tmp_path_factory.mktemp("triton") / "models", name="tiny")


@pytest.fixture
def copied(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "copy")


def edit(repository, old, new):
    path = repository / "tiny" / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("kind", "dims"),
    [
        ("text-classification", [3]),
        ("text-regression", [1]),
        ("token-classification", [-1, 4]),
        ("question-answering", [-1]),
    ],
)
def test_every_kind_gives_a_configuration_that_fits_its_graph(kind, dims, write_model, tmp_path):
    repository = export_triton(write_model(kind), tmp_path / "models", name="tiny-1.x_y")
    assert check_repository(repository) == ("tiny-1.x_y",)
    config = read_config(repository / "tiny-1.x_y" / "config.pbtxt")
    assert [(item.name, list(item.dims)) for item in config.output] == [
        (name, dims) for name in output_names(kind)
    ]
    assert [(item.name, list(item.dims)) for item in config.input] == [
        (name, [-1]) for name in INPUT_NAMES
    ]
    assert {item.data_type for item in config.input} == {schema.TYPE_INT64}
    assert {item.data_type for item in config.output} == {schema.TYPE_FP32}


def test_options_end_up_in_the_configuration(onnx_directory, tmp_path):
    options = TritonOptions(
        max_batch_size=16, instances=2, max_queue_delay_us=500, threads=3, warmup_lengths=(8,)
    )
    repository = export_triton(onnx_directory, tmp_path / "m", name="tiny", options=options)
    config = read_config(repository / "tiny" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 16)
    assert config.default_model_filename == "model.onnx"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_CPU, 2)
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert [(item.name, item.batch_size) for item in config.model_warmup] == [
        ("length_8_batch_1", 1),
        ("length_8_batch_16", 16),
    ]
    assert check_export(repository).options["max_queue_delay_us"] == 500


def test_a_gpu_model_has_gpu_instances_and_no_thread_count(onnx_directory, tmp_path):
    repository = export_triton(
        onnx_directory, tmp_path / "m", name="tiny", options=TritonOptions(device="gpu")
    )
    config = read_config(repository / "tiny" / "config.pbtxt")
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert "intra_op_thread_count" not in config.parameters


def test_one_instance_takes_all_cores_and_several_share_them(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert TritonOptions().intra_op_threads == 0
    assert TritonOptions(instances=4).intra_op_threads == 2
    assert TritonOptions(instances=16).intra_op_threads == 1


def test_warm_up_files_hold_real_ids_of_the_stated_shape(repository):
    folder = repository / "tiny"
    config = read_config(folder / "config.pbtxt")
    assert {sample.batch_size for sample in config.model_warmup} == {1, 32}
    for sample in config.model_warmup:
        for name, item in sample.inputs.items():
            data = np.fromfile(folder / "warmup" / item.input_data_file, dtype=np.int64)
            assert list(data.shape) == list(item.dims)
            assert name != "input_ids" or len(np.unique(data)) > 5
    # 128 is cut to the 64 positions of the model.
    assert {dim for s in config.model_warmup for i in s.inputs.values() for dim in i.dims} == {
        16,
        64,
    }


def test_labels_are_one_line_each_and_named_by_the_output(repository):
    lines = (repository / "tiny" / "labels.txt").read_text().splitlines()
    assert lines == ["negative", "neutral", "positive"]
    config = read_config(repository / "tiny" / "config.pbtxt")
    assert config.output[0].label_filename == "labels.txt"


def test_an_onnx_export_is_served_byte_for_byte(repository, onnx_directory):
    served = (repository / "tiny" / "1" / "model.onnx").read_bytes()
    assert served == (onnx_directory / "model.onnx").read_bytes()
    manifest, source = check_export(repository), check_export(onnx_directory)
    assert manifest.format == "triton"
    assert manifest.parity == source.parity
    assert manifest.source_sha256 == source.source_sha256
    assert "tiny/config.pbtxt" in manifest.files


def test_a_changed_onnx_export_is_refused(onnx_directory, tmp_path):
    broken = shutil.copytree(onnx_directory, tmp_path / "onnx")
    (broken / "model.onnx").write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"model\.onnx' has sha256"):
        export_triton(broken, tmp_path / "models", name="tiny")
    assert not (tmp_path / "models").exists()


def test_an_export_of_another_format_is_refused(repository, tmp_path):
    words = "is an export of format 'triton', but backend 'onnxruntime' serves format 'onnx'; run:"
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_triton(repository, tmp_path / "models", name="tiny")


def test_options_that_are_not_allowed_are_reported_together(onnx_directory, tmp_path):
    options = TritonOptions(
        backend="tensorrt",
        max_batch_size=0,
        instances=0,
        max_queue_delay_us=-1,
        threads=0,
        warmup_lengths=(0,),
        device="tpu",
    )
    words = (
        "max_batch_size is 0, allowed: 1 or more; instances is 0, allowed: 1 or more; "
        "max_queue_delay_us is -1, allowed: 0 or more; threads is 0, allowed: 1 or more; "
        "warmup_lengths is 0, allowed: 1 or more; device is 'tpu', allowed: cpu, gpu; "
        "name is '../x', allowed: letters"
    )
    with pytest.raises(ConfigError, match=re.escape(words)) as info:
        export_triton(onnx_directory, tmp_path / "m", name="../x", options=options)
    assert "backend is 'tensorrt', allowed: onnxruntime" in str(info.value)


def test_the_same_model_is_replaced_and_others_are_never_lost(onnx_directory, tmp_path):
    output = tmp_path / "models"
    export_triton(onnx_directory, output, name="tiny")
    export_triton(onnx_directory, output, name="tiny")
    with pytest.raises(RepositoryError, match="holds 'tiny', which is not from an earlier export"):
        export_triton(onnx_directory, output, name="other")
    (output / "handmade").mkdir()
    with pytest.raises(RepositoryError, match="holds 'handmade', which is not from an earlier"):
        export_triton(onnx_directory, output, name="tiny")
    assert check_export(output).options["name"] == "tiny"


def test_a_label_of_two_lines_is_refused(write_model, tmp_path, monkeypatch):
    honest = exporter.open_source

    def with_odd_label(path):
        source, model = honest(path)
        object.__setattr__(source, "labels", ("a\nb", "c", "d"))
        return source, model

    monkeypatch.setattr(exporter, "open_source", with_odd_label)
    with pytest.raises(ConfigError, match=re.escape(r"label 'a\nb' is not one line of text")):
        export_triton(write_model(), tmp_path / "models", name="tiny")


def test_an_interrupted_export_leaves_nothing(onnx_directory, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "check_repository", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_triton(onnx_directory, tmp_path / "models", name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_install_line(onnx_directory, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    words = "a Triton model repository needs the package 'tritonclient', which is not installed"
    with pytest.raises(MissingDependencyError, match=re.escape(words)):
        export_triton(onnx_directory, tmp_path / "models", name="tiny")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name: "tiny"', 'name: "huge"', "name is 'huge', but the folder is called 'tiny'"),
        ("max_batch_size: 32", "max_batch_size: -4", "max_batch_size is -4, allowed: 0"),
        ("max_batch_size: 32", "max_batch_size: 0", "dynamic_batching needs max_batch_size 1 or"),
        ("max_batch_size: 32", "max_batch_size: 8", "'length_16_batch_32' has batch_size 32,"),
        ('backend: "onnxruntime"', 'backend: "onnx"', "did you mean 'onnxruntime'?"),
        ("count: 1", "count: 0", "instance_group has count 0, allowed: 1 or more"),
        ("dims: -1", "dims: 7", "input 'input_ids' has dims [7], the graph has [-1]"),
        ("dims: 3", "dims: 2", "output 'logits' has dims [2], the graph has [3]"),
        ("TYPE_INT64", "TYPE_INT32", "has data_type TYPE_INT32, the graph has TYPE_INT64"),
        ('"logits"', '"scores"', "outputs are ['scores'], model.onnx has ['logits']"),
        ("TYPE_FP32", "TYPE_REAL", "is no Triton model configuration"),
        ("count: 1", "cuont: 1", "is no Triton model configuration"),
        ('"model.onnx"', '"gone.onnx"', "gone.onnx' is missing"),
        ('"model.onnx"', '"../../../x"', "points outside of"),
        ('"input_ids_16"', '"nothing"', "nothing' is missing"),
        ('"input_ids_16"', '"input_ids_64"', "input_ids_64' has 512 bytes, its shape needs 128"),
        ('key: "input_ids"', 'key: "ids"', "has inputs ['attention_mask', 'ids',"),
    ],
)
def test_a_configuration_that_a_server_would_refuse_is_refused_first(old, new, words, copied):
    edit(copied, old, new)
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(copied)


def test_a_graph_with_a_fixed_batch_cannot_be_batched(copied):
    import onnx  # noqa: PLC0415

    path = copied / "tiny" / "1" / "model.onnx"
    proto = onnx.load(path)
    for item in proto.graph.input:
        item.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, path)
    with pytest.raises(RepositoryError, match="the first axis of the graph is fixed at 4"):
        check_repository(copied)


def test_a_model_file_that_is_no_onnx_is_named(copied):
    (copied / "tiny" / "1" / "model.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(RepositoryError, match=r"model\.onnx' is no ONNX model"):
        check_repository(copied)


def test_missing_parts_of_a_repository_are_named(copied, tmp_path):
    with pytest.raises(RepositoryError, match="is not a directory; expected a repository"):
        check_repository(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RepositoryError, match="holds no model folder; run: cofi-deploy export"):
        check_repository(empty)
    (copied / "tiny" / "1").rename(copied / "tiny" / "01")
    with pytest.raises(RepositoryError, match="holds no version folder; expected one called 1"):
        check_repository(copied)
    (copied / "tiny" / "config.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"config\.pbtxt' is missing; every model needs one"):
        check_repository(copied)


def test_a_folder_without_number_is_ignored_like_a_server_does(copied):
    (copied / "tiny" / "notes").mkdir()
    assert check_repository(copied) == ("tiny",)
