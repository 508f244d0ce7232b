"""Faults planted in real artifacts, with right checksums: each is told by its name and values."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from tokenizers import Tokenizer

from cofi_deploy.arch import LayerArch
from cofi_deploy.artifacts import checksums, read_json, write_json
from cofi_deploy.cli import main
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.numerics import Numerics
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.exports import MANIFEST
from cofi_deploy.loading import load, save_compact, save_dense
from cofi_deploy.serve.accuracy import score_split
from cofi_deploy.serve.diagnosis import MIN_ROUNDS, slower_models
from cofi_deploy.serve.latency import Schedule
from cofi_deploy.serve.runner import availability, open_runner
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verify import VerifySettings, verify
from cofi_deploy.tasks import load_task
from tests.builders import random_model as of_kind
from tests.serve.conftest import (
    FULL,
    LABELS,
    MAX_POSITIONS,
    UNEVEN,
    arch_of,
    make_tokenizer,
    random_model,
)
from tests.train.conftest import tiny_data

__all__ = ["tiny_data"]

OTHER_ORDER = ("positive", "negative", "neutral")


def manifest_renewed(directory):
    """Write the checksums of what lies there now, as an exporter does that made it so."""
    manifest = read_json(directory / MANIFEST)
    manifest["files"] = checksums(directory, exclude=frozenset({MANIFEST}))
    write_json(directory / MANIFEST, manifest)
    return directory


def with_graph(source, directory, change):
    """A copy of an ONNX export whose graph was written otherwise."""
    shutil.copytree(source, directory)
    model = onnx.load(directory / "model.onnx")
    change(model.graph)
    onnx.save_model(model, directory / "model.onnx")
    return manifest_renewed(directory)


def replaced(graph, name, value):
    (tensor,) = [item for item in graph.initializer if item.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.array(value, order="C"), name))


def constant(graph, name):
    (tensor,) = [item for item in graph.initializer if item.name == name]
    return numpy_helper.to_array(tensor)


def with_heads(count, size, layer=0):
    """Splits a layer of a graph into other heads; the last one splits its query alone."""

    def change(graph):
        shape = [0, 0, count, size] if layer == 0 else [0, count, size]
        graph.initializer.append(numpy_helper.from_array(np.array(shape), "planted"))
        splits = re.compile(rf"encoder\.layers\.{layer}\.attention\.\w+\.split")
        changed = [node for node in graph.node if splits.fullmatch(node.name)]
        assert len(changed) == (3 if layer == 0 else 1)
        for node in changed:
            node.input[1] = "planted"

    return change


@pytest.fixture
def checked(subjects, task, quick, tmp_path):
    """`verify` of the dense model against a subject, or against ``pruned`` with other artifacts."""

    def run(subject=None, *, on=task, limit=30, dense=subjects["dense"], **artifacts):
        artifacts = {name.replace("_", "-"): path for name, path in artifacts.items()}
        if subject is None:
            own = {"torch": subjects["pruned"].artifacts["torch"], **artifacts}
            subject = Subject(label="pruned", artifacts=own)
        runtimes = tuple(subject.artifacts)
        settings = VerifySettings(bench=quick(*runtimes, points=()), limit=limit)
        return verify(dense, [subject], on, settings, tmp_path / "out")

    return run


def told(result, fault):
    """The one sentence about a fault, after the places where it must stand were compared."""
    assert not result.ok
    (diagnosis,) = [each for each in result.document["diagnoses"] if each["fault"] == fault]
    sentence = diagnosis["sentence"]
    assert sentence.startswith(f"{diagnosis['model']} in {diagnosis['runtime']}")
    assert sentence in result.document["notes"]
    assert result.verdict.sentence.startswith("Missed: ")
    claims = [claim for claim in result.verdict.claims if claim.claim == "no_fault"]
    assert (sentence, "missed") in [(claim.sentence, claim.outcome) for claim in claims]
    stored = read_json(result.result_file)
    assert diagnosis in stored["diagnoses"]
    assert not stored["verdict"]["ok"]
    return sentence


def only(result, fault):
    """The sentence about a fault that must be the only one."""
    assert [each["fault"] for each in result.document["diagnoses"]] == [fault]
    return told(result, fault)


# Healthy artifacts.


def test_healthy_exports_have_no_diagnosis(subjects, checked):
    result = checked(subjects["pruned"])
    assert result.document["diagnoses"] == []
    assert result.ok


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_structures_of_every_precision_give_no_false_alarm(seed, checked, tmp_path):
    draw = np.random.default_rng(seed)
    layers = tuple(
        LayerArch(heads=int(draw.integers(0, 5)), ffn=int(draw.integers(0, 33))) for _ in range(2)
    )
    model = random_model(arch_of(layers, int(draw.integers(2, 17))))
    save_compact(model, make_tokenizer(), tmp_path / "model")
    for precision in ("fp32", "fp16", "bf16", "int8"):
        directory = export_onnx(tmp_path / "model", tmp_path / precision, precision=precision)
        artifacts = {"torch": tmp_path / "model", "onnxruntime-cpu": directory}
        result = checked(Subject(label="pruned", artifacts=artifacts))
        assert result.document["diagnoses"] == [], (layers, precision)


def test_a_healthy_int8_openvino_export_has_no_diagnosis(subjects, checked, tmp_path):
    pytest.importorskip("openvino")
    model = subjects["pruned"].artifacts["torch"]
    directory = export_openvino(model, tmp_path / "int8", precision="int8")
    assert checked(openvino=directory).document["diagnoses"] == []


# Heads.


@pytest.fixture
def six_wide(subjects, tmp_path):
    """An export of the dense model whose layer 0 computes 2 heads of 8 instead of 4 of 4."""
    source = subjects["dense"].artifacts["onnxruntime-cpu"]
    return with_graph(source, tmp_path / "heads", with_heads(2, 8))


def as_pruned(subjects, **artifacts):
    """The dense model in the place of the pruned one."""
    own = {name.replace("_", "-"): path for name, path in artifacts.items()}
    return Subject(label="pruned", artifacts={"torch": subjects["dense"].artifacts["torch"], **own})


def test_a_wrong_head_count_names_the_layer_and_both_counts(subjects, checked, six_wide):
    result = checked(as_pruned(subjects, onnxruntime_cpu=six_wide))
    sentence = only(result, "head_count")
    (row,) = [
        row
        for row in result.document["rows"]
        if row.get("agreement") is not None
        and (row["model"], row["runtime"]) == ("pruned", "onnxruntime-cpu")
    ]
    assert sentence.startswith(
        "pruned in onnxruntime-cpu: layer 0 of the graph computes 2 heads of size 8, but the model "
        "has 4 of size 4, and its answers differ from PyTorch's for "
        f"{1 - row['agreement']:.1%} of the examples, its logits by up to "
        f"{row['max_abs_logit_diff']:.3g}; export it again: cofi-deploy export "
    )


def test_a_wrong_head_count_is_found_in_openvino_too(subjects, checked, six_wide, tmp_path):
    openvino = pytest.importorskip("openvino")
    directory = tmp_path / "openvino"
    shutil.copytree(subjects["dense"].artifacts["openvino"], directory)
    ir = openvino.convert_model(six_wide / "model.onnx")
    openvino.save_model(ir, directory / "openvino_model.xml", compress_to_fp16=False)
    result = checked(as_pruned(subjects, openvino=manifest_renewed(directory)))
    assert "pruned in openvino: layer 0 of the graph computes 2 heads of size 8" in only(
        result, "head_count"
    )


@pytest.mark.parametrize(("count", "size", "layer"), [(3, 4, 0), (3, 4, 1), (2, 8, 1)])
def test_heads_that_do_not_fit_are_told_without_running_them(
    count, size, layer, subjects, checked, tmp_path
):
    source = subjects["dense"].artifacts["onnxruntime-cpu"]
    directory = with_graph(source, tmp_path / "heads", with_heads(count, size, layer))
    result = checked(as_pruned(subjects, onnxruntime_cpu=directory))
    sentence = only(result, "head_count")
    words = f"layer {layer} of the graph computes {count} heads of size {size}, but the model has 4"
    assert f"{words} of size 4; the graph cannot" in sentence
    skipped = {each["runtime"]: each["reason"] for each in result.document["skipped"]}
    assert skipped == {"onnxruntime-cpu": sentence}


def test_wrong_heads_are_found_without_a_model_to_compare_with(
    subjects, task, quick, six_wide, tmp_path
):
    dense = subjects["dense"].artifacts["onnxruntime-cpu"]
    pair = [
        Subject(label=label, artifacts={"onnxruntime-cpu": directory})
        for label, directory in (("dense", dense), ("pruned", six_wide))
    ]
    settings = VerifySettings(bench=quick("onnxruntime-cpu", points=()), limit=10)
    result = verify(pair[0], [pair[1]], task, settings, tmp_path)
    assert "2 heads of size 8, but the model has 4 of size 4; export it" in only(
        result, "head_count"
    )


# Labels.


def test_logits_in_another_order_name_both_orders(subjects, checked, tmp_path):
    def change(graph):
        order = [LABELS.index(label) for label in OTHER_ORDER]
        for name in ("classifier.weight", "classifier.bias"):
            replaced(graph, name, constant(graph, name)[..., order])

    source = subjects["pruned"].artifacts["onnxruntime-cpu"]
    directory = with_graph(source, tmp_path / "labels", change)
    sentence = only(checked(onnxruntime_cpu=directory), "swapped_labels")
    assert (
        "pruned in onnxruntime-cpu: labels are swapped: the artifact's logits are in the order "
        "positive, negative, neutral, the model's in the order negative, neutral, positive, and "
        "its answers differ from PyTorch's for "
    ) in sentence


@pytest.mark.parametrize("file", ["config.json", "export.json"])
def test_names_in_another_order_name_the_file_and_both_orders(file, subjects, checked, tmp_path):
    directory = tmp_path / "labels"
    shutil.copytree(subjects["pruned"].artifacts["onnxruntime-cpu"], directory)
    stored = json.loads((directory / file).read_text())
    if file == "config.json":
        stored["id2label"] = {str(index): name for index, name in enumerate(OTHER_ORDER)}
    else:
        stored["labels"] = list(OTHER_ORDER)
    (directory / file).write_text(json.dumps(stored))
    result = checked(onnxruntime_cpu=manifest_renewed(directory))
    assert only(result, "swapped_labels").startswith(
        f"pruned in onnxruntime-cpu: labels are swapped: {file} has the order positive, negative, "
        "neutral, the model's is negative, neutral, positive; export it again: "
    )


@pytest.fixture
def answered_task(subjects, task, tmp_path):
    """The texts of the task, with what the dense model answers as their labels."""
    lines = []
    for split in ("train", "selection", "validation"):
        encoded = task.encode(split, make_tokenizer())
        with open_runner(subjects["dense"].artifacts["torch"], "torch", threads=1) as runner:
            answers = score_split(runner, task, encoded).predictions
        lines += [
            f"{example.text}\t{LABELS[int(answer)]}"
            for example, answer in zip(encoded.examples, answers, strict=True)
        ]
    assert {line.split("\t")[1] for line in lines} == set(LABELS)
    path = tmp_path / "answered.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return load_task("text-classification", data=str(path), max_length=MAX_POSITIONS)


def test_a_model_that_learnt_other_labels_is_told_from_a_bad_one(
    subjects, checked, answered_task, tmp_path
):
    model = load(subjects["dense"].artifacts["torch"])
    order = [LABELS.index(label) for label in OTHER_ORDER]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order].clone())
        model.classifier.bias.copy_(model.classifier.bias[order].clone())
    save_dense(model, make_tokenizer(), tmp_path / "swapped")
    swapped = Subject(label="pruned", artifacts={"torch": tmp_path / "swapped"})
    sentence = only(checked(swapped, on=answered_task, limit=None), "swapped_labels")
    assert "it answers 'negative' where the task says 'positive' and 'neutral' where " in sentence
    assert "accuracy is 0.000, and would be 1.000 with these labels exchanged" in sentence
    # The dense model answers right, and a random one is not called swapped.
    assert checked(subjects["pruned"], on=answered_task).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("squad", "question-answering"), ("stsb", "text-regression")]
)
def test_spans_and_scores_are_compared_too(name, kind, checked, tiny_data, tmp_path):
    arch = replace(arch_of(UNEVEN, 13), max_positions=200)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 200
    model = of_kind(kind, arch, deviation=0.3)
    save_compact(model, tokenizer, tmp_path / "model")
    healthy = export_onnx(tmp_path / "model", tmp_path / "onnx")

    def change(graph):
        if kind == "question-answering":
            replaced(graph, "start_logits.place", np.array(1))
            replaced(graph, "end_logits.place", np.array(0))
        else:
            replaced(graph, "classifier.bias", constant(graph, "classifier.bias") + 1)

    planted = with_graph(healthy, tmp_path / "planted", change)
    task = load_task(name, data_dir=tiny_data, max_length=200)
    results = []
    for directory in (healthy, planted):
        artifacts = {"torch": tmp_path / "model", "onnxruntime-cpu": directory}
        subject = Subject(label="pruned", artifacts=artifacts)
        results.append(checked(subject, on=task, dense=replace(subject, label="dense"), limit=12))
        assert results[0].document["diagnoses"] == []
    found = [each for each in results[1].document["diagnoses"] if each["model"] == "pruned"]
    (sentence,) = [each["sentence"] for each in found]
    if kind == "question-answering":
        assert "in the order end_logits, start_logits, the model's in the order start_" in sentence
    else:
        assert "its logits by up to 1, more than fp32 explains" in sentence


# Vocabulary.


def test_a_truncated_word_table_names_its_rows_and_what_has_none(subjects, checked, tmp_path):
    def change(graph):
        name = "encoder.embeddings.word.weight"
        replaced(graph, name, constant(graph, name)[:60])

    source = subjects["pruned"].artifacts["onnxruntime-cpu"]
    directory = with_graph(source, tmp_path / "table", change)
    result = checked(onnxruntime_cpu=directory)
    sentence = only(result, "truncated_vocabulary")
    words = (
        r"the word table has 60 rows instead of 77, but the tokenizer gives ids up to (\d+), and "
        r"(\d+\.\d)% of the tokens of the task's text have no row; export it again"
    )
    top, share = re.search(words, sentence).groups()
    assert 60 <= int(top) < 77
    assert 0 < float(share) < 100
    assert result.document["skipped"] == [{"runtime": "onnxruntime-cpu", "reason": sentence}]
    # PyTorch is measured all the same.
    assert {row["runtime"] for row in result.document["rows"]} == {"torch"}


def test_a_table_that_lacks_rows_which_this_text_does_not_ask_for_is_told(
    subjects, checked, tmp_path
):
    def change(graph):
        name = "encoder.embeddings.word.weight"
        replaced(graph, name, constant(graph, name)[:76])  # the last piece is ##9

    texts = tmp_path / "data.tsv"
    rows = [f"good film {'abc'[at % 3]}\t{LABELS[at % 3]}" for at in range(60)]
    texts.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    plain = load_task("text-classification", data=str(texts), max_length=MAX_POSITIONS)
    source = subjects["pruned"].artifacts["onnxruntime-cpu"]
    directory = with_graph(source, tmp_path / "table", change)
    result = checked(onnxruntime_cpu=directory, on=plain)
    assert "the word table has 76 rows, the model's 77" in only(result, "truncated_vocabulary")


def test_a_truncated_tokenizer_names_sizes_and_the_share_of_unknown_tokens(subjects, checked):
    directory = subjects["pruned"].artifacts["torch"]
    tokenizer = make_tokenizer()
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = stored["model"]["vocab"]
    stored["model"]["vocab"] = {piece: at for piece, at in vocabulary.items() if at < 50}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(stored))
    short = directory.parent / "short"
    save_compact(load(directory), tokenizer, short)
    result = checked(Subject(label="pruned", artifacts={"torch": short}))
    sentence = told(result, "truncated_vocabulary")
    words = (
        r"its tokenizer has 50 pieces, to which (\d+\.\d)% of the tokens of the task's text are "
        r"unknown, against (\d+\.\d)% with the 77 pieces of dense; train or copy the model again"
    )
    share, usual = map(float, re.search(words, sentence).groups())
    assert share > usual + 2


# Numbers.


def wide_model(directory, scale):
    """A model whose second FFN computes numbers, or has weights, that fp16 does not hold."""
    model = random_model(arch_of(UNEVEN, 13))
    with torch.no_grad():
        model.encoder.layers[1].ffn.up.weight.mul_(scale)
        model.encoder.layers[1].ffn.down.weight.mul_(1e3)
    save_compact(model, make_tokenizer(), directory)
    return directory


def without_fp32_sublayers(model, healthy, directory):
    """What the exporter would write if it did not look for numbers beyond fp16."""
    shutil.copytree(healthy, directory)
    numerics = Numerics(precision="fp16")
    with np.errstate(over="ignore"):
        graph = onnx_from_model(load(model), opset=17, numerics=numerics)
    onnx.save_model(graph, directory / "model.onnx")
    manifest = read_json(directory / MANIFEST)
    assert manifest["options"]["fp32_sublayers"] == ["encoder.layers.1.ffn"]
    write_json(directory / MANIFEST, {**manifest, "options": {"opset": 17, **numerics.to_json()}})
    return manifest_renewed(directory)


OVERFLOW = (
    r"pruned in onnxruntime-cpu: fp16 overflow: the ffn sublayer of layer 1 reaches ([\d.e+]+), "
    r"the largest number of fp16 is 65504; (.+); use --precision bf16 or fp32: "
    r"cofi-deploy export .* --format onnx --precision bf16"
)


def test_fp16_overflow_names_the_sublayer_its_numbers_and_the_way_on(checked, tmp_path):
    wide = wide_model(tmp_path / "wide", 1e6)
    healthy = export_onnx(wide, tmp_path / "healthy", precision="fp16")
    artifacts = {"torch": wide, "onnxruntime-cpu": healthy}
    assert checked(Subject(label="pruned", artifacts=artifacts)).document["diagnoses"] == []
    artifacts["onnxruntime-cpu"] = without_fp32_sublayers(wide, healthy, tmp_path / "planted")
    result = checked(Subject(label="pruned", artifacts=artifacts))
    peak, where = re.fullmatch(OVERFLOW, only(result, "fp16_overflow")).groups()
    assert float(peak) > 65504
    words = r"answers are NaN or infinite for (\d+) of 30 inputs, first for input \d+ \('.+'\)"
    assert 0 < int(re.fullmatch(words, where)[1]) <= 30


def test_an_overflow_that_a_processor_hides_is_told(checked, tmp_path):
    wide = wide_model(tmp_path / "wide", 1e4)
    healthy = export_onnx(wide, tmp_path / "healthy", precision="fp16")
    directory = without_fp32_sublayers(wide, healthy, tmp_path / "planted")
    artifacts = {"torch": wide, "onnxruntime-cpu": directory}
    result = checked(Subject(label="pruned", artifacts=artifacts))
    peak, where = re.fullmatch(OVERFLOW, only(result, "fp16_overflow")).groups()
    assert float(peak) > 65504
    assert where == "it does not show in this runtime, which computed in fp32"


def test_weights_that_are_broken_in_pytorch_are_no_overflow(subjects, checked, tmp_path):
    model = load(subjects["pruned"].artifacts["torch"])
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    save_compact(model, make_tokenizer(), tmp_path / "nan")
    result = checked(Subject(label="pruned", artifacts={"torch": tmp_path / "nan"}))
    assert "answers are NaN or infinite for 30 of 30 inputs, first for input 0 (" in only(
        result, "not_finite"
    )
    assert told(result, "not_finite").endswith(
        "in fp32 already: the weights are broken; train the model again"
    )


def test_a_fault_without_a_name_is_put_down_to_the_artifact(subjects, checked, tmp_path):
    def change(graph):
        name = "encoder.layers.1.ffn.up.weight"
        replaced(graph, name, -constant(graph, name))

    source = subjects["pruned"].artifacts["onnxruntime-cpu"]
    directory = with_graph(source, tmp_path / "sign", change)
    sentence = only(checked(onnxruntime_cpu=directory), "other_answers")
    assert "more than fp32 explains, and PyTorch has the same weights: the fault is in" in sentence


# Speed.


def test_a_pruned_model_that_is_slower_is_told_with_its_interval(subjects, task, quick, tmp_path):
    sizes = replace(arch_of(FULL, 16).dense, hidden=128, heads=32, ffn=512)
    layers = (LayerArch(heads=32, ffn=512),) * 2
    arch = replace(arch_of(FULL, 16), hidden=128, dense=sizes, layers=layers, pooler=128)
    save_dense(random_model(arch), make_tokenizer(), tmp_path / "masked")
    masked = Subject(label="pruned", artifacts={"torch": tmp_path / "masked"})
    schedule = Schedule(min_repeats=MIN_ROUNDS, max_seconds=0.0)
    bench = quick("torch", points=("8x32",), schedule=schedule)
    for _ in range(3):
        settings = VerifySettings(bench=bench, limit=10)
        result = verify(subjects["dense"], [masked], task, settings, tmp_path / "out")
        row = result.document["rows"][-1]
        if row["speedup"] is not None:
            break
    else:
        pytest.skip(result.document["notes"][-1])  # this machine is busy with other work
    assert row["speedup_high"] < 1
    assert only(result, "slower_model").startswith(
        f"pruned in torch at 8x32 is slower than dense: {row['speedup']:.2f} times its speed "
        f"(95 % interval {row['speedup_low']:.2f} to {row['speedup_high']:.2f}); was the model cut"
    )


@pytest.mark.parametrize(
    ("high", "rounds", "faults"),
    [
        pytest.param(0.99, 30, 1, id="slower"),
        pytest.param(1.01, 30, 0, id="not decided"),
        pytest.param(0.99, MIN_ROUNDS - 1, 0, id="too few rounds"),
        pytest.param(None, 30, 0, id="too noisy"),
    ],
)
def test_only_a_whole_interval_below_one_is_slower(high, rounds, faults):
    place = {"model": "pruned", "runtime": "openvino", "batch_size": 1, "seq_len": "task"}
    row = {**place, "speedup": 0.9, "speedup_low": 0.8, "speedup_high": high}
    assert len(slower_models([row], [{**place, "rounds": rounds}])) == faults


# Tokenizers.


def shuffled_tokenizer():
    """The pieces of the tokenizer with the numbers of letters exchanged."""
    tokenizer = make_tokenizer()
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = stored["model"]["vocab"]
    vocabulary["g"], vocabulary["b"] = vocabulary["b"], vocabulary["g"]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(stored))
    return tokenizer


def test_another_tokenizer_in_an_artifact_shows_share_text_and_tokens(subjects, checked, tmp_path):
    directory = tmp_path / "tokenizer"
    shutil.copytree(subjects["pruned"].artifacts["onnxruntime-cpu"], directory)
    shuffled_tokenizer().save_pretrained(directory)
    result = checked(onnxruntime_cpu=manifest_renewed(directory))
    words = (
        r"pruned in onnxruntime-cpu: its tokenizer is not that of the model: it gives other ids "
        r"for (\d+\.\d)% of 30 texts, first for '(.+)': \[\[CLS\]=2 .+\] instead of \[\[CLS\]=2 "
        r".+\]; copy the tokenizer of .*pruned' or export it again: cofi-deploy export "
    )
    share, text = re.match(words, only(result, "different_tokenizer")).groups()
    assert 0 < float(share) <= 100
    assert "g" in text or "b" in text


def test_another_tokenizer_than_the_dense_models_is_told(subjects, checked, tmp_path):
    model = load(subjects["pruned"].artifacts["torch"])
    save_compact(model, shuffled_tokenizer(), tmp_path / "other")
    result = checked(Subject(label="pruned", artifacts={"torch": tmp_path / "other"}))
    assert "pruned in torch: its tokenizer is not that of dense: it gives other ids for " in only(
        result, "different_tokenizer"
    )


def test_a_tokenizer_beyond_the_word_table_belongs_to_another_model(subjects, checked, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["film"])  # id 77
    save_compact(load(subjects["pruned"].artifacts["torch"]), tokenizer, tmp_path / "more")
    result = checked(Subject(label="pruned", artifacts={"torch": tmp_path / "more"}))
    found = [each["sentence"] for each in result.document["diagnoses"]]
    assert (
        "pruned in torch: the tokenizer belongs to another model: it gives ids up to 77, but the "
        "word table has 77 rows, as it should; copy the tokenizer of the model that was pruned"
    ) in found
    assert not result.ok
    assert {each["runtime"] for each in result.document["skipped"]} == {"torch"}


# The command line.


@pytest.mark.slow
def test_verify_exits_1_and_prints_the_fault(subjects, six_wide, tmp_path, monkeypatch):
    if availability("onnxruntime-cpu") is not None:
        pytest.skip("no ONNX Runtime")
    monkeypatch.chdir(tmp_path)
    dense = subjects["dense"].artifacts
    shutil.copytree(dense["onnxruntime-cpu"], "exports/dense/onnx")
    shutil.copytree(six_wide, "exports/pruned/onnx")
    for name in ("dense", "pruned"):
        shutil.copytree(dense["torch"], name)
        # The command reads texts of up to 128 tokens; these are shorter than the model's 40.
        path = Path(name, "tokenizer_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 128}))
    lines = [f"good film {'abc'[at % 3]}\t{LABELS[at % 3]}" for at in range(60)]
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    result = CliRunner().invoke(
        main,
        [
            *("verify", "dense", "pruned", "--task", "text-classification", "--data", "data.tsv"),
            *("--runtime", "onnxruntime-cpu", "--point", "1x8", "--limit", "10"),
            *("--repeats", "3", "--max-seconds", "0"),
        ],
    )
    assert result.exit_code == 1, result.stderr
    printed = " ".join(result.stderr.split())
    assert "Missed: pruned in onnxruntime-cpu: layer 0 of the graph computes 2 heads" in printed
