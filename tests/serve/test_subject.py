"""A subject knows what its rows share, with or without its model directory."""

from __future__ import annotations

import pytest

from cofi_deploy.errors import UsageError
from cofi_deploy.serve.subject import Subject


def test_rows_share_what_the_model_directory_says(pruned):
    row = Subject(
        label="small", artifacts=pruned.artifacts, facts={"recipe": "smoke", "seed": 3}
    ).row()
    assert (row["model"], row["recipe"], row["seed"], row["family"]) == (
        "small",
        "smoke",
        3,
        "bert",
    )
    assert row["parameters"] > 0
    assert row["realized_sparsity"] == pytest.approx(pruned.arch().sparsity)


def test_an_export_alone_gives_structure_and_sparsity(pruned):
    export = Subject(label="x", artifacts={"openvino": pruned.artifacts["openvino"]})
    assert export.arch() == pruned.arch()
    assert export.row()["realized_sparsity"] == pytest.approx(pruned.arch().sparsity)
    assert export.tokenizer == pruned.artifacts["openvino"]


@pytest.mark.parametrize(
    ("runtime", "files"),
    [
        pytest.param("torch", ["model.safetensors"], id="torch"),
        pytest.param("onnxruntime-cpu", ["model.onnx"], id="onnxruntime"),
        pytest.param("openvino", ["openvino_model.xml", "openvino_model.bin"], id="openvino"),
    ],
)
def test_size_is_that_of_weights_and_graph(pruned, runtime, files):
    expected = sum((pruned.artifacts[runtime] / name).stat().st_size for name in files)
    assert pruned.size_bytes(runtime) == expected


def test_a_subject_without_artifacts_is_refused():
    with pytest.raises(UsageError, match="'x' has no artifact for any runtime; export it first"):
        _ = Subject(label="x", artifacts={}).tokenizer
