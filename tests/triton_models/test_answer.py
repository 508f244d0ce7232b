"""Answers equal those of transformers' pipelines on the same PyTorch model."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from cofi_deploy.export.triton_config import AGGREGATIONS, TritonOptions
from cofi_deploy.loading import load
from tests.builders import tiny_tokenizer as word_tokenizer
from tests.texts import LABELS, PAIRS, TEXTS, save_text_model, word_piece_tokenizer
from tests.triton_models import fake_backend_utils as backend
from tests.triton_models.chain import Chain, rows_of, strings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of every kind; entities once more, with a tokenizer that keeps capitals."""
    folder = tmp_path_factory.mktemp("models")
    made = {kind: save_text_model(kind, folder / kind) for kind in LABELS}
    made["cased"] = save_text_model(
        "token-classification", folder / "cased", word_piece_tokenizer(lowercase=False)
    )
    made["words"] = save_text_model("token-classification", folder / "words", word_tokenizer())
    return made


def pipeline_of(model: Path, task: str, tokenizer, **options):
    return pipeline(task, model=load(model), tokenizer=tokenizer, device="cpu", **options)


def test_labels_and_scores_are_those_of_the_pipeline(models, tmp_path, open_served):
    model = models["text-classification"]
    chain = Chain(model, tmp_path, open_served)
    classify = pipeline_of(model, "text-classification", chain.source.tokenizer, top_k=None)
    pairs = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    expected = classify([*TEXTS, *pairs], truncation=True)

    singles, doubles = chain.ask(text=rows_of(TEXTS)), chain.ask(text=strings(PAIRS))

    got_labels = [*singles["labels"], *doubles["labels"]]
    got_scores = [*singles["scores"], *doubles["scores"]]
    assert len({labels[0] for labels in got_labels}) > 1
    for labels, scores, wanted in zip(got_labels, got_scores, expected, strict=True):
        assert [label.decode() for label in labels] == [entry["label"] for entry in wanted]
        assert scores == pytest.approx([entry["score"] for entry in wanted], abs=1e-5)


def test_a_regression_gives_the_number_of_the_pipeline(models, tmp_path, open_served):
    model = models["text-regression"]
    chain = Chain(model, tmp_path, open_served)
    score = pipeline_of(model, "text-classification", chain.source.tokenizer, top_k=None)
    expected = [[entry["score"] for entry in row] for row in score(list(TEXTS), truncation=True)]

    answer = chain.ask(text=rows_of(TEXTS))

    assert set(answer) == {"scores"}
    assert answer["scores"] == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", ["token-classification", "cased", "words"])
def test_entities_are_those_of_the_pipeline(models, tmp_path, open_served, name, aggregation):
    chain = Chain(models[name], tmp_path, open_served, TritonOptions(aggregation=aggregation))
    find = pipeline_of(
        models[name],
        "token-classification",
        chain.source.tokenizer,
        aggregation_strategy=aggregation,
    )
    with warnings.catch_warnings():
        # A tokenizer of whole words: the pipeline warns that it guesses which tokens are a word.
        warnings.filterwarnings("ignore", "Tokenizer does not support real words", UserWarning)
        expected = find(list(TEXTS))

    answer = chain.ask(text=rows_of(TEXTS))

    assert sum(map(len, expected)) > 20
    for row, (text, entities) in enumerate(zip(TEXTS, expected, strict=True)):
        count = len(entities)
        assert [label.decode() for label in answer["labels"][row, :count]] == [
            entity["entity_group"] for entity in entities
        ]
        for places, key in (("starts", "start"), ("ends", "end")):
            assert answer[places][row, :count].tolist() == [entity[key] for entity in entities]
        scores = [entity["score"] for entity in entities]
        assert answer["scores"][row, :count] == pytest.approx(scores, abs=1e-5)
        assert [word.decode() for word in answer["words"][row, :count]] == [
            text[entity["start"] : entity["end"]] for entity in entities
        ]
        assert set(answer["labels"][row, count:]) <= {b""}
        assert set(answer["starts"][row, count:]) <= {-1}


@pytest.fixture
def open_answer(models, tmp_path, open_served):
    """The answer step of a kind."""

    def open_step(kind, **options):
        return Chain(models[kind], tmp_path, open_served, TritonOptions(**options)).answer

    return open_step


def ask(step, *requests):
    return [
        response.error().message() if response.has_error() else backend.outputs(response)
        for response in step.execute([backend.request(**request) for request in requests])
    ]


def windows(context, *peaks, owners=(0,)):
    """A request with one character for a token; window i is sure of a span and a little less."""
    length = len(context) + 1  # the first token is [CLS]
    start = np.zeros((len(peaks), length), dtype=np.float32)
    end = np.zeros_like(start)
    for window, (first, last) in enumerate(peaks):
        start[window, first + 1] = end[window, last + 1] = 9.0
    candidates = np.full(start.shape, 2, dtype=np.int8)
    candidates[:, 0] = 1
    characters = np.arange(-1, length - 1)
    spans = np.stack([characters, characters + 1], axis=-1)[None].repeat(len(peaks), axis=0)
    return {
        "start_logits": start,
        "end_logits": end,
        "candidates": candidates,
        "spans": spans.astype(np.int32),
        "owners": np.array(owners),
        "context": strings([context] * (max(owners) + 1)),
    }


