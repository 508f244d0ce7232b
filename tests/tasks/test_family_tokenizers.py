"""Sentences, pairs and windows with the tokenizer of every family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.loading import load_tokenizer
from cofi_deploy.tasks import Example
from cofi_deploy.tasks.encoding import encode_texts
from cofi_deploy.tasks.squad_spans import span_texts
from cofi_deploy.tasks.squad_windows import encode_questions
from cofi_deploy.tasks.task import Answer
from tests.family_tokenizers import CLASSES, write_tokenizer

TWO_TYPES = {"bert", "distilbert", "electra"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """All of them, by family."""
    opened = {}
    for family in CLASSES:
        folder = tmp_path_factory.mktemp("tokenizers") / family
        write_tokenizer(family, folder)
        opened[family] = load_tokenizer(folder)
    return opened


def rows_of(encoded):
    """Ids and types of every feature, without padding."""
    batches = [encoded.batch([at]) for at in range(len(encoded))]
    return [tuple(batch[name][0].tolist() for name in ("input_ids", "token_type_ids"))
            for batch in batches]  # fmt: skip


@pytest.mark.parametrize("family", CLASSES)
def test_pairs_are_encoded_as_the_tokenizer_does_and_padded_with_its_id(tokenizers, family):
    tokenizer = tokenizers[family]
    pairs = [("the film was good", "a dull plot"), ("bad", "the plot is poor and was fine")]
    examples = [Example(str(at), *pair, 0, ()) for at, pair in enumerate(pairs)]
    encoded = encode_texts("train", examples, tokenizer, max_length=64, labels=np.zeros(2))
    theirs = [tokenizer(*pair, return_token_type_ids=True) for pair in pairs]
    assert rows_of(encoded) == [(row["input_ids"], row["token_type_ids"]) for row in theirs]
    batch = encoded.batch([0, 1])
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert len(padding)
    assert set(padding) == {tokenizer.pad_token_id} == {0 if family in TWO_TYPES else 1}
    assert set(np.unique(batch["token_type_ids"])) == ({0, 1} if family in TWO_TYPES else {0})


@pytest.mark.parametrize("family", CLASSES)
def test_a_pair_that_is_too_long_keeps_all_special_tokens(tokenizers, family):
    tokenizer = tokenizers[family]
    example = Example("0", "good " * 40, "bad " * 30, 0, ())
    encoded = encode_texts("train", [example], tokenizer, max_length=24, labels=np.zeros(1))
    ids = rows_of(encoded)[0][0]
    assert len(ids) == 24
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    separators = 2 if family in TWO_TYPES else 3
    assert [ids.count(token) for token in special] == [1, separators]


def questions(tokenizer, question, context, answers=(), max_length=48):
    example = Example("0", question, context, None, answers)
    return encode_questions("train", [example], tokenizer, max_length=max_length)


@pytest.mark.parametrize("family", CLASSES)
def test_windows_are_the_tokenizers_own(tokenizers, family):
    tokenizer = tokenizers[family]
    question, context = "is the plot good?", "the film was fine and the plot was great. " * 12
    special = tokenizer.num_special_tokens_to_add(pair=True)
    length = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    theirs = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=48,
        stride=(48 - special - length) // 2,
        return_overflowing_tokens=True,
    )
    assert len(theirs["input_ids"]) > 3
    ids, types = zip(*rows_of(questions(tokenizer, question, context)), strict=True)
    assert list(ids) == theirs["input_ids"]
    # Of the overflow, tokenizers gets the types wrong where a template has one type only.
    whole = tokenizer(question, context, return_token_type_ids=True, verbose=False)
    expected = whole["token_type_ids"][:47]
    assert all(row[:47] == expected for row in types[:-1])


def test_roberta_puts_two_separators_between_question_and_context(tokenizers):
    tokenizer = tokenizers["roberta"]
    ids = rows_of(questions(tokenizer, "is", "good"))[0][0]
    inner = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("is", "good")]
    assert ids == [0, *inner[0], 2, 2, *inner[1], 2]


@pytest.mark.parametrize("family", CLASSES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_targets_lead_back_to_the_answer_and_nothing_around_it(tokenizers, family, data):
    # Whole words, since an answer inside of a token cannot be told from the token.
    odd = ["zürich", "naïve", "漢字", "😀"] if family == "roberta" else ["film12"]
    words = data.draw(
        st.lists(st.sampled_from(["good", "film", "x", "plotted", *odd]), min_size=1, max_size=30)
    )
    gap = data.draw(st.sampled_from([" ", "  "]))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    start = sum(len(word) + len(gap) for word in words[:first])
    text, context = gap.join(words[first : last + 1]), gap.join(words)
    encoded = questions(tokenizers[family], "is it", context, (Answer(text, start),), 64)
    starts, ends = (encoded.targets[f"{name}_positions"] for name in ("start", "end"))
    assert (starts <= ends).all()
    features = np.flatnonzero(starts)
    assert len(features)
    for at in features:
        # A model that is certain of the targets answers with the text itself.
        logits = [
            {name: np.zeros(length) for name in ("start_logits", "end_logits")}
            for length in encoded.lengths
        ]
        logits[at]["start_logits"][starts[at]] = logits[at]["end_logits"][ends[at]] = 9.0
        assert span_texts(encoded, logits, no_answers=False) == [text]


def test_an_answer_that_is_one_character_of_several_tokens_is_all_of_them(tokenizers):
    tokenizer = tokenizers["roberta"]
    encoded = questions(tokenizer, "is", "good 😀 film", (Answer("😀", 5),))
    start, end = (int(encoded.targets[f"{name}_positions"][0]) for name in ("start", "end"))
    ids = encoded.batch([0])["input_ids"][0, start : end + 1]
    assert len(ids) == 4
    assert tokenizer.decode(ids).strip() == "😀"


def test_answers_lose_the_space_that_a_token_begins_with(tokenizers):
    tokenizer = tokenizers["roberta"]
    encoded = questions(tokenizer, "is", "good film")
    windows = encoded.windows
    film = int(np.flatnonzero(windows.char_start == 5)[0])
    windows.char_start[film] = 4  # as a tokenizer says that does not trim its offsets
    logits = np.zeros(int(encoded.lengths[0]))
    logits[windows.position[0] + film] = 9.0
    outputs = [{"start_logits": logits, "end_logits": logits}]
    assert span_texts(encoded, outputs, no_answers=False) == ["film"]
