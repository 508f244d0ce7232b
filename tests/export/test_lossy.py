"""fp16, bf16 and int8: what leaves fp32, what must not, and that it runs."""

from __future__ import annotations

import copy
import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import ExportError
from cofi_deploy.export import lossy
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.graph_builder import TYPES, WORDS
from cofi_deploy.export.lossy import choose_numerics, quantized_modules
from cofi_deploy.export.numerics import FP32, Numerics
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.parity import batch_of, encode_sentences
from cofi_deploy.exports import check_export
from cofi_deploy.kinds import TASK_KINDS, output_names
from cofi_deploy.loading import load, load_tokenizer

WIDE = {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 32}
HIDDEN_PRUNED = {"layers": (LayerArch(heads=4, ffn=64),) * 3, "hidden": 31}


@pytest.fixture
def opened(write_model):
    """Model and rows of the built-in sentences."""

    def make(kind="text-classification", **structure):
        folder = write_model(kind, **structure)
        model = load(folder)
        return model, encode_sentences(load_tokenizer(folder), model.arch)

    return make


def run(proto, inputs, names=("logits",)):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(list(names), inputs)


def initializers(proto):
    return {item.name: item for item in proto.graph.initializer}


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("numerics", ["fp16", "bf16", "int8", "int8 dynamic"])
def test_every_kind_answers_nearly_like_fp32(kind, opset, numerics, opened, random_inputs):
    model, rows = opened(kind, **WIDE)
    precision, _, dynamic = numerics.partition(" ")
    chosen = choose_numerics(model, precision, rows, static=not dynamic)
    inputs, names = random_inputs(12 if dynamic else 3, 20), output_names(kind)
    got = run(onnx_from_model(model, opset=opset, numerics=chosen), inputs, names)
    expected = run(onnx_from_model(model, opset=opset), inputs, names)
    for one, other in zip(expected, got, strict=True):
        assert other.dtype == np.float32
        difference = np.abs(one - other)
        assert difference.any()
        if dynamic:  # the range is each batch's own, so a lone row may be far off
            assert difference.mean() < 0.05 * np.abs(one).max()
        else:
            share = 0.2 if precision == "int8" else 0.02
            assert difference.max() < share * np.abs(one).max()


def test_int8_computes_norms_softmax_and_head_in_fp32(opened):
    model, rows = opened(**WIDE)
    proto = onnx_from_model(model, opset=17, numerics=choose_numerics(model, "int8", rows))
    types = {name: item.data_type for name, item in initializers(proto).items()}
    # Of the last attention there are no keys and values: few products, which bytes do not pay for.
    few = {f"encoder.layers.2.attention.{part}.weight" for part in ("key", "value")}
    for name in model.state_dict():
        if name.endswith(".key.bias"):
            continue
        is_matrix = ".layers." in name and name.endswith("weight") and ".norm." not in name
        is_bytes = is_matrix or name in {WORDS, "encoder.embeddings.position.weight"}
        is_half = name in {TYPES, "pooler.weight", "classifier.weight"} | few
        is_bytes = is_bytes and not is_half
        expected = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
        assert types[name] == (TensorProto.INT8 if is_bytes else expected)
    producers = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type in {"LayerNormalization", "Softmax"} or node.name.endswith(".scores"):
            assert producers[node.input[0]].op_type != "DequantizeLinear"
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    computed = {item.name: item.type.tensor_type.elem_type for item in inferred.value_info}
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    assert {computed[name] for node in products for name in node.input} == {TensorProto.FLOAT}


def test_a_matrix_beyond_fp16_stays_fp32_at_int8(opened):
    model, rows = opened(**WIDE)
    model.state_dict()["pooler.weight"][0, 0] = 1e5
    proto = onnx_from_model(model, opset=17, numerics=choose_numerics(model, "int8", rows))
    types = {name: item.data_type for name, item in initializers(proto).items()}
    assert types["pooler.weight"] == TensorProto.FLOAT
    assert types["classifier.weight"] == TensorProto.FLOAT16


