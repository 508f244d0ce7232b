"""Texts of a split through `<name>_text` on a real server: answers, metric, refusals."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cofi_deploy import api
from cofi_deploy.errors import RunnerError
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.accuracy import score_split
from cofi_deploy.serve.runner import open_runner
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.triton_service import RefusedRequestError, open_service
from cofi_deploy.serve.triton_text_accuracy import add_text_rows, predict_texts
from cofi_deploy.serve.verdict import Targets
from cofi_deploy.serve.verify import VerifySettings, verify
from cofi_deploy.tasks import Example, load_task
from cofi_deploy.tasks.squad_metric import squad_scores
from tests.texts import MAX_LENGTH, QUESTIONS, TEXTS, save_text_model
from tests.train.conftest import tiny_data
from tests.triton.conftest import triton_environment
from tests.triton_models.chain import Chain, strings
from tests.triton_models.conftest import open_served, triton_utils

__all__ = ["open_served", "tiny_data", "triton_environment", "triton_utils"]

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton_environment")]


@dataclass
class Found:
    """What `add_text_rows` reads and adds to."""

    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A subject with a model of random weights and its Triton export, once for each kind."""
    known: dict[str, Subject] = {}

    def make(kind: str) -> Subject:
        if kind not in known:
            folder = tmp_path_factory.mktemp("made")
            model = save_text_model(kind, folder / "model")
            repository = api.export(
                model, format="triton", name="small", output=folder / "repository"
            )
            artifacts = {"torch": model, "triton": repository}
            known[kind] = Subject(label="pruned", artifacts=artifacts)
        return known[kind]

    return make


def answers_of(subject: Subject, examples: list[Example]):
    with contextlib.closing(open_service(subject.artifacts["triton"])) as service:
        return predict_texts(service, examples)


def text_row(subject: Subject, task, *, limit: int | None = None):
    """The row of text, its notes, and the scored answers to token ids."""
    encoded = task.encode("validation", load_tokenizer(subject.tokenizer), limit=limit)
    with open_runner(subject.artifacts["triton"], "triton") as runner:
        scored = {subject.label: score_split(runner, task, encoded)}
    ids = {"model": subject.label, "runtime": "triton", "metric": 0.5, "max_abs_logit_diff": 1.0}
    found = Found(rows=[{"model": subject.label, "runtime": "torch"}, ids])
    add_text_rows(found, [subject], task, encoded.examples, scored, scored)
    assert [row.get("requests") for row in found.rows] == [None, "token ids", "text"]
    return found.rows[-1], found.notes, scored[subject.label]


def test_pairs_with_scores_are_answered_as_their_token_ids_are(made, tiny_data):
    task = load_task("stsb", data_dir=tiny_data, max_length=MAX_LENGTH)
    row, notes, scored = text_row(made("text-regression"), task)
    assert row["metric"] == pytest.approx(scored.metrics[task.metric_name], abs=1e-6)
    assert (row["agreement_token_ids"], row["agreement"], row["examples"]) == (1.0, 1.0, 24)
    assert row["metric_dense"] == row["metric"]
    assert row["wall_s"] > 0
    assert "max_abs_logit_diff" not in row
    assert notes == []


def test_questions_get_the_answers_of_the_served_code_and_the_metric_of_squad(
    made, tiny_data, tmp_path, open_served
):
    subject = made("question-answering")
    task = load_task("squad", data_dir=tiny_data, max_length=MAX_LENGTH)
    row, notes, _ = text_row(subject, task)
    examples = task.splits["validation"].examples
    chain = Chain(subject.artifacts["torch"], tmp_path / "chain", open_served)
    expected = [
        chain.ask(question=strings([each.text]), context=strings([each.text_pair]))["answers"]
        for each in examples
    ]
    texts = [answers[0, 0].decode() for answers in expected]
    golds = [[answer.text for answer in each.answers] for each in examples]
    assert row["metric"] == pytest.approx(squad_scores(texts, golds, no_answers=False)["f1"])
    if row["agreement_token_ids"] < 0.99:  # answers of up to 15 tokens there, of 30 in the task
        assert notes[0].endswith(
            f"the server reads {MAX_LENGTH} tokens at once, the task {MAX_LENGTH}, and it always "
            "answers, with up to 15 tokens"
        )


