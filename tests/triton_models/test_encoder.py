"""The encoder that Triton's Python backend runs, over real ONNX Runtime."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from cofi_deploy.export.triton import write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.kinds import TASK_KINDS, is_per_token
from cofi_deploy.loading import load
from tests.triton_models.conftest import load_module
from tests.triton_models.fake_backend_utils import outputs, request

VOCABULARY = 141
MAX_POSITIONS = 64


@pytest.fixture(scope="module")
def folder_of(write_model, tmp_path_factory):
    """The encoder's folder in a repository, for each kind written once."""
    made = {}

    def folder(kind="text-classification"):
        if kind not in made:
            directory = tmp_path_factory.mktemp("models")
            write_models(directory, write_model(kind), name="tiny", options=TritonOptions())
            made[kind] = directory / "tiny"
        return made[kind]

    return folder


@pytest.fixture
def encoder(folder_of, open_served):
    return open_served(folder_of(), config="configs/python.pbtxt")


def tensors(rows, width, *, seed=0):
    """Inputs of a request whose rows have these numbers of real tokens, padded to ``width``."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(width) < np.asarray(rows)[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(5, VOCABULARY, mask.shape) * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, mask.shape) * mask,
    }


def torch_answers(model, inputs):
    """PyTorch's answer to every row alone, without padding."""
    answers = []
    for row, length in enumerate(inputs["attention_mask"].sum(axis=1)):
        alone = {name: torch.from_numpy(x[row : row + 1, :length]) for name, x in inputs.items()}
        with torch.inference_mode():
            answers.append({n: t.numpy()[0] for n, t in model.outputs(alone).items()})
    return answers


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_merged_requests_of_all_lengths_are_answered_like_pytorch(
    kind, folder_of, write_model, open_served
):
    encoder = open_served(folder_of(kind), config="configs/python.pbtxt")
    model = load(write_model(kind))
    batches = [
        tensors(rows, width, seed=index)
        for index, (rows, width) in enumerate(
            [([3], 16), ([16], 16), ([1, 33, 7], 48), ([64], 64), ([12, 12], 12), ([5], 64)]
        )
    ]
    responses = encoder.execute([request(**batch) for batch in batches])
    for batch, response in zip(batches, responses, strict=True):
        answers = outputs(response)
        for row, expected in enumerate(torch_answers(model, batch)):
            assert set(answers) == set(expected)
            for name, value in expected.items():
                got = answers[name][row]
                if is_per_token(kind):
                    assert got.shape[0] == batch["input_ids"].shape[1]
                    assert not got[len(value) :].any()
                    got = got[: len(value)]
                assert np.abs(got - value).max() < 1e-5


def test_an_answer_does_not_depend_on_what_it_was_merged_with(encoder):
    first, second = tensors([9], 16, seed=1), tensors([64, 20], 64, seed=2)
    together = encoder.execute([request(**first), request(**second)])
    for inputs, merged in zip((first, second), together, strict=True):
        (alone,) = encoder.execute([request(**inputs)])
        assert np.abs(outputs(alone)["logits"] - outputs(merged)["logits"]).max() < 1e-5


def test_a_row_without_any_real_token_gets_an_answer(encoder):
    inputs = tensors([4, 4], 8)
    inputs["attention_mask"][1] = 0
    (response,) = encoder.execute([request(**inputs)])
    assert np.isfinite(outputs(response)["logits"]).all()


def bad(name, change):
    inputs = tensors([8], 8, seed=5)
    inputs[name] = change(inputs[name])
    return inputs


def with_value(value):
    def change(array):
        array = array.copy()
        array[0, 3] = value
        return array

    return change


BAD = {
    "id too large": (
        bad("input_ids", with_value(VOCABULARY)),
        "input_ids has 141, allowed: 0 to 140",
    ),
    "negative id": (bad("input_ids", with_value(-1)), "input_ids has -1, allowed: 0 to 140"),
    "mask of 2": (bad("attention_mask", with_value(2)), "attention_mask has 2, allowed: 0 to 1"),
    "type of 2": (bad("token_type_ids", with_value(2)), "token_type_ids has 2, allowed: 0 to 1"),
    "int32": (
        bad("input_ids", lambda array: array.astype(np.int32)),
        "input_ids has type int32, expected int64",
    ),
    "no batch axis": (
        bad("input_ids", lambda array: array[0]),
        "input_ids has shape [8], expected rows x tokens, 1 or more",
    ),
    "no tokens": (
        {name: array[:, :0] for name, array in tensors([8], 8).items()},
        "input_ids has shape [1, 0], expected rows x tokens, 1 or more",
    ),
    "no rows": (
        {name: array[:0] for name, array in tensors([8], 8).items()},
        "input_ids has shape [0, 8], expected rows x tokens, 1 or more",
    ),
    "shapes differ": (
        bad("attention_mask", lambda array: array[:, :7]),
        "attention_mask has shape [1, 7], but input_ids has [1, 8]; give all inputs the same shape",
    ),
    "too long": (tensors([65], 65), "input_ids has 65 tokens in a row, the model takes 64"),
    "input missing": (
        {"input_ids": tensors([8], 8)["input_ids"]},
        "input 'attention_mask' is missing, expected: input_ids, attention_mask, token_type_ids",
    ),
}


