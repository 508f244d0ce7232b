from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.errors import ConfigError
from cofi_deploy.tasks import Example, length_bucketed_batches, load_task
from cofi_deploy.tasks.encoding import encode_texts, take


def encoded(tokenizer, rows, max_length=16):
    examples = [Example(str(at), *row, label=at) for at, row in enumerate(rows)]
    labels = np.arange(len(rows))
    return encode_texts("train", examples, tokenizer, max_length=max_length, labels=labels)


def test_single_sentences_are_padded_to_the_longest(tokenizer):
    split = encoded(tokenizer, [("a b",), ("a",)])
    batch = split.batch([0, 1])
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert split.lengths.tolist() == [4, 3]
    assert batch["input_ids"].tolist() == [[2, a, b, 3], [2, a, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0] * 4, [0] * 4]
    assert batch["labels"].tolist() == [0, 1]
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids", "labels"), np.dtype(np.int64)
    )


def test_pairs_have_two_token_types(tokenizer):
    batch = encoded(tokenizer, [("a", "b b")]).batch([0])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]


@given(
    texts=st.lists(st.text("abc ", min_size=1, max_size=30), min_size=1, max_size=20),
    data=st.data(),
)
def test_batches_equal_the_tokenizers_own_padding(tokenizer, texts, data):
    split = encoded(tokenizer, [(text,) for text in texts])
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    multiple = data.draw(st.sampled_from([1, 8]))
    ours = split.batch(rows, pad_to_multiple=multiple)
    theirs = tokenizer(
        [texts[at] for at in rows],
        truncation=True,
        max_length=16,
        padding=True,
        pad_to_multiple_of=multiple,
        return_tensors="np",
    )
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


def test_fixed_width_is_kept_and_too_small_a_one_refused(tokenizer):
    split = encoded(tokenizer, [("a",), ("abcd",)])
    assert split.batch([0], pad_to=12)["input_ids"].shape == (1, 12)
    message = "pad_to is 5, but feature 1 has 6 tokens; pad to 6 or more"
    with pytest.raises(ConfigError, match=re.escape(message)):
        split.batch([0, 1], pad_to=5)


def test_too_long_a_text_is_cut(tokenizer):
    assert encoded(tokenizer, [("a" * 50,)]).lengths.tolist() == [16]


def test_length_beyond_the_tokenizers_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"max_length is 513, but the tokenizer .* allows 512"):
        encoded(tokenizer, [("a",)], max_length=513)


@given(
    lengths=st.lists(st.integers(1, 128), max_size=400),
    batch_size=st.integers(1, 33),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 50),
)
def test_every_feature_is_in_one_batch_of_the_epoch(lengths, batch_size, seed, epoch):
    lengths = np.asarray(lengths, dtype=np.int64)
    batches = length_bucketed_batches(lengths, batch_size, seed=seed, epoch=epoch)
    flat = [int(at) for batch in batches for at in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert sum(len(batch) != batch_size for batch in batches) <= 1
    again = length_bucketed_batches(lengths, batch_size, seed=seed, epoch=epoch)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]


def test_epochs_differ_and_little_is_padded():
    lengths = np.random.default_rng(0).integers(5, 128, size=5000)
    first, second = (length_bucketed_batches(lengths, 32, seed=1, epoch=at) for at in (0, 1))
    assert first[0].tolist() != second[0].tolist()
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.05 * lengths.sum()
    widths = [lengths[batch].max() for batch in first]
    assert widths != sorted(widths)


def test_batch_size_zero_is_refused():
    with pytest.raises(ConfigError, match=re.escape("batch_size is 0, allowed: 1 and up")):
        length_bucketed_batches(np.ones(3, dtype=np.int64), 0, seed=0, epoch=0)


def test_limit_takes_examples_from_the_whole_split():
    examples = [Example(str(at), "x") for at in range(10)]
    assert [row.id for row in take(examples, 3)] == ["0", "3", "6"]
    assert take(examples, 99) is examples
    with pytest.raises(ConfigError, match=re.escape("limit is 0, allowed: 1 and up")):
        take(examples, 0)


def test_length_too_short_for_any_sentence_is_refused(sst2):
    with pytest.raises(ConfigError, match=re.escape("max_length is 7, allowed: 8 and up")):
        load_task("sst2", data_dir=sst2, max_length=7)