def test_questions_with_many_windows_are_asked_in_smaller_requests(made, tmp_path, open_served):
    subject = made("question-answering")
    # Eight stories make more than the 32 windows that a request may have.
    examples = [
        Example(id=str(at), text=question, text_pair=context)
        for at, (question, context) in enumerate(QUESTIONS[:1] * 8 + QUESTIONS)
    ]
    chain = Chain(subject.artifacts["torch"], tmp_path / "chain", open_served)
    expected = [
        chain.ask(question=strings([each.text]), context=strings([each.text_pair]))["answers"]
        for each in examples
    ]
    with contextlib.closing(open_service(subject.artifacts["triton"])) as service:
        eight = {
            "question": strings([each.text for each in examples[:8]]),
            "context": strings([each.text_pair for each in examples[:8]]),
        }
        with pytest.raises(RefusedRequestError, match=r"make \d+ windows .* allowed: 32"):
            service.ask("small_text", eight)
        answers = predict_texts(service, examples)
    assert answers.refusal is None
    assert answers.predictions == [texts[0, 0].decode() for texts in expected]


def test_a_text_that_is_refused_costs_the_others_nothing(made):
    subject = made("text-classification")
    examples = [Example(id=f"r{at}", text=TEXTS[at % len(TEXTS)]) for at in range(50)]
    whole = answers_of(subject, examples)
    examples[7] = dataclasses.replace(examples[7], text="  ")
    examples[40] = dataclasses.replace(examples[40], text="", text_pair=None)
    answers = answers_of(subject, examples)
    assert whole.refusal is None
    assert len(set(whole.predictions)) > 1
    expected = [None if at in {7, 40} else value for at, value in enumerate(whole.predictions)]
    assert answers.predictions == expected
    assert answers.refusal is not None
    assert answers.refusal.startswith("'r7': Triton refuses a request to 'small_text': ")
    assert "is empty or blank; send a text" in answers.refusal


def test_texts_and_pairs_of_one_split_get_their_own_requests(made):
    subject = made("text-classification")
    single = [Example(id=f"s{at}", text=f"no river {at}") for at in range(3)]
    pairs = [Example(id=f"p{at}", text="a man", text_pair=f"plays {at}") for at in range(3)]
    mixed = [example for pair in zip(single, pairs, strict=True) for example in pair]
    answers = answers_of(subject, mixed).predictions
    assert answers[::2] == answers_of(subject, single).predictions
    assert answers[1::2] == answers_of(subject, pairs).predictions


def test_a_server_that_refuses_every_text_is_an_error_and_not_a_metric_of_nothing(made):
    examples = [Example(id=f"r{at}", text=" ") for at in range(3)]
    with pytest.raises(RunnerError, match=r"small_text refuses every text: 'r0': Triton refuses"):
        answers_of(made("text-classification"), examples)


@pytest.mark.slow
def test_verify_adds_a_row_of_text_for_each_model_and_judges_token_ids(
    subjects, task, quick, tmp_path
):
    both = [
        dataclasses.replace(
            subject,
            artifacts={
                "torch": subject.artifacts["torch"],
                "triton": api.export(
                    subject.artifacts["torch"],
                    format="triton",
                    name=label,
                    output=tmp_path / label,
                ),
            },
        )
        for label, subject in subjects.items()
    ]
    settings = VerifySettings(bench=quick("triton", points=("2x8",)), targets=Targets(max_drop=100))
    result = verify(both[0], both[1:], task, settings, tmp_path / "out")
    scored = [row for row in result.document["rows"] if "metric" in row]
    assert [(row["model"], row["runtime"], row.get("requests")) for row in scored] == [
        ("dense", "torch", None),
        ("pruned", "torch", None),
        ("dense", "triton", "token ids"),
        ("pruned", "triton", "token ids"),
        ("dense", "triton", "text"),
        ("pruned", "triton", "text"),
    ]
    dense, pruned = scored[0]["metric"], scored[1]["metric"]
    assert [row["metric"] for row in scored] == [dense, pruned] * 3
    assert [row["metric_dense"] for row in scored] == [dense] * 6
    assert all(row["agreement"] == 1.0 for row in scored)
    assert max(row.get("max_abs_logit_diff", 0.0) for row in scored) < 1e-5
    assert [claim.runtime for claim in result.verdict.claims] == ["triton"]
    timed = [row for row in result.document["rows"] if "p50_ms" in row]
    assert [(row["model"], row["runtime"], row["batch_size"]) for row in timed] == [
        ("dense", "triton", 2),
        ("pruned", "triton", 2),
    ]
    assert np.isfinite([row["p50_ms"] for row in timed]).all()
