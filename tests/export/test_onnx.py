"""The ONNX export: dynamic, equal to PyTorch, whole or absent, readable without cofi_deploy."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cofi_deploy.arch import Arch, LayerArch
from cofi_deploy.errors import ConfigError, ExportError
from cofi_deploy.export import onnx as exporter
from cofi_deploy.export.onnx import check_onnx, export_onnx, weight_shapes
from cofi_deploy.export.opsets import OPSETS
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import INPUT_NAMES, TASK_KINDS, output_names
from cofi_deploy.loading import load, load_tokenizer
from cofi_deploy.model import CofiPreTrainedModel

SHAPES = [(1, 1), (1, 64), (5, 7), (3, 33)]
STRUCTURES = {
    "uneven": {},
    "dense": {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 32},
    "nothing left but embeddings": {"layers": (LayerArch(heads=0, ffn=0),) * 3, "hidden": 1},
    "wide first layer": {
        "layers": (
            LayerArch(heads=4, ffn=1),
            LayerArch(heads=0, ffn=0),
            LayerArch(heads=2, ffn=63),
        ),
        "hidden": 31,
    },
}


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES.keys())
def structure(request):
    return request.param


def session_of(directory: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def torch_outputs(
    model: CofiPreTrainedModel, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = model.outputs({k: torch.from_numpy(v) for k, v in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_every_kind_and_structure_answers_like_torch_at_every_shape(
    kind, structure, write_model, random_inputs, tmp_path
):
    model_dir = write_model(kind, **structure)
    session, model = session_of(export_onnx(model_dir, tmp_path / "onnx")), load(model_dir)
    for batch, length in SHAPES:
        inputs = random_inputs(batch, length)
        expected = torch_outputs(model, inputs)
        got = session.run(list(output_names(kind)), inputs)
        for name, array in zip(output_names(kind), got, strict=True):
            assert array.shape == expected[name].shape
            np.testing.assert_allclose(array, expected[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_graph_has_dynamic_batch_and_sequence_and_the_names_of_the_contract(
    kind, write_model, tmp_path
):
    proto = onnx.load(export_onnx(write_model(kind), tmp_path / "onnx") / "model.onnx")
    assert tuple(item.name for item in proto.graph.input) == INPUT_NAMES
    assert tuple(item.name for item in proto.graph.output) == output_names(kind)
    for item in proto.graph.input:
        assert [dim.dim_param for dim in item.type.tensor_type.shape.dim] == ["batch", "sequence"]
        assert item.type.tensor_type.elem_type == onnx.TensorProto.INT64
    for item in proto.graph.output:
        assert item.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("opset", OPSETS)
def test_every_offered_opset_is_written_and_agrees(opset, write_model, tmp_path):
    directory = export_onnx(write_model(), tmp_path / "onnx", opset=opset)
    proto = onnx.load(directory / "model.onnx")
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", opset)]
    assert ("Gelu" in {node.op_type for node in proto.graph.node}) == (opset >= 20)
    assert check_export(directory).parity.max_abs_logit_diff <= 1e-4


def test_dense_transformers_checkpoint_answers_like_transformers(
    dense_directory, random_inputs, tmp_path
):
    session = session_of(export_onnx(dense_directory, tmp_path / "onnx"))
    reference = AutoModelForSequenceClassification.from_pretrained(dense_directory).eval()
    inputs = random_inputs(4, 19)
    with torch.inference_mode():
        expected = reference(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(session.run(["logits"], inputs)[0], expected, atol=2e-5)


def test_padding_does_not_change_an_answer(onnx_directory, random_inputs):
    session = session_of(onnx_directory)
    inputs = random_inputs(1, 9)
    padded = {name: np.pad(array, ((0, 0), (0, 40))) for name, array in inputs.items()}
    alone, together = (session.run(["logits"], each)[0] for each in (inputs, padded))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_row_of_nothing_but_padding_gives_finite_logits(onnx_directory, random_inputs):
    inputs = random_inputs(2, 8)
    inputs["attention_mask"][1] = 0
    assert np.isfinite(session_of(onnx_directory).run(["logits"], inputs)[0]).all()


def test_fp16_keeps_norms_head_and_logits_in_fp32(write_model, random_inputs, tmp_path):
    model_dir = write_model()
    directory = export_onnx(model_dir, tmp_path / "onnx", precision="fp16")
    proto = onnx.load(directory / "model.onnx")
    types = {item.name: item.data_type for item in proto.graph.initializer}
    exact = {"pooler", "classifier"}
    for name in load(model_dir).state_dict():
        if name.endswith(".key.bias"):
            assert name not in types
            continue
        wants_fp32 = ".norm." in name or name.split(".")[0] in exact
        assert types[name] == (onnx.TensorProto.FLOAT if wants_fp32 else onnx.TensorProto.FLOAT16)
    inputs = random_inputs(3, 12)
    got = session_of(directory).run(["logits"], inputs)[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, torch_outputs(load(model_dir), inputs)["logits"], atol=3e-2)
    manifest = check_export(directory)
    assert manifest.precision == "fp16"
    assert 0 < manifest.parity.max_abs_logit_diff < 5e-2


def test_a_layer_consists_of_exactly_these_nodes(write_model, tmp_path):
    one = (LayerArch(heads=2, ffn=5), LayerArch(heads=0, ffn=0), LayerArch(heads=0, ffn=0))
    proto = onnx.load(export_onnx(write_model(layers=one), tmp_path / "onnx") / "model.onnx")
    nodes = [node for node in proto.graph.node if node.name.startswith("encoder.layers.")]
    attention = Counter(node.op_type for node in nodes if ".attention." in node.name)
    attention["Add"] -= sum(node.name.endswith(".value.out") for node in nodes)
    ffn = Counter(node.op_type for node in nodes if ".ffn." in node.name)
    assert attention == {
        "Gather": 1,  # the first token: no attention follows
        "MatMul": 6,
        "Add": 3,  # bias of the query, mask, residual; of the value where no shift can hold it
        "Reshape": 2,
        "Transpose": 5,
        "Squeeze": 1,
        "Softmax": 1,
        "LayerNormalization": 1,
    }
    assert ffn == {
        "MatMul": 2,
        "Add": 3,  # bias of up, inside Gelu, residual
        "Div": 1,
        "Erf": 1,
        "Mul": 2,
        "LayerNormalization": 1,
    }
    outside = Counter(node.op_type for node in proto.graph.node if node not in nodes)
    assert outside == {
        "Gather": 3,  # words, positions with token types, the token that the pooler reads
        "Shape": 1,
        "Slice": 1,
        "Reshape": 1,
        "Add": 5,  # two of them before any text comes
        "LayerNormalization": 1,
        "Unsqueeze": 2,
        "Cast": 1,
        "Sub": 1,
        "Mul": 2,
        "MatMul": 2,
        "Tanh": 1,
    }


def test_attention_of_all_tokens_consists_of_exactly_these_nodes(write_model, tmp_path):
    directory = export_onnx(write_model("token-classification"), tmp_path / "onnx")
    nodes = onnx.load(directory / "model.onnx").graph.node
    for layer in (1, 2):
        place = f"encoder.layers.{layer}.attention."
        attention = Counter(node.op_type for node in nodes if node.name.startswith(place))
        attention["Add"] -= sum(node.name == f"{place}value.out" for node in nodes)
        assert attention == {
            "MatMul": 6,
            "Add": 3,  # bias of the query, mask, residual
            "Reshape": 4,
            "Transpose": 4,
            "Softmax": 1,
            "LayerNormalization": 1,
        }


def test_reshapes_name_the_head_count_and_never_infer_an_axis(onnx_directory):
    proto = onnx.load(onnx_directory / "model.onnx")
    values = {
        item.name: onnx.numpy_helper.to_array(item).tolist() for item in proto.graph.initializer
    }
    shapes = {
        node.name: values[node.input[1]] for node in proto.graph.node if node.op_type == "Reshape"
    }
    assert shapes["encoder.layers.1.attention.query.split"] == [0, 0, 1, 8]
    assert shapes["encoder.layers.1.attention.context.merged"] == [0, 0, 8]
    assert shapes["encoder.layers.2.attention.query.split"] == [0, 3, 8]
    assert shapes["encoder.layers.2.attention.context.merged"] == [0, 1, 24]
    assert all(-1 not in shape for shape in shapes.values())


def test_metadata_says_what_the_model_is_and_where_it_came_from(onnx_directory, write_model):
    proto = onnx.load(onnx_directory / "model.onnx")
    metadata = {item.key: item.value for item in proto.metadata_props}
    manifest = check_export(onnx_directory)
    assert Arch.from_json(json.loads(metadata["cofi_deploy.arch"])) == load(write_model()).arch
    assert metadata["cofi_deploy.task_kind"] == "text-classification"
    assert json.loads(metadata["cofi_deploy.labels"]) == ["negative", "neutral", "positive"]
    assert metadata["cofi_deploy.source_sha256"] == manifest.source_sha256
    assert re.match(r"\d+\.\d+|source tree ", metadata["cofi_deploy.version"])
    assert metadata["cofi_deploy.precision"] == "fp32"


def test_config_opens_in_transformers_without_cofi_deploy(onnx_directory):
    code = (
        "import sys; from transformers import AutoConfig; "
        f"config = AutoConfig.from_pretrained({str(onnx_directory)!r}); "
        "assert 'cofi_deploy' not in sys.modules; "
        "print(config.model_type, config.num_labels, config.id2label[2], config.problem_type, "
        "config.cofi_arch['hidden'], config.hidden_size)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd="/",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert answer.stdout.strip() == "bert 3 positive single_label_classification 29 32"


def test_tokenizer_files_encode_like_those_of_the_source(onnx_directory, write_model):
    source, exported = load_tokenizer(write_model()), load_tokenizer(onnx_directory)
    for text, pair in (("A man, a plan.", None), ("Is it 3.5 %?", "Yes, über all")):
        assert exported(text, pair) == source(text, pair)
    plain = AutoTokenizer.from_pretrained(onnx_directory)
    assert len(plain("a " * 30)["input_ids"]) == 32  # neither truncated nor padded


def test_tokenizer_class_has_a_name_that_transformers_4_knows(onnx_directory):
    config = json.loads((onnx_directory / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_manifest_lists_every_file_and_the_parity(onnx_directory, write_model):
    manifest = check_export(onnx_directory)
    on_disk = {path.name for path in onnx_directory.iterdir()}
    assert set(manifest.files) == on_disk - {"export.json"}
    assert {"model.onnx", "config.json", "tokenizer.json"} <= on_disk
    assert manifest.format == "onnx"
    assert manifest.source_path == str(write_model())
    assert manifest.labels == ("negative", "neutral", "positive")
    assert manifest.options == {"opset": 17}
    assert manifest.parity.sentences == 8
    assert manifest.parity.agreement == 1.0
    assert manifest.parity.runtime == "onnxruntime-cpu"


def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_written(
    write_model, tmp_path, monkeypatch
):
    honest = exporter.onnx_from_model

    def altered(model, **options):
        proto = honest(model, **options)
        for item in proto.graph.initializer:
            if item.name == "classifier.bias":
                values = onnx.numpy_helper.to_array(item) + np.float32(0.25)
                item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))
        return proto

    monkeypatch.setattr(exporter, "onnx_from_model", altered)
    words = "onnxruntime-cpu differs from PyTorch by up to 2.50e-01 on single sentences and"
    with pytest.raises(ExportError, match=re.escape(words) + r".* allowed: 1e-04"):
        export_onnx(write_model(), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(write_model, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "write_config_and_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(write_model(), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_keeps_the_previous_one(write_model, tmp_path, monkeypatch):
    first = export_onnx(write_model(), tmp_path / "onnx")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "write_config_and_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(write_model("question-answering"), tmp_path / "onnx")
    assert check_export(first).kind == "text-classification"
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_a_weight_of_another_size_than_the_arch_is_named(onnx_directory, write_model):
    model = load(write_model(layers=(LayerArch(heads=0, ffn=3),) * 3))
    with pytest.raises(ExportError, match=r"'encoder.layers.1.ffn.up.weight' of shape None, the"):
        check_onnx(onnx_directory / "model.onnx", model.arch, model.kind)


def test_a_weight_that_the_arch_does_not_have_is_named(onnx_directory, write_model):
    layers = (LayerArch(heads=0, ffn=0), LayerArch(heads=1, ffn=0), LayerArch(heads=3, ffn=17))
    model = load(write_model(layers=layers))
    with pytest.raises(ExportError, match=r"weights that the Arch has not: \['encoder.layers.0"):
        check_onnx(onnx_directory / "model.onnx", model.arch, model.kind)


def test_a_file_that_is_no_onnx_is_refused(write_model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    model = load(write_model())
    with pytest.raises(ExportError, match=r"model.onnx' is no valid ONNX model"):
        check_onnx(path, model.arch, model.kind)


def test_expected_shapes_count_the_parameters_of_the_arch(write_model):
    model = load(write_model())
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    shapes = weight_shapes(model.arch, model.kind)
    for name, shape in shapes.items():
        assert math.prod(shape) == math.prod(expected[name])
    assert set(shapes) == {n for n in expected if n.startswith("encoder.")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opset": 16}, "opset is 16, allowed: 17 to 23"),
        ({"opset": 24}, "opset is 24, allowed: 17 to 23"),
        ({"precision": "int4"}, "precision is 'int4', allowed: fp32, fp16"),
    ],
)
def test_an_unknown_option_names_what_is_allowed(options, words, write_model, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_onnx(write_model(), tmp_path / "onnx", **options)


def test_an_input_longer_than_the_positions_is_an_error_of_the_runtime(
    onnx_directory, random_inputs
):
    session = session_of(onnx_directory)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="64 by 65"):
        session.run(["logits"], random_inputs(1, 65))
