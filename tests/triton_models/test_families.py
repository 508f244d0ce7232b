"""Text in, answer out, for every family with its own tokenizer: as transformers' own model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, pipeline

from cofi_deploy.export.triton import write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.kinds import INPUT_NAMES
from tests.families import hf_model
from tests.family_tokenizers import write_tokenizer
from tests.texts import PAIRS, TEXTS
from tests.triton_models import fake_backend_utils as backend
from tests.triton_models.chain import rows_of, strings

LONGEST = 64
FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")


@pytest.fixture
def served(tmp_path, open_served):
    """The pipeline of transformers, and a function that asks the three served models in turn."""

    def serve(family, kind, task, **options):
        checkpoint = tmp_path / "checkpoint"
        vocabulary = write_tokenizer(family, checkpoint, model_max_length=LONGEST)
        rows = LONGEST + (2 if "roberta" in family else 0)
        model = hf_model(family, kind, vocab_size=vocabulary, max_position_embeddings=rows)
        model.save_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        write_models(tmp_path / "models", checkpoint, name="small", options=TritonOptions())
        return pipeline(task, model=model, tokenizer=tokenizer, **options), asker(
            tmp_path / "models", open_served
        )

    return serve


def asker(models: Path, open_served):
    tokenizer = open_served(models / "small_tokenizer")
    encoder = open_served(models / "small", config="configs/python.pbtxt")
    answer = open_served(models / "small_answer")

    def ask(text: np.ndarray) -> dict[str, np.ndarray]:
        tensors = outputs(tokenizer, text=text)
        logits = outputs(encoder, **{name: tensors[name] for name in INPUT_NAMES})
        return outputs(answer, **tensors, **logits, text=text)

    return ask


def outputs(model, **tensors):
    (response,) = model.execute([backend.request(**tensors)])
    return backend.outputs(response)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_pairs_of_a_family_are_classified_like_its_pipeline(family, served):
    classify, ask = served(family, "text-classification", "text-classification", top_k=None)
    pairs = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    expected = classify([*TEXTS, *pairs], truncation=True)
    singles, doubles = ask(rows_of(TEXTS)), ask(strings(PAIRS))
    got_labels, got_scores = ([*singles[name], *doubles[name]] for name in ("labels", "scores"))
    for labels, scores, wanted in zip(got_labels, got_scores, expected, strict=True):
        assert [label.decode() for label in labels] == [entry["label"] for entry in wanted]
        assert scores == pytest.approx([entry["score"] for entry in wanted], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_entities_of_a_family_have_the_places_of_its_pipeline(family, served):
    find, ask = served(
        family, "token-classification", "token-classification", aggregation_strategy="simple"
    )
    found = 0
    for text in TEXTS[:12]:
        answer = ask(rows_of([text]))
        expected = find(text)
        found += len(expected)
        got = list(zip(answer["labels"][0], answer["starts"][0], answer["ends"][0], strict=True))
        assert [(label.decode(), int(start), int(end)) for label, start, end in got] == [
            (entry["entity_group"], entry["start"], entry["end"]) for entry in expected
        ]
        scores = [entry["score"] for entry in expected]
        assert answer["scores"][0] == pytest.approx(scores, abs=1e-5)
    assert found
