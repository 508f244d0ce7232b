"""`import cofi_deploy` is cheap, and yet transformers' Auto classes know our models after it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import AutoModelForSequenceClassification

import cofi_deploy
from cofi_deploy.loading import save_compact
from tests.builders import random_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact") / "model"
    save_compact(random_model("text-classification"), tiny_tokenizer(), folder)
    return folder


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_imports_no_framework():
    program = "import sys, cofi_deploy; print(*sorted(sys.modules))"
    loaded = set(run(program).split())
    assert not loaded & {"torch", "transformers", "numpy", "onnxruntime", "datasets", "onnx"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import cofi_deploy; from transformers import AutoModelForSequenceClassification as Auto",
        "from transformers import AutoModelForSequenceClassification as Auto; import cofi_deploy",
        "import transformers, cofi_deploy; Auto = transformers.AutoModelForSequenceClassification",
    ],
    ids=["ours first", "transformers first", "transformers first, lazily"],
)
def test_auto_classes_open_our_models_in_every_import_order(model_dir, imports):
    program = f"import sys; {imports}; print(type(Auto.from_pretrained(sys.argv[1])).__name__)"
    assert run(program, model_dir) == "CofiForSequenceClassification"


@pytest.mark.slow
def test_a_pipeline_opens_our_models_by_path(model_dir):
    program = (
        "import sys, cofi_deploy; from transformers import pipeline; "
        "print(pipeline('text-classification', sys.argv[1])('w1 w2 w3')[0]['label'])"
    )
    assert run(program, model_dir) in {"negative", "neutral", "positive"}


def test_the_auto_class_gives_the_weights_that_were_saved(model_dir):
    ours = cofi_deploy.load(model_dir).state_dict()
    theirs = AutoModelForSequenceClassification.from_pretrained(model_dir).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_public_names_are_sorted_and_an_unknown_one_is_an_attribute_error():
    assert cofi_deploy.__all__ == sorted(cofi_deploy.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = cofi_deploy.trian
