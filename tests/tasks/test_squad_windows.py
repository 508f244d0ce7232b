from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cofi_deploy.errors import ConfigError
from cofi_deploy.tasks import Example
from cofi_deploy.tasks.squad_spans import span_texts
from cofi_deploy.tasks.squad_windows import encode_questions
from cofi_deploy.tasks.task import Answer


@pytest.fixture(scope="module")
def roberta_like():
    """Byte-level tokens of one byte, with RoBERTa's two separators and one token type."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B:0 </s>:0",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        cls_token="<s>", sep_token="</s>", unk_token="<unk>", model_max_length=512,
    )  # fmt: skip


def features(tokenizer, rows, max_length):
    examples = [
        Example(str(at), question, context, None, answers)
        for at, (question, context, answers) in enumerate(rows)
    ]
    return encode_questions("train", examples, tokenizer, max_length=max_length)


@pytest.mark.parametrize("family", ["tokenizer", "roberta_like"])
@settings(deadline=None, max_examples=50)
@given(
    question=st.text("abc ", min_size=1, max_size=14).filter(str.strip),
    context=st.text("abcdef ,", min_size=1, max_size=120).filter(str.strip),
    max_length=st.integers(48, 96),
)
def test_windows_equal_the_tokenizers_own(request, family, question, context, max_length):
    tokenizer = request.getfixturevalue(family)
    ours = features(tokenizer, [(question, context, ())], max_length)
    tokens = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    question_tokens = min(tokens, max_length // 3)
    assume(tokens == question_tokens)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    theirs = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=(max_length - special - question_tokens) // 2,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )
    rows = [ours.batch([at]) for at in range(len(ours))]
    assert [row["input_ids"][0].tolist() for row in rows] == theirs["input_ids"]
    assert [row["token_type_ids"][0].tolist() for row in rows] == theirs["token_type_ids"]


def test_windows_of_the_bert_recipe_share_128_tokens(minilm_tokenizer):
    context = " ".join(f"word{at} is here." for at in range(300))
    ours = features(minilm_tokenizer, [("where is it?", context, ())], 384)
    theirs = minilm_tokenizer(
        "where is it?",
        context,
        truncation="only_second",
        max_length=384,
        stride=128,
        return_overflowing_tokens=True,
    )
    assert len(ours) > 3
    rows = [ours.batch([at])["input_ids"][0].tolist() for at in range(len(ours))]
    assert rows == theirs["input_ids"]


def test_long_questions_are_cut_after_64_tokens(minilm_tokenizer):
    encoded = features(minilm_tokenizer, [("why " * 100, "because", ())], 384)
    assert encoded.lengths.tolist() == [64 + 1 + 3]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), max_length=st.integers(24, 80))
def test_targets_lead_back_to_the_answer(tokenizer, data, max_length):
    context = data.draw(st.text("abcdef,", min_size=1, max_size=150))
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : start + data.draw(st.integers(1, 8))]
    encoded = features(tokenizer, [("why", context, (Answer(text, start),))], max_length)
    starts, ends = encoded.targets["start_positions"], encoded.targets["end_positions"]
    assert (starts > 0).any()
    windows = encoded.windows
    for at in np.flatnonzero(starts):
        offset = windows.first[at] - windows.position[at]
        begin, end = windows.char_start[offset + starts[at]], windows.char_end[offset + ends[at]]
        assert (begin, end) == (start, start + len(text))
    assert encoded.lengths.max() <= max_length


def span(tokenizer, logits, *, no_answers=False):
    """Prediction for the context `abcdef`, whose tokens are at positions 3 to 8 of 10."""
    encoded = features(tokenizer, [("q", "abcdef", ())], 32)
    start_logits, end_logits = np.zeros(10), np.zeros(10)
    for position, (start, end) in logits.items():
        start_logits[position], end_logits[position] = start, end
    outputs = [{"start_logits": start_logits, "end_logits": end_logits}]
    return span_texts(encoded, outputs, no_answers=no_answers)


def test_question_and_special_tokens_are_never_answers(tokenizer):
    assert span(tokenizer, {0: (9, 9), 1: (9, 9), 9: (9, 9), 4: (2, 1), 6: (1, 2)}) == ["bcd"]


def test_an_end_before_its_start_is_no_span(tokenizer):
    assert span(tokenizer, {7: (5, 0), 4: (0, 3), 8: (0, 1)}) == ["ef"]


def test_the_null_score_decides_in_squad_v2(tokenizer):
    logits = {0: (2, 2), 4: (1, 1), 5: (1, 1)}
    assert span(tokenizer, logits, no_answers=True) == [""]
    assert span(tokenizer, logits, no_answers=False) == ["b"]
    assert span(tokenizer, logits | {4: (3, 1)}, no_answers=True) == ["b"]


def test_answers_have_at_most_30_tokens(tokenizer):
    context = "a" * 40
    encoded = features(tokenizer, [("q", context, ())], 64)
    start_logits, end_logits = np.zeros(44), np.zeros(44)
    start_logits[3], end_logits[42], end_logits[32] = 5, 5, 4
    outputs = [{"start_logits": start_logits, "end_logits": end_logits}]
    assert span_texts(encoded, outputs, no_answers=False) == ["a" * 30]


def test_slow_tokenizers_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(ConfigError, match="does not tell character offsets"):
        features(tokenizer, [("q", "abc", ())], 32)
