"""Padding invariance as a number: right artifacts do not move, wrong masks are found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cofi_deploy.errors import RunnerError
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.accuracy import score_split
from cofi_deploy.serve.padding import MIN_SECONDS, padding_invariance, spread
from cofi_deploy.serve.runner import open_runner
from cofi_deploy.serve.subject import Subject
from cofi_deploy.serve.verify import VerifySettings, verify


@pytest.fixture(scope="module")
def encoded(task, pruned):
    return task.encode("validation", load_tokenizer(pruned.tokenizer))


class Careless:
    """A runner whose artifact reads padding like text."""

    def __init__(self, runner):
        self._runner = runner
        self.input_names = runner.input_names

    def infer(self, inputs):
        mask = np.ones_like(inputs["attention_mask"])
        return self._runner.infer({**inputs, "attention_mask": mask})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_answers_alike_alone_padded_and_among_others(
    precision, pruned, encoded, tmp_path
):
    directory = export_onnx(pruned.artifacts["torch"], tmp_path / "x", precision=precision)
    with open_runner(directory, "onnxruntime-cpu", threads=1) as runner:
        found = padding_invariance(runner, encoded, kind="text-classification", batch_size=5)
    assert found.padding_examples == len(encoded)  # the whole set
    assert found.padding_agreement == 1.0
    assert found.padding_max_abs_logit_diff < (1e-2 if precision == "fp16" else 1e-4)


def test_a_mask_that_is_not_obeyed_is_found(pruned, encoded):
    with open_runner(pruned.artifacts["torch"], "torch", threads=1) as runner:
        found = padding_invariance(Careless(runner), encoded, kind="text-classification")
    assert found.padding_max_abs_logit_diff > 1e-2


@pytest.mark.parametrize("kind", ["token-classification", "question-answering"])
def test_positions_of_padding_are_left_out(kind, pruned, encoded):
    class PerToken:
        input_names = ("input_ids", "attention_mask", "token_type_ids")

        def infer(self, inputs):
            ids = inputs["input_ids"] * inputs["attention_mask"]
            return {"logits": np.where(ids > 0, ids, inputs["input_ids"].shape[1]).astype(float)}

    found = padding_invariance(PerToken(), encoded, kind=kind)
    assert (found.padding_agreement, found.padding_max_abs_logit_diff) == (1.0, 0.0)


def test_an_answer_that_moves_with_its_batch_is_no_agreement(encoded):
    class Counting:
        input_names = ("input_ids", "attention_mask", "token_type_ids")

        def infer(self, inputs):
            rows = len(inputs["input_ids"])
            return {"logits": np.tile([1.5, float(rows)], (rows, 1))}

    found = padding_invariance(Counting(), encoded, kind="text-classification", batch_size=4)
    assert found.padding_agreement == 0.0
    assert found.padding_max_abs_logit_diff == 3.0
    moved = padding_invariance(Counting(), encoded, kind="text-regression", batch_size=4)
    assert moved.padding_agreement == 0.0


def test_a_set_that_takes_too_long_is_asked_in_part_and_the_part_is_told(pruned, encoded):
    now = iter(float(second) for second in range(100))
    with open_runner(pruned.artifacts["torch"], "torch", threads=1) as runner:
        found = padding_invariance(
            Careless(runner),
            encoded,
            kind="text-classification",
            batch_size=4,
            max_seconds=2.5,  # the clock is read before every batch but the first
            clock=lambda: next(now),
        )
    assert found.padding_examples == 3 * 4
    # What is asked first holds the shortest and the longest, so that it finds the fault.
    assert found.padding_max_abs_logit_diff > 1e-2


@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 97])
def test_every_beginning_is_spread_over_the_lengths(count):
    lengths = np.random.default_rng(0).permutation(count)
    order = spread(lengths)
    assert sorted(order) == list(range(count))
    for many in (4, 8, 16, 32):
        if many > count:
            continue
        begun = np.sort(lengths[order[:many]])
        assert (begun[0], begun[-1]) == (0, count - 1)
        assert np.diff(begun).max() <= 2.5 * count / many


def test_verify_gives_the_check_two_minutes_or_a_quarter_of_the_pass(
    subjects, task, quick, tmp_path, monkeypatch
):
    given = []

    def noted(runner, split, **words):
        given.append(words["max_seconds"])
        return padding_invariance(runner, split, **words)

    def slow(*args, **words):
        return dataclasses.replace(score_split(*args, **words), wall_s=1000.0)

    monkeypatch.setattr("cofi_deploy.serve.scoring.padding_invariance", noted)
    settings = VerifySettings(bench=quick("torch", points=("2x8",)), limit=5)
    both = subjects["dense"], [subjects["pruned"]]
    verify(*both, task, settings, tmp_path / "quick")
    monkeypatch.setattr("cofi_deploy.serve.scoring.score_split", slow)
    verify(*both, task, settings, tmp_path / "slow")
    assert given == [MIN_SECONDS, MIN_SECONDS, 250.0, 250.0]


def test_verify_writes_both_numbers_for_every_artifact(subjects, task, quick, tmp_path):
    settings = VerifySettings(bench=quick("torch", "onnxruntime-cpu", points=("2x8",)), limit=20)
    dense, pruned = subjects["dense"], subjects["pruned"]
    document = verify(dense, [pruned], task, settings, tmp_path).document
    scored = [row for row in document["rows"] if "metric" in row]
    assert len(scored) == 4
    for row in scored:
        assert row["padding_examples"] == 20
        assert row["padding_agreement"] == 1.0
        assert row["padding_max_abs_logit_diff"] < 1e-4
        assert 0.0 <= row["mean_abs_logit_diff"] <= row["max_abs_logit_diff"]


def test_verify_says_which_artifact_moves_with_its_padding(
    subjects, pruned, task, quick, tmp_path, monkeypatch
):
    real = padding_invariance
    monkeypatch.setattr(
        "cofi_deploy.serve.scoring.padding_invariance",
        lambda runner, *args, **words: real(Careless(runner), *args, **words),
    )
    settings = VerifySettings(bench=quick("torch", points=("2x8",)))
    other = Subject(label="other", artifacts={"torch": pruned.artifacts["torch"]})
    notes = verify(subjects["dense"], [other], task, settings, tmp_path).document["notes"]
    assert any(
        "in torch at fp32 answers otherwise to" in note
        and f"of {len(task.splits['validation'])} texts when they are padded" in note
        for note in notes
    )


def test_an_engine_that_takes_no_single_row_has_no_padding_keys(
    subjects, task, quick, tmp_path, monkeypatch, caplog
):
    def refuse(*args, **words):
        raise RunnerError("shape 1x8 is outside of every profile")

    monkeypatch.setattr("cofi_deploy.serve.scoring.padding_invariance", refuse)
    settings = VerifySettings(bench=quick("torch", points=("2x8",)), limit=5)
    both = subjects["dense"], [subjects["pruned"]]
    document = verify(*both, task, settings, tmp_path).document
    scored = [row for row in document["rows"] if "metric" in row]
    assert scored
    assert not any("padding_agreement" in row for row in scored)
    words = "padding invariance is not measured in torch: shape 1x8 is outside of every profile"
    assert words in caplog.text
