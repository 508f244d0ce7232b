"""The three models of `<name>_text`: what is written, and whether the edges between them fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cofi_deploy.export.manifest import Source, open_source
from cofi_deploy.export.triton_config import ServedModel, TritonOptions, model_config
from cofi_deploy.export.triton_text import write_text_models
from cofi_deploy.kinds import TASK_KINDS, TaskKind
from cofi_deploy.triton_repository import import_model_config, read_config, served_code
from tests.texts import LABELS, MAX_LENGTH, save_text_model

TEXT = {"text": ("TYPE_STRING", [-1])}
PLACES = {"scores": "TYPE_FP32", "starts": "TYPE_INT64", "ends": "TYPE_INT64"}
INTERFACE: dict[TaskKind, tuple[dict, dict]] = {
    "text-classification": (
        TEXT,
        {"labels": ("TYPE_STRING", [3]), "scores": ("TYPE_FP32", [3])},
    ),
    "text-regression": (TEXT, {"scores": ("TYPE_FP32", [1])}),
    "token-classification": (
        {"text": ("TYPE_STRING", [1])},
        {
            "labels": ("TYPE_STRING", [-1]),
            "words": ("TYPE_STRING", [-1]),
            **{name: (data_type, [-1]) for name, data_type in PLACES.items()},
        },
    ),
    "question-answering": (
        {"question": ("TYPE_STRING", [-1]), "context": ("TYPE_STRING", [-1])},
        {
            "answers": ("TYPE_STRING", [-1, -1]),
            **{name: (data_type, [-1, -1]) for name, data_type in PLACES.items()},
        },
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[TaskKind, Source]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: open_source(save_text_model(kind, folder / kind))[0] for kind in LABELS}


@pytest.fixture
def write(sources, tmp_path):
    """Write the text models of a kind, and hand out the folder they are in."""

    def write_kind(kind: TaskKind = "text-classification", **options) -> Path:
        options = TritonOptions(**options)
        write_text_models(tmp_path, name="small", source=sources[kind], options=options)
        return tmp_path

    return write_kind


def tensors(field):
    names = import_model_config().DataType.Name
    return {tensor.name: (names(tensor.data_type), list(tensor.dims)) for tensor in field}


def full_shapes(field, config):
    """Types and shapes with the batch axis, as they travel between the steps."""
    batch = [-1] if config.max_batch_size else []
    return {name: (kind, batch + dims) for name, (kind, dims) in tensors(field).items()}


def settings_of(folder: Path, role: str = "tokenizer") -> dict:
    return json.loads((folder / f"small_{role}" / "1" / "settings.json").read_text())


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_the_interface_is_text_in_and_answers_out(write, kind):
    config = read_config(write(kind) / "small_text" / "config.pbtxt")

    assert (tensors(config.input), tensors(config.output)) == INTERFACE[kind]
    assert config.platform == "ensemble"
    assert config.max_batch_size == (0 if kind == "question-answering" else 32)


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_every_step_gets_what_the_step_before_gives(write, kind, backend):
    folder = write(kind, backend=backend)
    text = read_config(folder / "small_text" / "config.pbtxt")
    served = ServedModel(name="small", kind=kind, labels=len(LABELS[kind]))
    configs = {
        "small": model_config(served, TritonOptions(backend=backend)),
        **{
            name: read_config(folder / name / "config.pbtxt")
            for name in ("small_tokenizer", "small_answer")
        },
    }
    at_hand = full_shapes(text.input, text)

    for step in text.ensemble_scheduling.step:
        config = configs[step.model_name]
        inputs, outputs = full_shapes(config.input, config), full_shapes(config.output, config)
        assert {key: at_hand[value] for key, value in step.input_map.items()} == inputs
        assert set(step.output_map) == set(outputs)
        at_hand |= {value: outputs[key] for key, value in step.output_map.items()}

    answers = full_shapes(text.output, text)
    assert {name: at_hand[name] for name in answers} == answers
    names = [step.model_name for step in text.ensemble_scheduling.step]
    assert names == ["small_tokenizer", "small", "small_answer"]


def test_requests_with_strings_are_never_merged(write):
    folder = write("text-classification", instances=3)

    configs = {role: read_config(folder / f"small_{role}" / "config.pbtxt") for role in ROLES}

    merged = {role: config.HasField("dynamic_batching") for role, config in configs.items()}
    assert merged == {"tokenizer": False, "answer": True}
    assert [group.count for config in configs.values() for group in config.instance_group] == [3, 3]


ROLES = ("tokenizer", "answer")


@pytest.mark.parametrize("role", ROLES)
def test_the_code_is_the_packaged_file(write, role):
    written = write() / f"small_{role}" / "1" / "model.py"

    assert written.read_bytes() == served_code(role).read_bytes()


def test_the_tokenizer_step_knows_the_models_own_maximum(write):
    settings = settings_of(write(length_buckets=(16, 48, 512), max_characters=99))

    assert settings["max_length"] == MAX_LENGTH
    assert settings["length_buckets"] == [16, 48, MAX_LENGTH]
    assert settings["max_characters"] == 99


def test_an_encoder_that_takes_less_than_its_model_is_sent_less(write):
    settings = settings_of(write(length_buckets=(16, 48)))

    assert settings["max_length"] == 48
    assert settings["length_buckets"] == [16, 48]


def test_a_question_may_make_as_many_windows_as_the_encoder_takes_rows(write):
    folder = write("question-answering", max_batch_size=5, top_k=2)

    assert settings_of(folder)["max_windows"] == 5
    assert settings_of(folder)["overlap"] == MAX_LENGTH // 2
    assert settings_of(folder, "answer")["top_k"] == 2


def test_the_tokenizer_file_neither_pads_nor_cuts(sources, write):
    tokenizer = sources["text-classification"].tokenizer
    tokenizer(["a b", "a"], padding=True, truncation=True, max_length=3)

    file = json.loads((write() / "small_tokenizer" / "1" / "tokenizer.json").read_text())

    assert (file["padding"], file["truncation"]) == (None, None)