def test_a_span_is_cut_from_its_context_by_characters(open_answer):
    (answer,) = ask(open_answer("question-answering"), windows("in Zürich 😀 now", (3, 10)))

    assert answer["answers"][0, 0].decode() == "Zürich 😀"
    assert (answer["starts"][0, 0], answer["ends"][0, 0]) == (3, 11)
    assert answer["scores"][0, 0] > 0.9


def test_the_same_words_in_two_windows_are_one_answer_with_both_scores(open_answer):
    step = open_answer("question-answering")
    twice = windows("ab AB", (0, 1), (3, 4), owners=(0, 0))

    once, both = ask(step, windows("ab AB", (0, 1)), twice)

    assert both["answers"].tolist() == [[b"ab"]]
    assert (both["starts"][0, 0], both["ends"][0, 0]) == (0, 2)
    assert both["scores"][0, 0] == pytest.approx(2 * once["scores"][0, 0], rel=1e-3)


def test_questions_of_one_request_keep_their_own_answers(open_answer):
    request = windows("abcd", (0, 0), (2, 3), owners=(0, 1))

    (answer,) = ask(open_answer("question-answering"), request)

    assert answer["answers"].tolist() == [[b"a"], [b"cd"]]


def test_an_answer_has_at_most_fifteen_tokens_and_does_not_end_before_it_starts(open_answer):
    context = "abcdefghijklmnopqrstuvwxyz"

    fitting, too_long, backwards = ask(
        open_answer("question-answering"),
        *(windows(context, peak) for peak in ((0, 14), (0, 15), (5, 4))),
    )

    assert fitting["answers"].tolist() == [[context[:15].encode()]]
    assert len(too_long["answers"][0, 0]) <= 15
    assert too_long["scores"][0, 0] < 0.1
    assert backwards["scores"][0, 0] < 0.1


def test_fewer_answers_than_asked_for_are_filled_up(open_answer):
    (answer,) = ask(open_answer("question-answering", top_k=3), windows("a", (0, 0)))

    assert answer["answers"].tolist() == [[b"a", b"", b""]]
    assert answer["scores"][0, 1:].tolist() == [0.0, 0.0]
    assert answer["starts"].tolist() == [[0, -1, -1]]
    assert answer["ends"].tolist() == [[1, -1, -1]]


def tokens(**changes):
    """A request to the answer step of token classification: two tokens of one text."""
    request = {
        "logits": np.eye(6, dtype=np.float32)[None, 1:3] * 9,
        "token_roles": np.ones((1, 2), dtype=np.int8),
        "spans": np.array([[[0, 1], [2, 3]]], dtype=np.int32),
        "text": rows_of(["a b"]),
    }
    return {**request, **changes}


BAD_TENSORS = {
    "not a number": (
        "text-classification",
        {"logits": np.array([[1, np.nan, 0]], dtype=np.float32)},
        "'logits' holds a value that is not a number: the model gave no answer; try another text",
    ),
    "other roles": (
        "token-classification",
        tokens(token_roles=np.ones((1, 3), dtype=np.int8)),
        "'token_roles' has shape [1, 3], allowed: [1, 2], which fits the other inputs; send texts "
        "to the model whose name ends with '_text'",
    ),
    "other spans": (
        "token-classification",
        tokens(spans=np.zeros((1, 3, 2), dtype=np.int32)),
        "'spans' has shape [1, 3, 2], allowed: [1, 2, 2], which fits the other inputs; send texts "
        "to the model whose name ends with '_text'",
    ),
    "no windows": (
        "question-answering",
        {**windows("ab", (0, 1)), "start_logits": np.zeros((0, 3), dtype=np.float32)},
        "'start_logits' has shape [0, 3], allowed: no axis of length 0",
    ),
    "nobody's window": (
        "question-answering",
        {**windows("ab", (0, 1)), "owners": np.array([1])},
        "'owners' names a context that is not there, allowed: 0 to 0",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_bad_request_is_refused_and_its_neighbours_are_answered(open_answer, case):
    kind, bad, message = BAD_TENSORS[case]
    good = {
        "text-classification": {"logits": np.array([[1, 2, 0]], dtype=np.float32)},
        "token-classification": tokens(),
        "question-answering": windows("ab", (0, 1)),
    }[kind]

    first, refused, last = ask(open_answer(kind), good, bad, good)

    assert refused == message
    assert first.keys() == last.keys()
    for name, array in first.items():
        assert array.tolist() == last[name].tolist()
        assert array.size


def test_text_without_entities_has_an_answer_of_no_columns(open_answer):
    nothing = tokens(token_roles=np.zeros((1, 2), dtype=np.int8))

    (answer,) = ask(open_answer("token-classification"), nothing)

    assert {array.shape for array in answer.values()} == {(1, 0)}


def test_an_entity_goes_on_over_tokens_that_continue_it(open_answer):
    (answer,) = ask(open_answer("token-classification"), tokens())

    assert answer["labels"].tolist() == [[b"place"]]
    assert answer["words"].tolist() == [[b"a b"]]
    assert (answer["starts"].tolist(), answer["ends"].tolist()) == ([[0]], [[3]])
