"""Every family in every format that this machine can make, with its own tokenizer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import AutoConfig

from cofi_deploy.engines import read_engine_record
from cofi_deploy.errors import ConfigError
from cofi_deploy.export.calibration import CalibrationText
from cofi_deploy.export.engine_options import EngineOptions
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.export.onnx import MODEL_FILE, export_onnx, onnxruntime_infer
from cofi_deploy.export.openvino import export_openvino, openvino_infer
from cofi_deploy.export.tensorrt import export_tensorrt
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.loading import load, load_tokenizer, save_compact
from cofi_deploy.masks import Masks
from cofi_deploy.train.cut import cut
from tests.builders import SMALL, masks_of, random_model
from tests.families import MODELS, dense_arch_of, padded_inputs
from tests.family_tokenizers import write_tokenizer

RELATIVES = ["distilbert", "electra", "roberta", "xlm-roberta"]
SHAPES = {"batch_size": (1, 2, 4), "seq_len": (8, 16, 32)}


@pytest.fixture(scope="module")
def family_model(tmp_path_factory):
    """A pruned classifier of a family beside the family's own tokenizer, written once."""
    made: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("families")
            vocabulary = write_tokenizer(family, folder / "tokenizer", model_max_length=38)
            dense = random_model(
                "text-classification", dense_arch_of(family, vocab_size=vocabulary)
            )
            compact = cut(dense, _uneven())
            save_compact(compact, load_tokenizer(folder / "tokenizer"), folder / "model")
            made[family] = folder / "model"
        return made[family]

    return write


def _uneven() -> Masks:
    return masks_of(SMALL, hidden=19, heads=[1, 0, 2], ffn=[13, 6, 0])


def check_answers(infer, model_dir: Path, tolerance: float = 5e-5) -> None:
    """A padded batch, and the same with other token types, as PyTorch answers it."""
    model = load(model_dir)
    inputs = padded_inputs(model.arch, lengths=(12, 1, 5), width=14)
    flipped = {**inputs, "token_type_ids": 1 - inputs["token_type_ids"]}
    for given in (inputs, flipped):
        with torch.inference_mode():
            expected = model.outputs(given)["logits"].numpy()
        got = infer({name: value.numpy() for name, value in given.items()})["logits"]
        np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("family", RELATIVES)
def test_onnx_takes_the_three_inputs_and_answers_like_torch(family, opset, family_model, tmp_path):
    directory = export_onnx(family_model(family), tmp_path / "onnx", opset=opset)
    proto = onnx.load(directory / MODEL_FILE)
    assert tuple(item.name for item in proto.graph.input) == INPUT_NAMES
    check_answers(onnxruntime_infer(directory / MODEL_FILE), family_model(family))


@pytest.mark.parametrize("family", RELATIVES)
def test_half_precision_keeps_the_head_of_the_family_in_fp32(family, family_model, tmp_path):
    directory = export_onnx(family_model(family), tmp_path / "onnx", precision="fp16")
    check_answers(onnxruntime_infer(directory / MODEL_FILE), family_model(family), 5e-2)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("family", RELATIVES)
def test_small_weights_answer_nearly_like_torch(family, precision, family_model, tmp_path):
    directory = export_onnx(family_model(family), tmp_path / "onnx", precision=precision)
    check_answers(onnxruntime_infer(directory / MODEL_FILE), family_model(family), 0.1)
    tables = {"bf16": onnx.TensorProto.BFLOAT16, "int8": onnx.TensorProto.INT8}
    types = {
        item.name: item.data_type for item in onnx.load(directory / MODEL_FILE).graph.initializer
    }
    assert types["encoder.embeddings.word.weight"] == tables[precision]
    assert types["encoder.embeddings.position.weight"] == tables[precision]


