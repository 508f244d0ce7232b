"""A vocabulary cut to a task's text: the same answers on it, and no text that cannot be split."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from cofi_deploy.arch import LayerArch
from cofi_deploy.errors import ConfigError, ExportError
from cofi_deploy.export import vocabulary
from cofi_deploy.export.calibration import CalibrationText, calibration_rows
from cofi_deploy.export.manifest import open_source
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.quantized import columns_of, quantized
from cofi_deploy.export.vocabulary import shrink_vocabulary
from cofi_deploy.export.word_bits import importance_of_words
from cofi_deploy.export.word_codes import rounded_words
from cofi_deploy.exports import check_export, rebuild_command
from cofi_deploy.kinds import INPUT_NAMES
from cofi_deploy.loading import load, load_tokenizer, save_compact
from cofi_deploy.serve.runner import open_runner
from tests.builders import dense_arch, in_transformers, random_model

TEXTS = (
    "The delivery came two days late, and the box was open.",
    "Nobody delivered what was promised; twice!",
    "A man plays the flute.",
    "naïve café \u4e2d\u6587 \U0001f600 über",
)
ELSEWHERE = ("Quantum physics", "zzz \u0416 \u05d0 \U0001f680", "", "flutes delivering boxes")
CORPUS = (*TEXTS, *ELSEWHERE[:1], "physics physics quantum quantum delivering flutes boxes " * 3)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    pieces = {**tokenizer.get_vocab(), "[unused0]": tokenizer.get_vocab_size()}
    tokenizer.model = models.WordPiece(pieces, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.RobertaProcessing(*ids)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def text_of(*texts: str) -> CalibrationText:
    pairs = tuple((text, None) for text in texts)
    return CalibrationText(texts=pairs, max_length=64, source="test")


@pytest.fixture(scope="module", params=[wordpiece, byte_level], ids=["wordpiece", "bpe"])
def model_dir(request, tmp_path_factory):
    tokenizer = in_transformers(request.param(), max_length=64)
    # Two rows more than pieces: tables are often padded.
    arch = dense_arch(vocab_size=len(tokenizer) + 2, max_positions=64, pad_token_id=0)
    folder = tmp_path_factory.mktemp("vocabulary") / "model"
    save_compact(random_model("text-classification", arch), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def shrunk(model_dir):
    source, model = open_source(model_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "KEPT_SHARE", 0.5)
        cut = shrink_vocabulary(source, model, text_of(*TEXTS))
    return source, model, cut.source, cut.model


def answer(model, tokenizer, text):
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=True)
    with torch.inference_mode():
        return model.outputs({name: inputs[name] for name in INPUT_NAMES})["logits"].numpy()


def test_the_text_gets_exactly_the_same_pieces_and_answers(shrunk):
    source, model, small_source, small = shrunk
    assert small.arch.vocab_size < model.arch.vocab_size - 10
    for text in TEXTS:
        pieces = [each.tokenizer.tokenize(text) for each in (source, small_source)]
        assert pieces[0] == pieces[1]
        np.testing.assert_array_equal(
            answer(small, small_source.tokenizer, text), answer(model, source.tokenizer, text)
        )


@pytest.mark.parametrize("text", ELSEWHERE)
def test_any_other_text_is_split_without_losing_a_known_character(text, shrunk):
    source, _, small_source, small = shrunk
    before, after = source.tokenizer, small_source.tokenizer
    ids = after(text)["input_ids"]
    assert max(ids) < small.arch.vocab_size
    assert after.decode(ids, skip_special_tokens=True) == before.decode(
        before(text)["input_ids"], skip_special_tokens=True
    )
    assert np.isfinite(answer(small, after, text)).all()


def test_special_tokens_keep_their_roles_and_get_ids_of_their_own(shrunk):
    source, _, small_source, small = shrunk
    before, after = source.tokenizer, small_source.tokenizer
    for role in ("pad_token", "cls_token", "sep_token", "mask_token", "unk_token"):
        assert getattr(after, role) == getattr(before, role)
    assert small.arch.pad_token_id == after.pad_token_id
    pair = after("a", "b")["input_ids"]
    assert [pair[0], pair[-1]] == [after.cls_token_id, after.sep_token_id]
    assert len(after) == small.arch.vocab_size == len(set(after.get_vocab().values()))


def test_pieces_that_the_text_does_not_need_are_gone(shrunk):
    source, _, small_source, _ = shrunk
    gone = source.tokenizer.get_vocab().keys() - small_source.tokenizer.get_vocab().keys()
    assert any("quantum" in piece for piece in gone)


def test_an_export_carries_the_cut_tokenizer_and_is_opened_by_a_runner(model_dir, tmp_path):
    directory = export_onnx(
        model_dir, tmp_path / "onnx", text=text_of(*TEXTS), shrink_embeddings=True
    )
    manifest = check_export(directory)
    table = manifest.size_by_part["word embeddings"]
    assert table == 4 * manifest.arch.vocab_size * manifest.arch.hidden
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == (
        manifest.arch.vocab_size
    )
    assert manifest.options["shrink_embeddings"] is True
    assert "--shrink-embeddings" in rebuild_command(manifest)
    assert "/cofi-deploy-" not in (directory / "tokenizer_config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoded = tokenizer(TEXTS[0], return_tensors="np", return_token_type_ids=True)
    with open_runner(directory, "onnxruntime-cpu", threads=1) as runner:
        assert runner.limits.vocab_size == manifest.arch.vocab_size
        got = runner.infer({name: encoded[name] for name in INPUT_NAMES})["logits"]
    expected = answer(load(model_dir), load_tokenizer(model_dir), TEXTS[0])
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_int8_and_a_cut_vocabulary_go_together(model_dir, tmp_path):
    directory = export_onnx(
        model_dir,
        tmp_path / "onnx",
        precision="int8",
        text=text_of(*TEXTS),
        shrink_embeddings=True,
    )
    manifest = check_export(directory)
    words, hidden = manifest.arch.vocab_size, manifest.arch.hidden
    sizes = {8: words * (hidden + 4)}
    frequent = shrink_vocabulary(*open_source(model_dir), text_of(*TEXTS)).frequent
    sizes[6] = words * (hidden // 4 + 4) + (frequent + 1) * hidden // 2
    # Whichever a random model's predictions bear.
    assert manifest.size_by_part["word embeddings"] == sizes[manifest.options["word_bits"]]
    assert manifest.options["int8_products"] == 0  # too thin
    assert manifest.parity.text.examples == len(TEXTS)


@pytest.mark.parametrize("hidden", [16, 15, 14])
@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_rows_of_6_and_2_bits_are_what_a_runtime_computes_with(
    format_, hidden, tmp_path, monkeypatch
):
    """The artifact answers as the model whose table is rounded so, in every runtime."""
    monkeypatch.setattr(vocabulary, "FREQUENT_SHARE", 0.2)  # enough for the first text alone
    tokenizer = in_transformers(wordpiece(), max_length=64)
    arch = dense_arch(vocab_size=len(tokenizer), max_positions=64, pad_token_id=0)
    arch = replace(arch, hidden=hidden)
    model = random_model("text-classification", arch)
    model.state_dict()["classifier.bias"][0] += 9.0  # no rounding changes a prediction
    save_compact(model, tokenizer, tmp_path / "model")
    write, runtime = {
        "onnx": (export_onnx, "onnxruntime-cpu"),
        "openvino": (export_openvino, "openvino"),
    }[format_]
    options = {"precision": "int8", "text": text_of(TEXTS[0]), "shrink_embeddings": True}
    directory = write(tmp_path / "model", tmp_path / format_, **options)
    manifest = check_export(directory)
    assert manifest.options["word_bits"] == 6
    assert manifest.options["rare_word_bits"] == 2
    cut = shrink_vocabulary(*open_source(tmp_path / "model"), text_of(TEXTS[0]))
    words, frequent = cut.model.arch.vocab_size, cut.frequent
    assert frequent < words - 20
    packed = words * (-(-hidden // 4) + 4) + (frequent + 1) * -(-hidden // 2)
    # OpenVINO counts the numbers that rows are unpacked with to the table.
    assert 0 <= manifest.size_by_part["word embeddings"] - packed < (1, 100)[format_ == "openvino"]
    source, small, state = cut.source, cut.model, cut.model.state_dict()
    table = state["encoder.embeddings.word.weight"].numpy()
    rows = calibration_rows(source, text_of(TEXTS[0]))
    words_in_bits = rounded_words(table, frequent, importance_of_words(small, rows))
    rounded = {"word": words_in_bits.numbers()}
    positions = state["encoder.embeddings.position.weight"].numpy()
    columns = columns_of(positions)
    rows, steps = quantized(positions / columns, axis=1)
    rounded["position"] = rows.astype(np.float32) * steps * columns
    types = state["encoder.embeddings.token_type.weight"].numpy()
    rounded["token_type"] = types.astype(np.float16).astype(np.float32)
    for name, value in state.items():
        if value.ndim == 2 and ".embeddings." not in name:  # too thin for int8
            # The graph has the scale of attention in the query's map.
            scale = math.sqrt(arch.head_size) if ".query." in name else 1.0
            value.copy_((value / scale).half().float() * scale)
    for name, table in rounded.items():
        state[f"encoder.embeddings.{name}.weight"].copy_(torch.from_numpy(table))
    texts = {TEXTS[0]: False, TEXTS[2]: True}
    for text, has_rare_words in texts.items():
        encoded = source.tokenizer(text, return_tensors="np", return_token_type_ids=True)
        assert (encoded["input_ids"].max() >= frequent) == has_rare_words
        with open_runner(directory, runtime, threads=1) as runner:
            got = runner.infer({name: encoded[name] for name in INPUT_NAMES})["logits"]
        np.testing.assert_allclose(got, answer(small, source.tokenizer, text), atol=1e-5)


def test_without_text_there_is_nothing_to_keep(model_dir, tmp_path):
    words = "--shrink-embeddings needs the text of the task, to keep what it is made of; export a"
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_onnx(model_dir, tmp_path / "onnx", shrink_embeddings=True)
    assert list(tmp_path.iterdir()) == []


def test_another_type_of_tokenizer_is_refused_by_name(tmp_path):
    tokenizer = in_transformers(unigram(), max_length=64)
    arch = dense_arch(vocab_size=len(tokenizer), max_positions=64)
    save_compact(random_model("text-classification", arch), tokenizer, tmp_path / "model")
    words = "a tokenizer of type 'Unigram' cannot be cut, allowed: WordPiece and byte-level BPE"
    with pytest.raises(ConfigError, match=re.escape(words)):
        shrink_vocabulary(*open_source(tmp_path / "model"), text_of(*TEXTS))


def test_a_cut_that_would_split_the_text_otherwise_is_refused(model_dir, monkeypatch):
    honest = vocabulary.cut_tokenizer

    def forgetful(tokenizer, uses, **_):
        return honest(tokenizer, {i: count for i, count in uses.items() if i < 10})

    monkeypatch.setattr(vocabulary, "cut_tokenizer", forgetful)
    with pytest.raises(ExportError, match="the cut vocabulary splits 'The delivery came two days"):
        shrink_vocabulary(*open_source(model_dir), text_of(*TEXTS))


def test_pieces_with_the_most_uses_come_first_in_the_order_that_they_had(model_dir, monkeypatch):
    source, model = open_source(model_dir)
    before = source.tokenizer.get_vocab()
    texts = ("a box", "box, box")
    uses = Counter(i for text in texts for i in source.tokenizer(text)["input_ids"])
    monkeypatch.setattr(vocabulary, "KEPT_SHARE", 0.9)
    for count in (0, 3, 40):
        monkeypatch.setattr(vocabulary, "FREQUENT_SHARE", (count + 0.5) / len(source.tokenizer))
        cut = shrink_vocabulary(source, model, text_of(*texts))
        after = cut.source.tokenizer.get_vocab()
        old_ids = [before[piece] for piece in sorted(after, key=after.get)]
        first, others = old_ids[: cut.frequent], old_ids[cut.frequent :]
        assert len(first) == count
        assert first == sorted(first)
        assert others == sorted(others)
        least = min((uses[i] for i in first), default=0)
        assert all(uses[i] <= least or count == 0 for i in others)


def test_common_pieces_stay_where_the_text_needs_few(model_dir, monkeypatch):
    source, model = open_source(model_dir)
    sizes = {}
    for share in (0.0, 0.99):
        monkeypatch.setattr(vocabulary, "KEPT_SHARE", share)
        cut = shrink_vocabulary(source, model, text_of("a box"))
        sizes[share] = cut.model.arch.vocab_size
        assert "[unused0]" not in cut.source.tokenizer.get_vocab()
    assert sizes[0.0] < sizes[0.99]
    assert sizes[0.99] >= int(0.99 * len(source.tokenizer)) - 1
    # The most common ones: what is left out has the highest ids.
    before, after = source.tokenizer.get_vocab(), cut.source.tokenizer.get_vocab()
    gone = [i for piece, i in before.items() if piece not in after and "unused" not in piece]
    assert min(gone, default=len(before)) >= 0.9 * len(before)


def test_pairs_count_with_both_their_texts(model_dir, monkeypatch):
    monkeypatch.setattr(vocabulary, "KEPT_SHARE", 0.0)
    source, model = open_source(model_dir)
    pair = CalibrationText(texts=((TEXTS[0], TEXTS[1]),), max_length=64, source="test")
    one = shrink_vocabulary(source, model, text_of(TEXTS[0])).model
    both = shrink_vocabulary(source, model, pair).model
    assert both.arch.vocab_size > one.arch.vocab_size


def test_nothing_but_the_table_changes(shrunk):
    _, model, _, small = shrunk
    before, after = model.state_dict(), small.state_dict()
    table = "encoder.embeddings.word.weight"
    assert all(torch.equal(before[name], after[name]) for name in before if name != table)
    assert small.arch.layers == model.arch.layers == (LayerArch(heads=3, ffn=20),) * 3
    assert small.config.id2label == model.config.id2label
