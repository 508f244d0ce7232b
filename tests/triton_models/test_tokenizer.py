"""Text becomes the ids that transformers makes of it; a bad request is refused by itself."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.kinds import TaskKind
from cofi_deploy.triton_repository import served_code
from tests.texts import (
    LABELS,
    MAX_LENGTH,
    PAIRS,
    TEXTS,
    save_text_model,
    word_piece_tokenizer,
)
from tests.triton_models import fake_backend_utils as backend
from tests.triton_models.chain import Chain, rows_of, strings

BUCKETS = (8, 16, 48, 512)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[TaskKind, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_text_model(kind, folder / kind) for kind in LABELS}


@pytest.fixture
def open_tokenizer(models, tmp_path, open_served):
    """The tokenizer step of a kind."""

    def open_step(kind: TaskKind = "text-classification", **options):
        options = TritonOptions(length_buckets=BUCKETS, **options)
        return Chain(models[kind], tmp_path, open_served, options).tokenizer

    return open_step


def ask(step, *requests):
    return [
        response.error().message() if response.has_error() else backend.outputs(response)
        for response in step.execute([backend.request(**request) for request in requests])
    ]


def assert_like_transformers(tensors, row, text, pair=None):
    expected = word_piece_tokenizer()(text, pair, truncation=True, return_token_type_ids=True)
    length = len(expected["input_ids"])
    for name, ids in expected.items():
        assert tensors[name][row, :length].tolist() == ids
        assert not tensors[name][row, length:].any()


def test_texts_and_pairs_become_what_transformers_makes_of_them(open_tokenizer):
    step = open_tokenizer()

    singles, doubles = ask(step, {"text": rows_of(TEXTS)}, {"text": strings(PAIRS)})

    for row, text in enumerate(TEXTS):
        assert_like_transformers(singles, row, text)
    for row, (text, pair) in enumerate(PAIRS):
        assert_like_transformers(doubles, row, text, pair)
    assert doubles["attention_mask"].sum(axis=1).max() == MAX_LENGTH


@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=2))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_text_becomes_what_transformers_makes_of_it(any_text_tokenizer, texts):
    texts = [f"{text.encode(errors='replace').decode()}." for text in texts]

    (tensors,) = ask(any_text_tokenizer, {"text": strings([texts])})

    assert_like_transformers(tensors, 0, *texts)


@pytest.fixture
def any_text_tokenizer(open_tokenizer):
    """Opened once for all examples of a test."""
    return open_tokenizer()


@pytest.mark.parametrize(
    ("words", "expected"), [(1, 8), (6, 8), (7, 16), (30, 48), (60, MAX_LENGTH), (99, MAX_LENGTH)]
)
def test_a_request_is_padded_to_the_next_length_bucket(open_tokenizer, words, expected):
    (tensors,) = ask(open_tokenizer(), {"text": rows_of(["no", "no " * words])})

    assert {array.shape for array in tensors.values()} == {(2, expected)}
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.int64)}
    assert tensors["attention_mask"].sum(axis=1).tolist() == [3, min(words + 2, MAX_LENGTH)]


def test_spans_of_tokens_count_characters_and_not_bytes(open_tokenizer):
    text = "😀 Zürich!"

    (tensors,) = ask(open_tokenizer("token-classification"), {"text": rows_of([text])})

    roles, spans = tensors["token_roles"][0], tensors["spans"][0]
    pieces = [text[start:end] for (start, end), role in zip(spans, roles, strict=True) if role]
    assert pieces == ["😀", *"Zürich", "!"]
    assert roles.tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 1, *[0] * 7]


def test_a_long_context_becomes_windows_that_overlap_and_cover_it(open_tokenizer):
    question, context = "who", "no yes " * 50
    step = open_tokenizer("question-answering")

    (tensors,) = ask(
        step, {"question": strings(["no", question]), "context": strings(["yes", context])}
    )

    assert tensors["owners"].tolist() == [0, 1, 1, 1]
    inside = tensors["candidates"] == 2
    starts = [tensors["spans"][window][inside[window], 0] for window in range(1, 4)]
    assert sorted({int(start) for window in starts for start in window}) == [
        place for place, character in enumerate(context) if character in "ny"
    ]
    shared = [len(np.intersect1d(*pair)) for pair in itertools.pairwise(starts)]
    assert shared == [MAX_LENGTH // 2] * 2


def test_a_question_that_leaves_little_room_is_asked_with_smaller_overlap(open_tokenizer):
    question, context = "no " * 50, "yes " * 40
    step = open_tokenizer("question-answering")

    (tensors,) = ask(step, {"question": strings([question]), "context": strings([context])})

    assert (tensors["candidates"] == 2).sum(axis=1).tolist() == [11, 11, 11, 11, 11, 10]


def test_the_span_of_a_token_is_that_of_its_word(open_tokenizer):
    question, context = "where", "playing in Zürich."

    (tensors,) = ask(
        open_tokenizer("question-answering"),
        {"question": strings([question]), "context": strings([context])},
    )

    spans = tensors["spans"][0][tensors["candidates"][0] == 2]
    words = [context[start:end] for start, end in spans]
    assert words == ["playing", "playing", "in", *["Zürich"] * 6, "."]


def test_a_question_that_spells_out_a_special_token_gives_no_answer_itself(open_tokenizer):
    (tensors,) = ask(
        open_tokenizer("question-answering"),
        {"question": strings(["[CLS] no"]), "context": strings(["yes [CLS]"])},
    )

    assert tensors["candidates"][0, :8].tolist() == [1, 1, 0, 0, 2, 2, 0, 0]


def test_a_question_may_leave_room_for_a_single_token(open_tokenizer):
    step = open_tokenizer("question-answering")

    (tensors,) = ask(step, {"question": strings(["no " * 60]), "context": strings(["yes no"])})

    assert (tensors["candidates"] == 2).sum(axis=1).tolist() == [1, 1]


BAD_TEXTS = {
    "not UTF-8": (
        [[b"ok"], [b"caf\xe9 ok"]],
        "text[1, 0] is not UTF-8 (byte 0xe9 at position 3); encode it as UTF-8",
    ),
    "half a character": (
        [["😀".encode()[:3]]],
        "text[0, 0] is not UTF-8 (byte 0xf0 at position 0)",
    ),
    "empty": ([[b"ok"], [b""]], "text[1, 0] is empty or blank; send a text"),
    "blank": ([[" \t\n\u3000".encode()]], "text[0, 0] is empty or blank; send a text"),
    "empty pair": ([[b"ok", b""]], "text[0, 1] is empty or blank; send a text"),
    "too long": (
        [[b"x" * 1001]],
        "text[0, 0] has 1001 characters, allowed: 1000; send a shorter text",
    ),
    "three strings": (
        [[b"a", b"b", b"c"]],
        "a row of 'text' holds 3 strings, allowed: 1 or 2; send each text in a row of its own",
    ),
    "no string": ([[]], "'text' holds no string, allowed: 1 or more; send a text"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_bad_text_is_refused_and_its_neighbours_are_answered(open_tokenizer, case):
    rows, message = BAD_TEXTS[case]
    step = open_tokenizer(max_characters=1000)
    bad = {"text": np.array(rows, dtype=object)}

    first, refused, last = ask(step, {"text": rows_of(["no"])}, bad, {"text": strings([PAIRS[0]])})

    assert re.search(re.escape(message), refused)
    assert_like_transformers(first, 0, "no")
    assert_like_transformers(last, 0, *PAIRS[0])


def test_a_call_of_nothing_but_bad_requests_is_answered(open_tokenizer):
    bad = {"text": rows_of([""])}

    assert ask(open_tokenizer(), bad, bad) == ["text[0, 0] is empty or blank; send a text"] * 2


def test_a_pair_is_refused_where_tokens_get_labels(open_tokenizer):
    step = open_tokenizer("token-classification")

    (refused,) = ask(step, {"text": strings([PAIRS[0]])})

    assert refused == (
        "a row of 'text' holds 2 strings, allowed: 1; send each text in a row of its own"
    )


BAD_QUESTIONS = {
    "unequal numbers": (
        {"question": strings(["who", "what"]), "context": strings(["Berlin"])},
        "'question' holds 2 strings and 'context' 1, allowed: as many of each; send a context "
        "with every question",
    ),
    "empty context": (
        {"question": strings(["who"]), "context": strings([""])},
        "context[0] is empty or blank; send a text",
    ),
    "no question": (
        {"question": strings([]), "context": strings(["Berlin"])},
        "'question' holds no string, allowed: 1 or more; send a text",
    ),
    "too many windows": (
        {"question": strings(["who", "who"]), "context": strings(["no " * 40, "no " * 200])},
        "the contexts make 7 windows of up to 64 tokens, allowed: 4 in a request; "
        "send fewer questions or shorter contexts",
    ),
    "too long a question": (
        {"question": strings(["who", "who " * 61]), "context": strings(["Berlin", "Berlin"])},
        "question[1] has more than 60 tokens, which leaves no room for its context; ask in fewer "
        "words",
    ),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_a_bad_question_is_refused_and_its_neighbours_are_answered(open_tokenizer, case):
    bad, message = BAD_QUESTIONS[case]
    step = open_tokenizer("question-answering", max_batch_size=4)
    good = {"question": strings(["where"]), "context": strings(["no " * 40])}

    first, refused, last = ask(step, good, bad, good)

    assert refused == message
    for tensors in (first, last):
        assert tensors["input_ids"].shape == (1, 48)


@pytest.mark.parametrize("role", ["tokenizer", "answer"])
def test_the_served_code_is_python_3_8(role):
    source = served_code(role).read_text(encoding="utf-8")

    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source
