"""6 and 2 bits for numbers of a shrunk table, or 8 where held-out text loses by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cofi_deploy.export import word_bits
from cofi_deploy.export.calibration import CalibrationText
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.parity import torch_outputs
from cofi_deploy.export.quantized import fine_and_coarse, numbers_of_codes
from cofi_deploy.export.text_parity import Yardstick
from cofi_deploy.export.word_bits import choose_fine_words
from cofi_deploy.exports import TextParity, check_export
from cofi_deploy.loading import load, load_tokenizer, save_compact

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
    table.copy_(torch.from_numpy(numbers_of_codes(*fine_and_coarse(table.numpy(), 0))))
    save_compact(model, tokenizer, tmp_path / "coarse")
    return tmp_path / "coarse"


def chosen(directory, *, fine=0):
    """Bits of the first rows."""
    source, model = open_source(directory)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yardstick = Yardstick(text=TEXT, tokenizer=source.tokenizer, model=model)
    got = choose_fine_words(model, source.tokenizer, yardstick, fine)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert got in {None, fine}
    return 8 if got is None else 6


def test_a_table_that_loses_nothing_has_6_and_2_bits_and_one_that_does_8(coarse_model, fine_model):
    assert chosen(coarse_model) == 6
    assert chosen(fine_model) == 8


def test_an_export_falls_back_to_8_bits_and_says_so(fine_model, tmp_path):
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
    parity = TextParity(
        source="test",
        examples=1000,
        agreement=agreement,
        max_abs_logit_diff=None,
        metric_name=None if before is None else "accuracy",
        metric=after,
        metric_pytorch=before,
    )
    monkeypatch.setattr(word_bits, "measure_on_text", lambda *_: parity)
    assert chosen(write_model(), fine=ALL) == bits
