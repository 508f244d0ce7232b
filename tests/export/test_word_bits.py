"""6 and 2 bits for numbers of a shrunk table, or 8 where the text loses by it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cofi_deploy.export import vocabulary, word_bits
from cofi_deploy.export.calibration import CalibrationText
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.parity import batch_of, torch_outputs
from cofi_deploy.export.text_parity import Yardstick
from cofi_deploy.export.word_bits import choose_words, importance_of_words
from cofi_deploy.export.word_codes import rounded_words
from cofi_deploy.exports import TextParity, check_export
from cofi_deploy.loading import load, load_tokenizer, save_compact
from tests.builders import random_model

TEXT = CalibrationText(
    texts=tuple((f"{a} {b} film", None) for a in "abcdefgh" for b in "stuvwxyz"),
    max_length=32,
    source="test",
)


ALL = 10**6  # more rows than any table here has


@pytest.fixture
def fine_model(write_model, tmp_path):
    """A model whose words differ only in what 2 bits lose beside one large number in each row."""
    directory = write_model()
    model, tokenizer = load(directory), load_tokenizer(directory)
    state = model.state_dict()
    state["encoder.embeddings.word.weight"][:, 0] = 2.0
    # Without one dominant class, each prediction hangs on the words.
    inputs = tokenizer([text for text, _ in TEXT.texts], return_tensors="np", padding=True)
    logits = torch_outputs(model, inputs)["logits"]
    state["classifier.bias"].sub_(torch.from_numpy(np.median(logits, axis=0)))
    save_compact(model, tokenizer, tmp_path / "fine")
    return tmp_path / "fine"


@pytest.fixture
def coarse_model(write_model, tmp_path):
    """A model whose rows are on a grid of 2 bits already."""
    directory = write_model()
    model, tokenizer = load(directory), load_tokenizer(directory)
    table = model.state_dict()["encoder.embeddings.word.weight"]
    grid = rounded_words(table.numpy(), 0, np.eye(table.shape[1])).numbers()
    table.copy_(torch.from_numpy(grid))
    save_compact(model, tokenizer, tmp_path / "coarse")
    return tmp_path / "coarse"


def parity_of(before, after, agreement, *, examples=1000):
    return TextParity(
        source="test",
        examples=examples,
        agreement=agreement,
        max_abs_logit_diff=None,
        metric_name=None if before is None else "accuracy",
        metric=after,
        metric_pytorch=before,
    )


def chosen(directory, *, fine=0, text=TEXT):
    """Bits of the first rows."""
    source, model = open_source(directory)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yardstick = Yardstick(text=text, tokenizer=source.tokenizer, model=model)
    rows = TEXT.rows(source.tokenizer, source.arch, 16)
    got = choose_words(model, source.tokenizer, yardstick, rows=rows, frequent=fine)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert got is None or got.fine == fine
    return 8 if got is None else 6


def test_a_table_that_loses_nothing_has_6_and_2_bits_and_one_that_does_8(coarse_model, fine_model):
    assert chosen(coarse_model) == 6
    assert chosen(fine_model) == 8


def test_an_export_falls_back_to_8_bits_and_says_so(fine_model, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "FREQUENT_SHARE", 0.0)
    directory = export_onnx(
        fine_model, tmp_path / "onnx", precision="int8", text=TEXT, shrink_embeddings=True
    )
    manifest = check_export(directory)
    assert manifest.size_by_part["word embeddings"] == manifest.arch.vocab_size * (
        manifest.arch.hidden + 4
    )
    assert manifest.options["word_bits"] == 8
    assert "rare_word_bits" not in manifest.options


@pytest.mark.parametrize(
    ("before", "after", "agreement", "bits"),
    [
        (0.871, 0.866, 0.9, 6),
        (0.871, 0.865, 0.999, 8),
        (0.8, 0.9, 0.9, 6),
        (None, None, 0.995, 6),
        (None, None, 0.99, 8),
    ],
)
def test_half_a_point_may_be_lost_or_half_a_percent_change(
    before, after, agreement, bits, write_model, monkeypatch
):
    parity = parity_of(before, after, agreement)
    monkeypatch.setattr(word_bits, "measure_on_text", lambda *_: parity)
    assert chosen(write_model(), fine=ALL) == bits


@pytest.mark.parametrize(
    ("held_out", "in_training", "bits"),
    [((366, 0.73), (1000, 0.735), 6), ((366, 0.73), (1000, 0.729), 8), ((1000, 0.729), None, 8)],
)
def test_training_examples_count_where_few_are_held_out(
    held_out, in_training, bits, write_model, monkeypatch
):
    """Two of 366 are more than half a point, which 1000 others may outweigh."""
    text = replace(TEXT, task=SimpleNamespace(name="test"))
    counts = {"selection": held_out, "train": in_training}
    asked = []

    def measure(_infer, _tokenizer, yardstick, _precision):
        asked.append(yardstick.split)
        examples, metric = counts[yardstick.split]
        return parity_of(0.735 + 0.0005, metric, 0.99, examples=examples)

    monkeypatch.setattr(word_bits, "measure_on_text", measure)
    monkeypatch.setattr(
        Yardstick,
        "expected",
        property(lambda each: SimpleNamespace(examples=counts[each.split][0])),
    )
    assert chosen(write_model(), fine=ALL, text=text) == bits
    assert asked == ["selection", "train"][: 1 + (in_training is not None)]


@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_importance_is_the_mean_square_of_what_a_change_of_a_word_does(kind):
    """By finite differences: a small step in a row of the table, in one text of one token."""
    model = random_model(kind)
    row = (np.array([7]), np.array([0]))
    importance = np.mean(
        [importance_of_words(model, [row], seed=seed) for seed in range(200)], axis=0
    )
    before = torch_outputs(model, batch_of([row]))
    table = model.state_dict()["encoder.embeddings.word.weight"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        step = rng.standard_normal(table.shape[1]).astype(np.float32)
        with torch.no_grad():
            table[7] += 1e-3 * torch.from_numpy(step)
        after = torch_outputs(model, batch_of([row]))
        with torch.no_grad():
            table[7] -= 1e-3 * torch.from_numpy(step)
        change = sum(np.square((after[name] - before[name]) / 1e-3).sum() for name in before)
        assert step @ importance @ step == pytest.approx(change, rel=0.25)


def test_importance_leaves_the_model_as_it_was(write_model):
    source, model = open_source(write_model())
    before = [p.requires_grad for p in model.parameters()]
    rows = TEXT.rows(source.tokenizer, source.arch, 4)
    first, again = (importance_of_words(model, rows) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, first.T)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    assert not model.get_submodule("encoder.embeddings.word")._forward_hooks
