"""Triton repositories: written through the schema, read back through it."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest

from cofi_deploy.errors import ArtifactError, ConfigError, MissingDependencyError, RepositoryError
from cofi_deploy.export import triton as exporter
from cofi_deploy.export import triton_backends
from cofi_deploy.export.triton import export_triton, write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import INPUT_NAMES, output_names
from cofi_deploy.triton_repository import check_repository, read_config, served_code

schema = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra 'triton' is not installed"
)


@pytest.fixture(scope="module")
def repository(onnx_directory, tmp_path_factory):
    return export_triton(onnx_directory, tmp_path_factory.mktemp("triton") / "models", name="tiny")


def config_of(onnx_directory, tmp_path, file="config.pbtxt", **options):
    write_models(tmp_path / "m", onnx_directory, name="tiny", options=TritonOptions(**options))
    return read_config(tmp_path / "m" / "tiny" / file)


@pytest.mark.parametrize(
    ("kind", "dims"),
    [
        ("text-classification", [3]),
        ("text-regression", [1]),
        ("token-classification", [-1, 4]),
        ("question-answering", [-1]),
    ],
)
def test_every_kind_gives_configurations_that_fit_its_graph(kind, dims, write_model, tmp_path):
    repository = export_triton(write_model(kind), tmp_path / "models", name="tiny-1.x_y")
    assert "tiny-1.x_y" in check_repository(repository)
    for file in ("config.pbtxt", "configs/python.pbtxt"):
        config = read_config(repository / "tiny-1.x_y" / file)
        assert [(item.name, list(item.dims)) for item in config.output] == [
            (name, dims) for name in output_names(kind)
        ]
        assert [(item.name, list(item.dims)) for item in config.input] == [
            (name, [-1]) for name in INPUT_NAMES
        ]
        assert {item.data_type for item in config.input} == {schema.TYPE_INT64}
        assert {item.data_type for item in config.output} == {schema.TYPE_FP32}


def test_every_backend_finds_its_files_in_one_version_folder(repository):
    folder = repository / "tiny"
    assert sorted(path.name for path in repository.iterdir()) == [
        "export.json",
        "tiny",
        "tiny_answer",
        "tiny_text",
        "tiny_tokenizer",
    ]
    assert {path.name for path in (folder / "1").iterdir()} == {
        "model.onnx",
        "model.py",
        "export.json",
    }
    assert (folder / "1" / "model.py").read_bytes() == served_code("encoder").read_bytes()
    assert [path.name for path in (folder / "configs").iterdir()] == ["python.pbtxt"]


def test_options_end_up_in_the_configuration(onnx_directory, tmp_path):
    config = config_of(
        onnx_directory,
        tmp_path,
        max_batch_size=16,
        instances=2,
        max_queue_delay_us=500,
        preferred_batch_sizes=(16, 4),
        threads=3,
        warmup_lengths=(8,),
        metric_tags={"team": "search"},
        versions=3,
    )
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 16)
    assert config.default_model_filename == "model.onnx"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.version_policy.latest.num_versions == 3
    assert dict(config.metric_tags) == {"team": "search"}
    (group,) = config.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_CPU, 2)
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert [(item.name, item.batch_size) for item in config.model_warmup] == [
        ("length_8_batch_1", 1),
        ("length_8_batch_16", 16),
    ]
    assert check_export(tmp_path / "m" / "tiny" / "1").options["max_queue_delay_us"] == 500


def test_the_response_cache_is_off_unless_asked_for(onnx_directory, repository, tmp_path):
    assert not read_config(repository / "tiny" / "config.pbtxt").HasField("response_cache")
    assert config_of(onnx_directory, tmp_path, response_cache=True).response_cache.enable


def test_the_python_fallback_merges_requests_of_all_lengths(repository):
    config = read_config(repository / "tiny" / "configs" / "python.pbtxt")
    assert (config.backend, config.default_model_filename) == ("python", "model.py")
    assert all(item.allow_ragged_batch for item in config.input)
    served = read_config(repository / "tiny" / "config.pbtxt")
    assert not any(item.allow_ragged_batch for item in served.input)


def test_a_model_served_by_python_keeps_both_names_and_onnxruntime_as_fallback(
    onnx_directory, tmp_path
):
    assert config_of(onnx_directory, tmp_path, backend="python").backend == "python"
    folder = tmp_path / "m" / "tiny" / "configs"
    assert read_config(folder / "python.pbtxt").backend == "python"
    assert read_config(folder / "onnxruntime.pbtxt").backend == "onnxruntime"


def test_a_gpu_model_has_gpu_instances_and_falls_back_to_what_is_there(onnx_directory, tmp_path):
    kind = schema.ModelInstanceGroup
    config = config_of(onnx_directory, tmp_path, device="gpu")
    assert config.instance_group[0].kind == kind.KIND_GPU
    assert "intra_op_thread_count" not in config.parameters
    fallback = read_config(tmp_path / "m" / "tiny" / "configs" / "python.pbtxt")
    assert fallback.instance_group[0].kind == kind.KIND_AUTO
    assert fallback.parameters["intra_op_thread_count"].string_value == "0"


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


def test_length_buckets_end_at_what_the_model_can_take(repository):
    assert check_export(repository).options["length_buckets"] == [16, 32, 48, 64]


def test_labels_are_one_line_each_and_named_by_the_output(repository):
    lines = (repository / "tiny" / "labels.txt").read_text().splitlines()
    assert lines == ["negative", "neutral", "positive"]
    config = read_config(repository / "tiny" / "config.pbtxt")
    assert config.output[0].label_filename == "labels.txt"


def test_an_onnx_export_is_served_byte_for_byte(repository, onnx_directory):
    served = (repository / "tiny" / "1" / "model.onnx").read_bytes()
    assert served == (onnx_directory / "model.onnx").read_bytes()
    source = check_export(onnx_directory)
    for manifest in (check_export(repository), check_export(repository / "tiny" / "1")):
        assert manifest.format == "triton"
        assert manifest.parity == source.parity
        assert manifest.arch == source.arch
        assert manifest.source_sha256 == source.source_sha256
    assert "tiny/config.pbtxt" in check_export(repository).files


def test_another_version_number_is_written_as_asked(onnx_directory, tmp_path):
    write_models(tmp_path, onnx_directory, name="tiny", options=TritonOptions(), version=7)
    assert check_export(tmp_path / "tiny" / "7").kind == "text-classification"
    assert not (tmp_path / "tiny" / "1").exists()


def test_a_changed_onnx_export_is_refused(onnx_directory, tmp_path):
    broken = shutil.copytree(onnx_directory, tmp_path / "onnx")
    (broken / "model.onnx").write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"model\.onnx' has sha256"):
        export_triton(broken, tmp_path / "models", name="tiny")
    assert not (tmp_path / "models").exists()


def test_an_export_of_another_format_is_refused(repository, tmp_path):
    words = "is an export of format 'triton', but a model repository is made from format 'onnx'; "
    with pytest.raises(ConfigError, match=re.escape(words + "run: cofi-deploy export")):
        export_triton(repository, tmp_path / "models", name="tiny")


def test_options_that_are_not_allowed_are_reported_together(onnx_directory, tmp_path):
    options = TritonOptions(
        backend="triton",
        max_batch_size=0,
        instances=0,
        max_queue_delay_us=-1,
        preferred_batch_sizes=(64,),
        threads=0,
        warmup_lengths=(0,),
        length_buckets=(),
        versions=0,
        max_characters=0,
        top_k=0,
        device="tpu",
        aggregation="sum",
        server="latest",
    )
    words = (
        "max_batch_size is 0, allowed: 1 or more; instances is 0, allowed: 1 or more; "
        "max_queue_delay_us is -1, allowed: 0 or more; threads is 0, allowed: 1 or more; "
        "warmup_lengths is 0, allowed: 1 or more; length_buckets is 0, allowed: 1 or more; "
        "versions is 0, allowed: 1 or more; max_characters is 0, allowed: 1 or more; "
        "top_k is 0, allowed: 1 or more; device is 'tpu', allowed: cpu, gpu, auto; "
        "server is 'latest', expected a version such as '2.51' or a release such as '25.10'; "
        "aggregation is 'sum', allowed: simple, first, average, max; preferred_batch_sizes has "
        "64, allowed: 1 to 1; name is '../x', allowed: letters"
    )
    with pytest.raises(ConfigError, match=re.escape(words)) as info:
        export_triton(onnx_directory, tmp_path / "m", name="../x", options=options)
    assert "backend is 'triton', allowed: onnxruntime, tensorrt, openvino, python" in str(
        info.value
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"backend": "tensorrt"},
            "backend 'tensorrt' serves engines, but no plan is given; build one on the GPU that "
            "will serve: cofi-deploy export --format trt --flavour tensorrt",
        ),
        (
            {"backend": "tensorrt", "device": "cpu"},
            "device is 'cpu', but backend 'tensorrt' runs on the gpu only",
        ),
        (
            {"backend": "openvino", "device": "gpu"},
            "device is 'gpu', but backend 'openvino' runs on the cpu only",
        ),
    ],
)
def test_backends_that_lack_something_are_refused(options, words, onnx_directory, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_triton(onnx_directory, tmp_path / "m", name="t", options=TritonOptions(**options))


def test_plans_are_for_tensorrt_only(onnx_directory, tmp_path):
    with pytest.raises(ConfigError, match="plans are for backend 'tensorrt' only, backend is 'onn"):
        export_triton(onnx_directory, tmp_path / "m", name="t", plans=(tmp_path,))


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
    honest = triton_backends.open_for_export

    def with_odd_label(*given, **settings):
        opened = honest(*given, **settings)
        object.__setattr__(opened.source, "labels", ("a\nb", "c", "d"))
        return opened

    monkeypatch.setattr(triton_backends, "open_for_export", with_odd_label)
    with pytest.raises(ConfigError, match=re.escape(r"label 'a\nb' is not one line of text")):
        export_triton(write_model(), tmp_path / "models", name="tiny")


def test_an_interrupted_export_leaves_nothing(onnx_directory, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
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


def test_the_manifest_of_a_version_is_plain_json(repository):
    manifest = json.loads((repository / "tiny" / "1" / "export.json").read_text())
    assert (manifest["schema_version"], manifest["options"]["plans"]) == (1, [])
