"""Version folders for OpenVINO and TensorRT; engines are made up, their records read for real."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cofi_deploy.artifacts import sha256_file, write_json
from cofi_deploy.errors import ArtifactError, ConfigError
from cofi_deploy.export.manifest import open_source, write_config_and_tokenizer, write_manifest
from cofi_deploy.export.triton import write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import ExportParity, check_export
from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.serve.triton_served import needs_of
from cofi_deploy.triton_repository import read_config

schema = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra 'triton' is not installed"
)

PARITY = ExportParity(
    max_abs_logit_diff=1e-6, agreement=1.0, sentences=8, runtime="onnxruntime-cpu"
)
SHAPES = {"min": [1, 16], "opt": [8, 32], "max": [32, 48]}


@pytest.fixture
def write_engine(tmp_path, write_model):
    """Write what `export --format trt` leaves, with bytes that no TensorRT has built."""

    def write(capability="8.9", *, shapes=(SHAPES,), flavour="tensorrt", options=None, **changes):
        source, _ = open_source(write_model())
        source = replace(source, **changes)
        directory = tmp_path / f"engine_{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "model.plan").write_bytes(f"engine for {capability}".encode())
        write_json(
            directory / "engine.json",
            {
                "flavour": flavour,
                "version": "10.14.1",
                "compute_capabilities": capability.split(","),
                "gpu": "NVIDIA L4",
                "precision": "fp16",
                "profiles": [dict.fromkeys(INPUT_NAMES, shape) for shape in shapes],
                "onnx_sha256": "0" * 64,
                "options": options or {},
                "plan_sha256": sha256_file(directory / "model.plan"),
            },
        )
        write_config_and_tokenizer(source, directory)
        write_manifest(
            directory,
            source,
            export_format="trt",
            precision="fp16",
            parity=PARITY,
            options={"flavour": flavour},
        )
        return directory

    return write


def write(tmp_path, model, *plans, **options):
    options = TritonOptions(**{"backend": "tensorrt", **options})
    return write_models(tmp_path / "models", model, name="tiny", options=options, plans=plans)


@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_openvino_serves_requests_as_they_come(kind, write_model, tmp_path):
    pytest.importorskip("openvino")
    artifact = write(tmp_path, write_model(kind), backend="openvino", instances=2, threads=3)
    folder = tmp_path / "models" / "tiny"
    assert {"model.xml", "model.bin", "model.onnx", "model.py"} <= {
        path.name for path in (folder / "1").iterdir()
    }
    assert artifact.parity.runtime == "openvino"
    config = read_config(folder / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("openvino", "model.xml")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert [list(item.dims) for item in config.input] == [[-1, -1]] * 3
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "NUM_STREAMS": "2",
        "INFERENCE_NUM_THREADS": "6",
    }
    assert {path.stem for path in (folder / "configs").iterdir()} == {"onnxruntime", "python"}
    assert read_config(folder / "configs" / "python.pbtxt").max_batch_size == 32


def test_openvino_starts_from_a_model_directory(onnx_directory, write_model, tmp_path):
    words = (
        "is an ONNX export, but backend 'openvino' starts from a model directory; give "
        f"{str(write_model())!r}"
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        write(tmp_path, onnx_directory, backend="openvino")


def test_one_engine_is_served_as_model_plan(write_engine, write_model, tmp_path):
    artifact = write(tmp_path, write_model(), write_engine(shapes=(SHAPES, SHAPES)))
    folder = tmp_path / "models" / "tiny"
    assert (folder / "1" / "model.plan").read_bytes() == b"engine for 8.9"
    assert artifact.precision == "fp16"
    config = read_config(folder / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert not config.cc_model_filenames
    (group,) = config.instance_group
    assert group.kind == schema.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == ["0", "1"]
    assert {item.data_type for item in config.input} == {schema.TYPE_INT64}
    assert {path.stem for path in (folder / "configs").iterdir()} == {"onnxruntime", "python"}


def test_engines_of_several_gpus_are_picked_by_compute_capability(
    write_engine, write_model, tmp_path
):
    write(tmp_path, write_model(), write_engine("8.9"), write_engine("12.0"))
    folder = tmp_path / "models" / "tiny"
    config = read_config(folder / "config.pbtxt")
    assert config.default_model_filename == "model_sm89.plan"
    assert dict(config.cc_model_filenames) == {
        "8.9": "model_sm89.plan",
        "12.0": "model_sm120.plan",
    }
    assert (folder / "1" / "model_sm120.plan").read_bytes() == b"engine for 12.0"
    assert needs_of(tmp_path / "models").capabilities == {"tiny": {"8.9", "12.0"}}
    # What any other GPU is served with: `serve` picks it, or whoever starts the server does.
    others = read_config(folder / "configs" / "onnxruntime.pbtxt")
    assert (others.backend, others.default_model_filename) == ("onnxruntime", "model.onnx")
    assert not others.cc_model_filenames


def test_lengths_stay_inside_the_profiles(write_engine, write_model, tmp_path):
    artifact = write(tmp_path, write_model(), write_engine(), warmup_lengths=(8, 128))
    assert artifact.options.length_buckets == (16, 32, 48)
    assert artifact.options.warmup_lengths == (16, 48)
    assert check_export(tmp_path / "models" / "tiny" / "1").options["length_buckets"][-1] == 48


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"flavour": "tensorrt-rtx"},
            "is of flavour 'tensorrt-rtx', for which Triton has no backend; build it with "
            "--flavour tensorrt on the GPU that will serve, or choose --backend onnxruntime",
        ),
        (
            {"capability": "8.0,8.9"},
            "is for compute capabilities 8.0, 8.9, allowed: exactly one",
        ),
        (
            {"sha256": "f" * 64},
            "was built from weights ffffffffffff, the model has",
        ),
        (
            {"shapes": ({"min": [1, 16], "opt": [1, 16], "max": [8, 64]},)},
            "takes batches of 1 to 8, but Triton will form 1 to 32; lower max_batch_size, or",
        ),
        (
            {"shapes": ({"min": [4, 16], "opt": [8, 16], "max": [64, 64]},)},
            "takes batches of 4 to 64, but Triton will form 1 to 32; lower max_batch_size, or",
        ),
    ],
    ids=["rtx", "several targets", "other weights", "small batches", "no single request"],
)
def test_an_engine_that_cannot_be_served_is_refused(
    changes, words, write_engine, write_model, tmp_path
):
    with pytest.raises(ConfigError, match=re.escape(words)):
        write(tmp_path, write_model(), write_engine(**changes))


def test_an_engine_without_its_weights_is_refused(write_engine, write_model, tmp_path):
    engine = write_engine(options={"strip": True})
    words = f"was stripped of its weights; put them in: cofi-deploy export {write_model()} --format"
    with pytest.raises(ConfigError, match=re.escape(words)):
        write(tmp_path, write_model(), engine)


def test_buckets_are_profiles_that_every_instance_opens(write_engine, write_model, tmp_path):
    shapes = tuple(
        {"min": [1, low], "opt": [8, high], "max": [32, high]}
        for low, high in ((1, 16), (17, 32), (33, 64))
    )
    artifact = write(tmp_path, write_model(), write_engine(shapes=shapes), warmup_lengths=(8, 32))
    config = read_config(tmp_path / "models" / "tiny" / "config.pbtxt")
    assert list(config.instance_group[0].profile) == ["0", "1", "2"]
    assert {sample.name for sample in config.model_warmup} == {
        f"length_{length}_batch_{size}" for length in (8, 32) for size in (1, 32)
    }
    assert artifact.options.length_buckets[-1] == 64


def test_engines_that_do_not_belong_together_are_reported_together(
    write_engine, write_model, tmp_path
):
    words = (
        "two engines are for compute capability 8.9, allowed: one for each; the engines have "
        "different numbers of optimization profiles; build all of them with the same --batch-size"
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        write(tmp_path, write_model(), write_engine(), write_engine(shapes=(SHAPES, SHAPES)))


def test_a_changed_engine_is_refused(write_engine, write_model, tmp_path):
    engine = write_engine()
    (engine / "model.plan").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"model\.plan' has sha256"):
        write(tmp_path, write_model(), engine)


def test_a_plan_that_is_no_engine_is_refused(onnx_directory, write_model, tmp_path):
    with pytest.raises(ConfigError, match="is an export of format 'onnx', expected 'trt'"):
        write(tmp_path, write_model(), onnx_directory)
