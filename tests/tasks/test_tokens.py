"""Tagged sentences: files, features, entity F1; on small files and on WNUT17."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from transformers import AutoTokenizer

from cofi_deploy.errors import ConfigError, DataError, RunnerError
from cofi_deploy.tasks import load_task
from cofi_deploy.tasks.encoding import IGNORED
from cofi_deploy.tasks.own_data import table_from_hub
from cofi_deploy.tasks.task import Example
from cofi_deploy.tasks.token_features import encode_words
from cofi_deploy.tasks.token_metric import sentence_counts, tag_order, token_scores
from tests.family_tokenizers import CLASSES, write_tokenizer

LABELS = ("O", "B-loc", "I-loc", "B-per", "I-per")
SENTENCE = [("Ann", "B-per"), ("Lee", "I-per"), ("saw", "O"), ("Rome", "B-loc")]
PLAIN = [("it", "O"), ("rained", "O")]


def conll(*sentences, divider="\t"):
    return "\n".join("".join(f"{w}{divider}{t}\n" for w, t in rows) for rows in sentences)


def many(count=20):
    return [SENTENCE if at % 2 else PLAIN for at in range(count)]


def load(path, **arguments):
    return load_task("token-classification", data=str(path), **arguments)


def logits_of(encoded, labels, tags_of):
    """Outputs whose argmax at the first token of each word is what ``tags_of`` says."""
    outputs = []
    for at in range(len(encoded)):
        word = encoded.words.word[encoded.offsets[at] : encoded.offsets[at + 1]]
        example = int(encoded.words.example[at])
        chosen = [tags_of(example, int(w)) if w >= 0 else 0 for w in word]
        outputs.append({"logits": np.eye(len(labels))[chosen]})
    return outputs


@pytest.mark.parametrize("divider", ["\t", " ", " NNP x "])
def test_conll_columns_become_sentences(write, divider):
    header = "-DOCSTART- -X- O\n\n"
    task = load(write("data.conll", header + conll(*many(), divider=divider)))
    assert (task.kind, task.metric_name) == ("token-classification", "f1")
    assert task.labels == ("O", "B-loc", "B-per", "I-per")
    everything = [row for split in task.splits.values() for row in split.examples]
    assert len(everything) == 20
    tagged = next(row for row in everything if row.words[0] == "Ann")
    assert tagged.text == "Ann Lee saw Rome"
    assert [task.labels[tag] for tag in tagged.tags] == ["B-per", "I-per", "O", "B-loc"]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_lists_of_words_and_tags_are_found_by_their_usual_names(write, suffix):
    records = [
        {"id": f"s{at}", "tokens": [w for w, _ in rows], "ner_tags": [t for _, t in rows]}
        for at, rows in enumerate(many())
    ]
    text = "\n".join(map(json.dumps, records)) if suffix == "jsonl" else json.dumps(records)
    task = load(write(f"data.{suffix}", text))
    assert task.splits["train"].examples[0].id.startswith("s")
    assert task.labels == ("O", "B-loc", "B-per", "I-per")


def test_hub_tags_keep_their_names_and_order():
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=list(LABELS))),
        }
    )
    rows = datasets.Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[3]]}, features=features)
    assert table_from_hub(rows, "owner/name[train]").label_names == {"ner_tags": LABELS}


def test_a_folder_takes_dev_for_validation_and_refuses_unknown_tags_there(write, tmp_path):
    write("data/train.conll", conll(*many()))
    path = write("data/dev.conll", conll(PLAIN, [("Bob", "B-cat")]))
    message = f"{str(path)!r} line 4, column 'tags': word 1: got 'B-cat', allowed: O, B-loc, B-per"
    with pytest.raises(DataError, match=re.escape(message)):
        load(tmp_path / "data").splits["validation"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", conll(*many()) + "\nalone\n", "expected a word and its tag"),
        ("a.conll", conll(*[PLAIN] * 9), "column 'tags' holds only 'O'; training needs at least"),
        ("a.conll", conll(SENTENCE), "has 1 usable rows, too few"),
        ("a.conll", conll(*many(), [("x", "L-per")]), "has the tag 'L-per' of the BILOU scheme"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "B-x", "O"]}', "3 tags for 2 words"),
        ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "B-x"]}', "word 2: the text is empty"),
        ("a.jsonl", '{"tokens": "a b", "tags": ["O", "B-x"]}', "got 'a b', expected a list with"),
        ("a.jsonl", '{"tokens": [], "tags": ["O", "B-x"]}', "got [], expected a list with one"),
        ("a.csv", "tokens,tags\na b,O O\n", "csv and tsv cannot hold lists: use CoNLL columns"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', "got None, which is no label"),
        (
            "a.jsonl",
            '{"id": 1, "tokens": ["a"], "tags": ["O"]}\n{"id": 1, "tokens": ["b"], "tags": ["X"]}',
            "line 2: id '1' is also in line 1",
        ),
    ],
)
def test_bad_files_are_named_with_place_and_column(write, name, content, message):
    path = write(name, content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        _ = [split.examples for split in load(path).splits.values()]
    assert repr(str(path)) in str(caught.value)


def test_columns_can_be_named_and_are_asked_for(write):
    record = {"satz": ["a"], "marken": ["O"]}
    path = write("data.jsonl", json.dumps(record) + "\n" + json.dumps({**record, "marken": ["X"]}))
    with pytest.raises(ConfigError, match="no column is obviously the tokens"):
        load(path)
    task = load(path, columns={"tokens": "satz", "tags": "marken"}, holdout=0.5)
    assert (task.labels, task.metric_name) == (("O", "X"), "accuracy")
    with pytest.raises(ConfigError, match="unknown role 'text', allowed: tokens, tags, id"):
        load(path, columns={"text": "satz"})


def test_first_tokens_carry_the_class_of_their_word(tokenizer):
    # The tokenizer's words are single characters and their continuations.
    example = Example("0", "ab c", words=("ab", "c"), tags=(2, 1))
    encoded = encode_words("train", [example], tokenizer, max_length=16)
    batch = encoded.batch([0], pad_to=7)
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == [
        *("[CLS]", "a", "##b", "c", "[SEP]", "[PAD]", "[PAD]")
    ]
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED, 1, IGNORED, IGNORED, IGNORED]]
    assert batch["labels"].dtype == np.int64


words = st.lists(st.text("abcdefg", min_size=1, max_size=9), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(words, min_size=1, max_size=4), st.integers(8, 14))
def test_every_word_is_answered_for_exactly_once_however_long_the_sentence(
    tokenizer, sentences, max_length
):
    examples = [
        Example(str(at), " ".join(row), words=tuple(row), tags=(0,) * len(row))
        for at, row in enumerate(sentences)
    ]
    encoded = encode_words("train", examples, tokenizer, max_length=max_length)
    assert int(encoded.lengths.max()) <= max_length
    answered = [
        (int(example), int(word))
        for at, example in enumerate(encoded.words.example)
        for word in encoded.words.word[encoded.offsets[at] : encoded.offsets[at + 1]]
        if word >= 0
    ]
    assert answered == [(at, w) for at, row in enumerate(sentences) for w in range(len(row))]


def test_perfect_logits_score_one_and_missing_entities_cost_recall(write, tokenizer):
    task = load(write("data.conll", conll(*many())))
    encoded = task.encode("train", tokenizer)
    gold = logits_of(encoded, task.labels, lambda e, w: encoded.examples[e].tags[w])
    assert task.score(encoded, gold) == {
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "accuracy": 1.0,
    }
    assert task.predictions(encoded, gold) == [example.tags for example in encoded.examples]
    blind = logits_of(encoded, task.labels, lambda e, w: 0)
    assert task.score(encoded, blind)["f1"] == 0.0


def test_a_word_without_tokens_is_outside(write, tokenizer):
    rows = [*many(), [("\u200b", "B-loc"), ("x", "B-loc")]]
    task = load(write("data.conll", conll(*rows)), holdout=0.2)
    splits = [task.encode(name, tokenizer) for name in ("train", "selection", "validation")]
    for encoded in splits:
        outputs = logits_of(encoded, task.labels, lambda e, w: 1)
        for example, tags in zip(encoded.examples, task.predictions(encoded, outputs), strict=True):
            expected = [0 if word == "\u200b" else 1 for word in example.words]
            assert list(tags) == expected


def test_wrong_outputs_are_refused(write, tokenizer):
    task = load(write("data.conll", conll(*many())))
    encoded = task.encode("validation", tokenizer, limit=1)
    shape = (int(encoded.lengths[0]), 4)
    for bad, message in (
        (np.zeros((2, 4)), f"logits has shape (2, 4), expected {shape}"),
        (np.full(shape, np.nan), "logits holds NaN or infinity"),
    ):
        with pytest.raises(RunnerError, match=re.escape(message)):
            task.score(encoded, [{"logits": bad}])


tag_rows = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=6)


@given(tag_rows, st.randoms(use_true_random=False))
def test_sentence_counts_give_the_f1_of_seqeval(gold, random):
    predicted = [
        [tag if random.random() < 0.6 else random.randrange(5) for tag in row] for row in gold
    ]
    right, found, true = sentence_counts(predicted, gold, LABELS).sum(axis=0).tolist()
    f1 = 2 * right / (found + true) if found + true else 0.0
    assert token_scores(predicted, gold, LABELS)["f1"] == pytest.approx(f1)


def test_entities_count_whole_and_agree_with_the_strict_scheme_on_proper_tags():
    gold, predicted = [[3, 4, 0, 1, 2]], [[3, 4, 0, 1, 0]]
    scores = token_scores(predicted, gold, LABELS)
    names = [[[LABELS[tag] for tag in row] for row in rows] for rows in (gold, predicted)]
    assert scores["f1"] == f1_score(*names, mode="strict", scheme=IOB2) == 0.5
    assert scores["accuracy"] == 0.8


def test_outside_comes_first_and_prefixes_stay_together():
    assert tag_order({"I-b", "B-b", "O", "B-a"}, "x") == ("O", "B-a", "B-b", "I-b")
    assert tag_order({"VERB", "NOUN"}, "x") == ("VERB", "NOUN")


WNUT = Path(os.environ.get("COFI_DEPLOY_DATA", "../shared/data")) / "wnut17"


@pytest.mark.skipif(not WNUT.is_dir(), reason=f"no WNUT17 files in {str(WNUT)!r}")
def test_wnut17_is_read_whole(minilm_tokenizer):
    task = load(WNUT)
    splits = {name: len(split) for name, split in task.splits.items()}
    assert splits["train"] + splits["selection"] == 3394
    assert splits["validation"] == 1009
    assert len(task.labels) == 13
    encoded = task.encode("validation", minilm_tokenizer)
    gold = logits_of(encoded, task.labels, lambda e, w: encoded.examples[e].tags[w])
    scores = task.score(encoded, gold)
    # The tokenizer drops lone variation selectors and such; a few words have no token.
    assert scores["f1"] > 0.99
    assert sum(len(example.words) for example in encoded.examples) == 15733


@pytest.mark.parametrize("family", CLASSES)
def test_tokens_of_every_family_find_their_words(tmp_path, family):
    write_tokenizer(family, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = ("the", "film", "was", "x9", ",", "good")
    example = Example("0", " ".join(words), words=words, tags=(0,) * 6)
    encoded = encode_words("train", [example], tokenizer, max_length=64)
    firsts = encoded.words.word >= 0
    assert encoded.words.word[firsts].tolist() == [0, 1, 2, 3, 4, 5]
    pieces = tokenizer.convert_ids_to_tokens(encoded.input_ids[firsts].tolist())
    begun = [
        piece.strip("\N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
        for piece in pieces
    ]
    assert all(word.startswith(piece) for word, piece in zip(words, begun, strict=True))