@pytest.mark.parametrize("family", RELATIVES)
def test_a_whole_graph_promoted_to_fp32_answers_like_torch(family, family_model):
    model = load(family_model(family))
    layers = range(len(model.arch.layers))
    parts = [f"encoder.layers.{index}.{part}" for index in layers for part in ("attention", "ffn")]
    everything = {"encoder.embeddings", "encoder.embeddings.project", *parts}
    numerics = Numerics(precision="fp16", fp32_sublayers=frozenset(everything))
    proto = onnx_from_model(model, opset=17, numerics=numerics)
    onnx.checker.check_model(proto, full_check=True)
    inputs = padded_inputs(model.arch, lengths=(12, 1, 5), width=14)
    given = {name: value.numpy() for name, value in inputs.items()}
    got = ReferenceEvaluator(proto).run(["logits"], given)[0]
    with torch.inference_mode():
        expected = model.outputs(inputs)["logits"].numpy()
    np.testing.assert_allclose(got, expected, atol=5e-2)


@pytest.mark.parametrize("family", ["distilbert", "electra", "roberta"])
def test_the_vocabulary_of_a_family_is_cut(family, family_model, tmp_path):
    text = CalibrationText(texts=(("a man", "the flute"),), max_length=32, source="test")
    directory = export_onnx(
        family_model(family), tmp_path / "onnx", text=text, shrink_embeddings=True
    )
    small, whole = check_export(directory).arch, load(family_model(family)).arch
    assert small.vocab_size <= whole.vocab_size
    tokenizers = [load_tokenizer(folder) for folder in (directory, family_model(family))]
    assert tokenizers[0].pad_token_id == small.pad_token_id
    pieces = [
        each.convert_ids_to_tokens(each("a man", "the flute")["input_ids"]) for each in tokenizers
    ]
    assert pieces[0] == pieces[1]


def test_the_vocabulary_of_xlm_roberta_is_not(family_model, tmp_path):
    text = CalibrationText(texts=(("a man", None),), max_length=32, source="test")
    with pytest.raises(ConfigError, match="a tokenizer of type 'Unigram' cannot be cut"):
        export_onnx(
            family_model("xlm-roberta"), tmp_path / "onnx", text=text, shrink_embeddings=True
        )


@pytest.mark.parametrize("family", ["distilbert", "electra", "roberta"])
def test_openvino_takes_the_three_inputs_and_answers_like_torch(family, family_model, tmp_path):
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    directory = export_openvino(family_model(family), tmp_path / "openvino")
    check_answers(openvino_infer(directory / "openvino_model.xml"), family_model(family))


@pytest.mark.parametrize(
    "precision",
    ["fp16", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fp32", "bf16", "int8"))],
)
@pytest.mark.parametrize("family", ["bert", *RELATIVES])
def test_engines_build_and_keep_an_input_that_is_not_used(
    family, precision, family_model, tmp_path, caplog
):
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra 'tensorrt-rtx' is missing")
    caplog.set_level(logging.INFO, logger="cofi_deploy")
    directory = export_tensorrt(
        family_model(family),
        tmp_path / "trt",
        precision=precision,
        options=EngineOptions(flavour="tensorrt-rtx"),
        **SHAPES,
    )
    arch = check_export(directory).arch
    assert arch.family == family
    assert tuple(read_engine_record(directory).profiles[0]) == INPUT_NAMES
    # No engine can be asked without a GPU; the builder says what it does with such an input.
    words = "token_type_ids is unused or used only at compile-time, but is not being removed"
    assert (words in caplog.text) == (arch.type_vocab_size < 2)


@pytest.mark.parametrize("family", RELATIVES)
def test_config_of_an_export_is_one_that_transformers_reads_as_the_family(
    family, family_model, tmp_path
):
    directory = export_onnx(family_model(family), tmp_path / "onnx")
    config = AutoConfig.from_pretrained(directory)
    arch = load(family_model(family)).arch
    assert config.model_type == family
    assert config.architectures == [f"{MODELS[family][0]}ForSequenceClassification"]
    assert (config.hidden_size, config.num_hidden_layers) == (24, 3)
    assert config.max_position_embeddings == 40
    assert config.pad_token_id == arch.pad_token_id
    stored = json.loads((directory / "config.json").read_text())
    assert stored["cofi_arch"]["position_offset"] == arch.position_offset