def test_tables_are_gathered_as_bytes_and_become_numbers_afterwards(opened):
    model, rows = opened(**WIDE)
    proto = onnx_from_model(model, opset=17, numerics=choose_numerics(model, "int8", rows))
    word = next(node for node in proto.graph.node if "encoder.embeddings.word.weight" in node.input)
    assert word.op_type == "Gather"
    table = numpy_helper.to_array(initializers(proto)["encoder.embeddings.word.weight"])
    scales = numpy_helper.to_array(initializers(proto)["scales.encoder.embeddings.word.weight"])
    assert scales.shape == (model.arch.vocab_size, 1)
    exact = model.state_dict()["encoder.embeddings.word.weight"].numpy()
    assert (np.abs(table * scales - exact) <= 0.51 * scales).all()


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        pytest.param(WIDE, 16, id="wide enough"),
        pytest.param(HIDDEN_PRUNED, 0, id="hidden too thin"),
        pytest.param(
            {
                "layers": (
                    LayerArch(heads=3, ffn=64),
                    LayerArch(heads=4, ffn=31),
                    LayerArch(heads=0, ffn=0),
                ),
                "hidden": 32,
            },
            2 + 2,
            id="thin attention, thin ffn, nothing",
        ),
    ],
)
def test_matrices_too_thin_to_gain_stay_fp32(structure, expected, opened):
    model, rows = opened(**structure)
    assert len(quantized_modules(model.arch, model.kind)) == expected
    numerics = choose_numerics(model, "int8", rows)
    proto = onnx_from_model(model, opset=17, numerics=numerics)
    matrices = [item for name, item in initializers(proto).items() if ".layers." in name]
    assert Counter(item.data_type for item in matrices)[TensorProto.INT8] == 2 * expected  # zeros


def test_static_int8_gives_a_row_the_same_answer_whatever_is_beside_it(opened, random_inputs):
    model, rows = opened(**WIDE)
    inputs = random_inputs(6, 24)
    spread = {}
    for static in (True, False):
        numerics = choose_numerics(model, "int8", rows, static=static)
        proto = onnx_from_model(model, opset=17, numerics=numerics)
        together = run(proto, inputs)[0]
        alone = [run(proto, {k: v[i : i + 1] for k, v in inputs.items()})[0][0] for i in range(6)]
        spread[static] = np.abs(together - np.stack(alone)).max()
    assert spread[True] < 1e-5
    assert spread[False] > 1e-3  # each batch has ranges of its own


def test_ranges_leave_out_the_most_extreme_rows_where_there_are_many(opened, monkeypatch):
    model, rows = opened(**WIDE)
    few = choose_numerics(model, "int8", rows)
    monkeypatch.setattr(lossy, "_MANY_ROWS", 4)
    monkeypatch.setattr(lossy, "KEPT_ROWS", 0.5)
    many = choose_numerics(model, "int8", rows)
    assert many.centres
    assert not few.centres
    for module, (low, high) in few.int8.items():
        assert many.int8[module][1] - many.int8[module][0] <= high - low


def overflowing(model, *, factor):
    """The same function in fp32, by way of large numbers in one feed-forward sublayer."""
    with torch.no_grad():
        ffn = model.encoder.layers[1].ffn
        ffn.down.weight.mul_(factor)
        ffn.down.bias.mul_(factor)
    return model


def test_a_sublayer_beyond_fp16_is_found_and_stays_fp32(opened, caplog):
    model, rows = opened(**WIDE)
    model = overflowing(model, factor=1e5)
    numerics = choose_numerics(model, "fp16", rows)
    assert numerics.fp32_sublayers == {"encoder.layers.1.ffn"}
    assert re.search(r"encoder\.layers\.1\.ffn stays fp32: encoder\.\S+ reaches \d", caplog.text)
    inputs = batch_of([rows[1]])
    expected = run(onnx_from_model(model, opset=17), inputs)[0]
    # ONNX Runtime's CPU kernels compute fp16 in fp32 and would hide the overflow.
    naive = Numerics(precision="fp16", fp32_softmax=True)
    with np.errstate(all="ignore"):
        broken = ReferenceEvaluator(onnx_from_model(model, opset=17, numerics=naive))
        assert not np.isfinite(broken.run(["logits"], inputs)[0]).all()
        promoted = ReferenceEvaluator(onnx_from_model(model, opset=17, numerics=numerics))
        np.testing.assert_allclose(promoted.run(["logits"], inputs)[0], expected, atol=5e-2)


def test_numbers_near_the_end_of_fp16_are_promoted_before_they_overflow(opened):
    model, rows = opened(**WIDE)
    reached = scan_of(model, rows)["encoder.layers.1.ffn.down.product"].magnitude
    for share, promoted in ((0.2, False), (0.3, True)):
        factor = share * lossy.FP16_MAX / reached
        changed = overflowing(copy.deepcopy(model), factor=factor)
        found = choose_numerics(changed, "fp16", rows).fp32_sublayers
        assert ("encoder.layers.1.ffn" in found) == promoted


