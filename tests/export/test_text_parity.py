"""What a lossy artifact may lose on real text, and where that text comes from."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import DataError, ExportError
from cofi_deploy.export.calibration import (
    CalibrationText,
    calibration_from_file,
    calibration_from_task,
    calibration_rows,
)
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.parity import torch_outputs
from cofi_deploy.export.text_parity import Yardstick, check_on_text, measure_on_text
from cofi_deploy.exports import check_export, rebuild_command
from cofi_deploy.kinds import TASK_KINDS
from cofi_deploy.tasks import load_task

LABELS = ("negative", "neutral", "positive")
WORDS = ("good", "bad", "fine", "dull", "film", "river", "tale", "bold")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """1500 labelled texts, of which 200 are held out for selection and as many for validation."""
    draw = random.Random(0)
    rows = [
        f"{' '.join(draw.choices(WORDS, k=draw.randint(1, 6)))} {number}\t{draw.choice(LABELS)}"
        for number in range(1500)
    ]
    path = tmp_path_factory.mktemp("data") / "data.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return load_task("text-classification", data=str(path), max_length=32)


@pytest.fixture
def opened(write_model):
    """Source, a run of the model, and the model as the yardstick of a text."""
    source, model = open_source(write_model())

    def by(text):
        return Yardstick(text=text, tokenizer=source.tokenizer, model=model)

    return source, lambda inputs: torch_outputs(model, inputs), by


def flipping(infer, *, every):
    """Answers with the classes reversed for one batch row in ``every``."""
    seen = {"rows": 0}

    def altered(inputs):
        logits = infer(inputs)["logits"].copy()
        for row in range(len(logits)):
            seen["rows"] += 1
            if seen["rows"] % every == 0:
                logits[row] = -logits[row]
        return {"logits": logits}

    return altered


def test_text_of_a_task_is_its_training_data_and_never_what_is_judged_by(task):
    text = calibration_from_task(task)
    assert len(text.texts) == len(task.splits["train"])
    for name in ("selection", "validation"):
        others = {example.text for example in task.splits[name].examples}
        assert not others & {first for first, _ in text.texts}
    assert text.source == "training data of text-classification"
    assert text.task is task


def test_a_precision_without_loss_changes_nothing_on_text(task, opened):
    source, infer, by = opened
    parity = check_on_text(infer, source.tokenizer, by(calibration_from_task(task)), "int8")
    assert parity.agreement == 1.0
    assert parity.metric == parity.metric_pytorch
    assert parity.metric_name == "accuracy"
    assert parity.examples == len(task.splits["selection"])
    assert parity.source.startswith(f"{parity.examples} examples held out of the training data")


def test_half_precision_that_flips_predictions_is_refused_with_their_share(task, opened):
    source, infer, by = opened
    text = calibration_from_task(task)
    words = r"bf16 predicts otherwise than PyTorch for \d+\.\d% of \d+ examples held out .*, "
    with pytest.raises(ExportError, match=words + r"allowed: 0\.5% and \d\.\d% for chance; give"):
        check_on_text(flipping(infer, every=4), source.tokenizer, by(text), "bf16")


def test_int8_is_judged_by_the_metric_where_there_are_labels(task, opened):
    source, _, by = opened
    text = calibration_from_task(task)
    encoded = task.encode("selection", source.tokenizer)
    gold = {tuple(ids): label for ids, label in gold_of(encoded)}

    def always_wrong(inputs):
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        labels = [gold[tuple(row[mask == 1])] for row, mask in pairs]
        return {"logits": -np.eye(3, dtype=np.float32)[labels]}

    words = r"int8 loses \d+\.\d points of accuracy on \d+ examples held out of the training data"
    with pytest.raises(ExportError, match=words + r".*, allowed: 0\.5 and \d\.\d for chance"):
        check_on_text(always_wrong, source.tokenizer, by(text), "int8")


def test_a_yardstick_of_training_examples_says_so(task, opened):
    source, infer, by = opened
    yardstick = replace(by(calibration_from_task(task)), split="train")
    parity = measure_on_text(infer, source.tokenizer, yardstick, "int8")
    assert (parity.examples, parity.agreement) == (1000, 1.0)
    assert parity.source == "1000 examples in the training data of text-classification"


def gold_of(encoded):
    for index, example in enumerate(encoded.examples):
        start, end = encoded.offsets[index : index + 2]
        yield encoded.input_ids[start:end].tolist(), example.label


def test_numbers_that_are_not_finite_are_refused(opened):
    source, infer, by = opened
    text = CalibrationText(texts=(("good film", None),), max_length=32, source="one line")

    def broken(inputs):
        return {"logits": infer(inputs)["logits"] * math.nan}

    with pytest.raises(ExportError, match="int8 gives numbers that are not finite on one line"):
        check_on_text(broken, source.tokenizer, by(text), "int8")


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_plain_text_is_compared_by_predictions_for_every_kind(kind, write_model):
    source, model = open_source(write_model(kind))
    texts = (("good film", None), ("who?", "a river in a tale"))
    text = CalibrationText(texts=texts, max_length=32, source="two lines")

    def infer(inputs):
        return torch_outputs(model, inputs)

    def by(text):
        return Yardstick(text=text, tokenizer=source.tokenizer, model=model)

    parity = check_on_text(infer, source.tokenizer, by(text), "fp16")
    assert (parity.agreement, parity.examples, parity.metric) == (1.0, 2, None)

    def other(inputs):
        return {name: -array for name, array in infer(inputs).items()}

    many = CalibrationText(texts=texts * 200, max_length=32, source="many lines")
    with pytest.raises(
        ExportError, match=r"fp16 predicts otherwise than PyTorch for .* many lines"
    ):
        check_on_text(other, source.tokenizer, by(many), "fp16")


def test_a_file_has_a_text_or_a_pair_in_each_line_and_names_itself(write_model, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("good film\n\nwho?\ta river\ngood film\n", encoding="utf-8")
    text = calibration_from_file(path, max_length=32)
    assert text.texts == (("good film", None), ("who?", "a river"))
    source, _ = open_source(write_model())
    rows = calibration_rows(source, text)
    assert len(rows) == 2
    assert set(rows[1][1]) == {0, 1}  # token types of a pair
    directory = export_onnx(write_model(), tmp_path / "onnx", precision="int8", text=text)
    manifest = check_export(directory)
    assert manifest.parity.text.source == str(path)
    assert rebuild_command(manifest) == (
        f"cofi-deploy export {write_model()} --format onnx --precision int8 --calibration {path}"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read texts from "),
        (b"\xff\xfe\x00", "cannot read texts from "),
        (b"\n  \n", "holds no text; give one text in each line"),
    ],
    ids=["missing", "not UTF-8", "empty"],
)
def test_a_file_without_text_is_named(content, words, tmp_path):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(words)) as info:
        calibration_from_file(path, max_length=32)
    assert str(path) in str(info.value)


def test_rows_are_spread_over_the_text_and_cut_to_its_length(write_model):
    source, model = open_source(write_model())
    texts = tuple((f"{number} " * 60, None) for number in range(100))
    text = CalibrationText(texts=texts, max_length=20, source="test")
    rows = text.rows(source.tokenizer, model.arch, 10)
    assert [len(ids) for ids, _ in rows] == [20] * 10
    assert len({tuple(ids) for ids, _ in rows}) == 10


def test_the_text_of_a_task_makes_int8_static_and_is_told(write_model, task, tmp_path):
    model_dir = write_model(layers=(LayerArch(heads=4, ffn=64),) * 3, hidden=32)
    text = calibration_from_task(task)
    manifest = check_export(export_onnx(model_dir, tmp_path / "onnx", precision="int8", text=text))
    assert manifest.options["int8_activations"] == "static"
    assert manifest.options["text"] == "training data of text-classification"
    assert "calibration" not in manifest.options
    found = manifest.parity.text
    assert found.metric_name == "accuracy"
    assert 0.8 < found.agreement <= 1.0
    assert abs(found.metric - found.metric_pytorch) < 0.1
