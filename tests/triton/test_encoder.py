"""The encoder on the real server: token ids in, logits out, through the Python backend."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from cofi_deploy.export.triton import write_models
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.kinds import INPUT_NAMES, TASK_KINDS, output_names

grpc = pytest.importorskip("tritonclient.grpc", reason="the extra 'triton' is not installed")

pytestmark = pytest.mark.triton

VOCABULARY = 141
REQUESTS = 120


def inputs_of(length, *, first_id=None):
    generator = np.random.default_rng(length)
    ids = generator.integers(5, VOCABULARY, (1, length))
    if first_id is not None:
        ids[0, 0] = first_id
    arrays = (ids, np.ones_like(ids), np.zeros_like(ids))
    tensors = []
    for name, array in zip(INPUT_NAMES, arrays, strict=True):
        tensor = grpc.InferInput(name, array.shape, "INT64")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def answer(client, name, inputs, outputs):
    """The outputs by name, or the words of the error."""
    try:
        result = client.infer(name, inputs)
    except grpc.InferenceServerException as error:
        return error.message()
    return {output: result.as_numpy(output) for output in outputs}


def counts(client, name):
    """Requests answered and runs of the model since it was loaded."""
    (stats,) = client.get_inference_statistics(name).model_stats
    return stats.inference_count, stats.execution_count


CASES = {
    **{kind: (kind, TritonOptions()) for kind in TASK_KINDS},
    "gpu falls back to what is there": ("text-classification", TritonOptions(device="gpu")),
    "two instances": ("text-classification", TritonOptions(backend="python", instances=2)),
}


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES.keys())
def test_requests_of_all_lengths_merge_and_bad_ones_fail_alone(
    kind, options, write_model, tmp_path, serve_repository
):
    # Long enough for others to join, however busy the machine is.
    options = replace(options, max_queue_delay_us=20_000)
    write_models(tmp_path / "models", write_model(kind), name="tiny", options=options)
    server = serve_repository(tmp_path / "models")
    client = grpc.InferenceServerClient(server.grpc_address)
    requests = [
        inputs_of(1 + index % 64, first_id=10**6 if index % 17 == 3 else None)
        for index in range(REQUESTS)
    ]
    alone = [answer(client, "tiny", request, output_names(kind)) for request in requests]
    requests_before, runs_before = counts(client, "tiny")
    with ThreadPoolExecutor(REQUESTS) as pool:
        together = list(pool.map(lambda r: answer(client, "tiny", r, output_names(kind)), requests))
    requests_after, runs_after = counts(client, "tiny")
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        if index % 17 == 3:
            assert one == other == "input_ids has 1000000, allowed: 0 to 140"
            continue
        for name, array in one.items():
            assert np.abs(array - other[name]).max() < 1e-5
    assert runs_after - runs_before < (requests_after - requests_before) / 2


def test_a_corrupt_new_version_is_refused_while_the_old_one_serves(
    write_model, tmp_path, serve_repository
):
    options = TritonOptions(backend="python")
    write_models(tmp_path / "models", write_model(), name="tiny", options=options)
    server = serve_repository(tmp_path / "models")
    client = grpc.InferenceServerClient(server.grpc_address)
    before = answer(client, "tiny", inputs_of(20), ["logits"])["logits"]
    version = shutil.copytree(tmp_path / "models" / "tiny" / "1", tmp_path / "new")
    with (version / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    version.rename(tmp_path / "models" / "tiny" / "2")
    deadline = time.monotonic() + 60
    while not (reasons := _reasons(client)):
        assert time.monotonic() < deadline, "the server has not looked at version 2"
        time.sleep(0.2)
    assert "was recorded when it was written: it is corrupt, truncated or was replaced" in reasons
    after = answer(client, "tiny", inputs_of(20), ["logits"])["logits"]
    assert np.array_equal(before, after)


def _reasons(client):
    """Why versions of the encoder are not served."""
    index = client.get_model_repository_index().models
    return "".join(model.reason for model in index if model.name == "tiny")
