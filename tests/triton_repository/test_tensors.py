"""Configurations against OpenVINO graphs and TensorRT engines."""

from __future__ import annotations

import re

import pytest

from cofi_deploy.errors import RepositoryError
from cofi_deploy.exports import ExportManifest, read_manifest
from cofi_deploy.triton_repository import read_config
from cofi_deploy.triton_repository.tensors import Version, ir_graph, version_problems

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")

IR = """<?xml version="1.0"?>
<net name="model" version="11"><layers>
<layer id="0" name="input_ids" type="Parameter"><output><port id="0" precision="I64">
<dim>-1</dim><dim>-1</dim></port></output></layer>
<layer id="1" name="add" type="Add" />
<layer id="2" name="logits/sink_port_0" type="Result"><input><port id="0" precision="FP32">
<dim>-1</dim><dim>3</dim></port></input></layer>
</layers></net>
"""


@pytest.fixture
def ir(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text(IR)
    path.with_suffix(".bin").write_bytes(b"weights")
    return path


def test_an_ir_tells_names_types_and_shapes(ir):
    graph = ir_graph(ir)
    (taken,), (given,) = graph.inputs, graph.outputs
    assert (taken.name, taken.data_type, taken.shape) == ("input_ids", "TYPE_INT64", (-1, -1))
    assert (given.name, given.data_type, given.shape) == ("logits", "TYPE_FP32", (-1, 3))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("<net>"), "is no OpenVINO model: no element found"),
        (lambda path: path.write_text("<net/>"), "is no whole OpenVINO model: it has no layers"),
        (lambda path: path.with_suffix(".bin").unlink(), "model.bin' is missing"),
    ],
    ids=["torn", "empty", "without weights"],
)
def test_an_ir_that_is_not_whole_is_named(damage, words, ir):
    damage(ir)
    with pytest.raises(RepositoryError, match=re.escape(words)):
        ir_graph(ir)


@pytest.fixture
def engine_version(repository):
    """The written version with two engines of one profile each, as its manifest would have them."""
    directory = repository / "tiny" / "1"
    honest = read_manifest(directory)
    plans = [
        {
            "file": f"model_sm{number}.plan",
            "compute_capability": f"{number[:-1]}.{number[-1]}",
            "profiles": [{"min": [1, 16], "max": [32, 64]}],
        }
        for number in ("89", "120")
    ]
    for plan in plans:
        (directory / plan["file"]).write_bytes(b"engine")
    fields = {name: getattr(honest, name) for name in ExportManifest.__dataclass_fields__}
    manifest = ExportManifest(**{**fields, "options": {**honest.options, "plans": plans}})
    return Version(directory, manifest)


@pytest.fixture
def engine_config(repository):
    config = read_config(repository / "tiny" / "config.pbtxt")
    config.backend = "tensorrt"
    config.default_model_filename = "model_sm89.plan"
    config.cc_model_filenames["8.9"] = "model_sm89.plan"
    config.cc_model_filenames["12.0"] = "model_sm120.plan"
    config.instance_group[0].kind = schema.ModelInstanceGroup.KIND_GPU
    config.instance_group[0].profile.append("0")
    return config


def test_engines_that_fit_pass(engine_config, engine_version):
    assert list(version_problems(engine_config, engine_version)) == []


def test_profile_indexes_and_capabilities_are_those_of_the_engines(engine_config, engine_version):
    engine_config.instance_group[0].profile.append("1")
    engine_config.cc_model_filenames["9.0"] = "model_sm89.plan"
    assert set(version_problems(engine_config, engine_version)) == {
        "cc_model_filenames gives 'model_sm89.plan' to compute capability '9.0', it was built for "
        "'8.9'",
        "instance_group names profile '1', model_sm89.plan has 0",
        "instance_group names profile '1', model_sm120.plan has 0",
    }


def test_batches_and_warm_up_lie_inside_the_profiles(engine_config, engine_version):
    engine_config.max_batch_size = 64
    engine_config.model_warmup[0].inputs["input_ids"].dims[0] = 8
    problems = list(version_problems(engine_config, engine_version))
    assert (
        "max_batch_size is 64, so batches of 1 to 64 come, but model_sm89.plan takes 1 to 32"
        in problems
    )
    assert "warm-up 'length_16_batch_1' has 8 tokens, model_sm89.plan takes 16 to 64" in problems


def test_an_engine_without_a_record_or_file_is_named(engine_config, engine_version):
    engine_config.cc_model_filenames["8.0"] = "model_sm80.plan"
    (problem,) = version_problems(engine_config, engine_version)
    assert "names 'model_sm80.plan', but" in problem
    (engine_version.directory / "model_sm80.plan").write_bytes(b"engine")
    assert any("about which" in p for p in version_problems(engine_config, engine_version))