@pytest.mark.parametrize(("inputs", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_fails_alone(inputs, words, encoder, triton_utils):
    good = tensors([6], 16, seed=9)
    (expected,) = encoder.execute([request(**good)])
    first, error, last = encoder.execute([request(**good), request(**inputs), request(**good)])
    assert error.error().message() == words
    assert error.error().code() == triton_utils.TritonError.INVALID_ARG
    for response in (first, last):
        assert np.abs(outputs(response)["logits"] - outputs(expected)["logits"]).max() < 1e-6


def test_only_bad_requests_need_no_run(encoder):
    (response,) = encoder.execute([request(**bad("input_ids", with_value(-7)))])
    assert response.has_error()


def test_what_onnx_runtime_refuses_is_said_to_everyone_it_concerns(encoder, triton_utils):
    class Refusing:
        def run(self, *_):
            raise RuntimeError("no memory")

    encoder._session = Refusing()
    good, rejected = encoder.execute(
        [request(**tensors([6], 8)), request(**bad("input_ids", with_value(-7)))]
    )
    assert good.error().message() == "ONNX Runtime: no memory"
    assert good.error().code() == triton_utils.TritonError.INTERNAL
    assert rejected.error().code() == triton_utils.TritonError.INVALID_ARG


def copy_version(folder, tmp_path):
    target = tmp_path / "tiny"
    for name in ("config.pbtxt", "1/model.onnx", "1/model.py", "1/export.json"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def truncate(version):
    path = version / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "was recorded when it was written: it is corrupt, truncated or was replaced; "),
        (
            lambda version: (version / "model.onnx").unlink(),
            "model.onnx' cannot be read: [Errno 2]",
        ),
        (lambda version: (version / "export.json").unlink(), "export.json' cannot be read: [Errno"),
        (
            lambda version: (version / "export.json").write_text("{"),
            "export.json' cannot be read: Expecting",
        ),
        (
            lambda version: (version / "export.json").write_text("{}"),
            "export.json' has a missing or unknown entry: 'arch'; export the version again",
        ),
    ],
    ids=["truncated", "no model", "no manifest", "torn manifest", "another manifest"],
)
def test_a_corrupt_version_refuses_to_load(
    damage, words, folder_of, tmp_path, open_served, triton_utils
):
    folder = copy_version(folder_of(), tmp_path)
    damage(folder / "1")
    with pytest.raises(triton_utils.TritonModelException, match=re.escape(words)):
        open_served(folder)


def test_thread_counts_reach_the_session(folder_of, tmp_path, open_served):
    folder = copy_version(folder_of(), tmp_path)
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace('string_value: "0"', 'string_value: "2"'))
    options = open_served(folder)._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_gpu_instance_without_a_cuda_provider_runs_on_the_cpu_and_says_so(
    folder_of, open_served, triton_utils
):
    model = open_served(folder_of(), kind="GPU")
    assert model._session.get_providers() == ["CPUExecutionProvider"]
    assert "has no CUDAExecutionProvider" in triton_utils.Logger.lines[0]


def test_the_model_is_freed_at_the_end(encoder):
    encoder.finalize()
    assert not hasattr(encoder, "_session")


@pytest.mark.parametrize(
    ("lengths", "run_cost", "expected"),
    [
        ([5, 5, 5], 64, [[5, 5, 5]]),
        ([128, 8, 8, 120], 64, [[120, 128], [8, 8]]),
        ([128, 100], 64, [[100, 128]]),
        ([128, 8], 1000, [[8, 128]]),
        ([1, 2, 3], 0, [[3], [2], [1]]),
        ([7], 64, [[7]]),
        ([], 64, []),
    ],
)
def test_rows_are_cut_where_a_run_costs_less_than_the_padding(
    lengths, run_cost, expected, folder_of, triton_utils
):
    module = load_module(folder_of() / "1" / "model.py")
    rows = [module.Row(request=0, row=index, length=size) for index, size in enumerate(lengths)]
    batches = module.batches_of_similar_length(rows, run_cost)
    assert [[row.length for row in batch] for batch in batches] == expected


def test_the_manifest_names_what_the_encoder_reads(folder_of):
    manifest = json.loads((folder_of() / "1" / "export.json").read_text())
    assert manifest["arch"]["max_positions"] == MAX_POSITIONS
    assert "model.onnx" in manifest["files"]