def scan_of(model, rows):
    inputs = (batch_of([row]) for row in rows)
    return lossy.scan_activations(onnx_from_model(model, opset=17, numerics=FP32), inputs)


def test_embeddings_beyond_fp16_stay_fp32_as_a_table(opened):
    model, rows = opened(**WIDE)
    with torch.no_grad():
        model.encoder.embeddings.word.weight.mul_(1e6)
    numerics = choose_numerics(model, "fp16", rows)
    assert numerics.fp32_sublayers == {"encoder.embeddings"}
    table = initializers(onnx_from_model(model, opset=17, numerics=numerics))
    assert table["encoder.embeddings.word.weight"].data_type == TensorProto.FLOAT


def test_a_layer_norm_beyond_fp16_is_refused_with_a_way_on(opened):
    model, rows = opened(**WIDE)
    with torch.no_grad():
        model.encoder.layers[0].ffn.norm.weight.mul_(1e6)
    words = "fp16 ends at 65504 and sublayers hand their results on in it; export at --precision"
    with pytest.raises(ExportError, match=re.escape(words)):
        choose_numerics(model, "fp16", rows)


def test_a_model_that_is_not_finite_is_named_before_anything_is_chosen(opened):
    model, rows = opened(**WIDE)
    with torch.no_grad():
        model.encoder.layers[0].ffn.up.bias[3] = torch.inf
    with pytest.raises(ExportError, match=r"'encoder\.layers\.0\.ffn\.up\.out' is not finite in"):
        choose_numerics(model, "fp16", rows)


def test_softmax_is_fp32_unless_a_runtime_fuses_it_in_half(opened):
    model, rows = opened(**WIDE)
    for fp32_softmax in (True, False):
        numerics = choose_numerics(model, "fp16", rows, strongly_typed=not fp32_softmax)
        proto = onnx.shape_inference.infer_shapes(
            onnx_from_model(model, opset=17, numerics=numerics), strict_mode=True
        )
        types = {item.name: item.type.tensor_type.elem_type for item in proto.graph.value_info}
        outputs = {types[n.output[0]] for n in proto.graph.node if n.op_type == "Softmax"}
        assert outputs == {TensorProto.FLOAT if fp32_softmax else TensorProto.FLOAT16}


def test_bf16_stores_matrices_and_tables_in_half_the_space(opened):
    model, rows = opened(**WIDE)
    proto = onnx_from_model(model, opset=17, numerics=choose_numerics(model, "bf16", rows))
    stored = initializers(proto)
    for name in ("encoder.embeddings.word.weight", "encoder.layers.0.ffn.up.weight"):
        assert stored[name].data_type == TensorProto.BFLOAT16
    assert stored["encoder.layers.0.ffn.up.bias"].data_type == TensorProto.FLOAT
    assert stored["classifier.weight"].data_type == TensorProto.FLOAT


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("fp16", {"opset": 17, "fp32_sublayers": []}),
        ("bf16", {"opset": 17}),
        (
            "int8",
            {"opset": 17, "int8_products": 16, "word_bits": 8, "int8_activations": "dynamic"},
        ),
    ],
)
def test_an_export_says_what_it_is_and_is_smaller(precision, options, write_model, tmp_path):
    model_dir = write_model(**WIDE)
    plain = check_export(export_onnx(model_dir, tmp_path / "fp32"))
    lossy_one = check_export(export_onnx(model_dir, tmp_path / precision, precision=precision))
    assert lossy_one.precision == precision
    assert lossy_one.options == options
    assert lossy_one.parity.max_abs_logit_diff > 0
    assert lossy_one.parity.text is None
    assert lossy_one.parity.max_abs_padding_diff is not None
    parts = ("word embeddings", "other embeddings", "layers")
    sizes = [sum(manifest.size_by_part[part] for part in parts) for manifest in (plain, lossy_one)]
    assert sizes[1] < (0.45 if precision == "int8" else 0.6) * sizes[0]


def test_size_by_part_adds_up_to_the_files(write_model, tmp_path):
    directory = export_onnx(write_model(**WIDE), tmp_path / "onnx", precision="int8")
    parts = check_export(directory).size_by_part
    files = ("model.onnx", "tokenizer.json", "tokenizer_config.json")
    assert sum(parts.values()) == sum((directory / name).stat().st_size for name in files)
    assert min(parts.values()) > 0
