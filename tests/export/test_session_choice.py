"""The key ``session`` of an export: written by `--tune`, obeyed by runners and Triton, checked."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import ArtifactError
from cofi_deploy.export.candidates import Candidate, Machine, combined, graphs_for, sessions_for
from cofi_deploy.export.manifest import write_tuning
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.export.triton import export_triton
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.exports import SessionChoice, check_export, read_tuning
from cofi_deploy.serve import runner_openvino
from cofi_deploy.serve.profile_onnxruntime import profiled_runs
from cofi_deploy.serve.runner import RunnerSettings, open_runner

SETTINGS = {
    "graph_optimization_level": "ORT_ENABLE_BASIC",
    "enable_mem_pattern": False,
    "session.set_denormal_as_zero": "1",
    "disabled_optimizers": ["SkipLayerNormFusion"],
}
MACHINE = Machine(cores=8, logical_cores=16, has_bf16=True)


@pytest.fixture
def tuned(onnx_directory: Path, tmp_path: Path) -> Path:
    """A copy of the ONNX export, tuned to `SETTINGS` on one thread."""
    directory = Path(shutil.copytree(onnx_directory, tmp_path / "tuned"))
    choice = SessionChoice(runtime="onnxruntime-cpu", threads=1, settings=SETTINGS)
    write_tuning(directory, choice, {"for": "onnxruntime-cpu@1x128", "kept": "x", "rows": []})
    return directory


def test_the_runner_opens_the_session_that_was_chosen(tuned):
    with open_runner(tuned, "onnxruntime-cpu") as runner:
        options = runner._session._session.get_session_options()
        assert runner.threads == options.intra_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.enable_mem_pattern is False
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_threads_that_are_asked_for_win(tuned):
    with open_runner(tuned, "onnxruntime-cpu", threads=2) as runner:
        assert runner.threads == 2
        assert runner._session._session.get_session_options().intra_op_num_threads == 2


def test_the_choice_for_one_runtime_is_none_for_another(tuned, monkeypatch):
    document = read_json(tuned / "export.json")
    document["session"] = {"runtime": "openvino", "threads": 1, "settings": {}}
    write_json(tuned / "export.json", document)
    monkeypatch.setattr("cofi_deploy.serve.runner.physical_cores", lambda: 2)
    with open_runner(tuned, "onnxruntime-cpu") as runner:
        assert runner.threads == 2


def test_openvino_is_compiled_with_what_was_chosen(write_model, tmp_path, monkeypatch):
    directory = export_openvino(write_model(), tmp_path / "openvino")
    settings = {"ENABLE_HYPER_THREADING": True, "INFERENCE_PRECISION_HINT": "bf16"}
    choice = SessionChoice(runtime="openvino", threads=1, settings=settings)
    write_tuning(directory, choice, {"for": "openvino@1x128"})
    with open_runner(directory, "openvino") as runner:
        compiled = runner._session._compiled
        assert runner.threads == 1
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    # Where the processor has no bf16, or another precision is asked for, the hint is left out.
    core = runner_openvino.openvino_core()
    assert "INFERENCE_PRECISION_HINT" not in runner_openvino._tuned(core, choice, False)
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ("INFERENCE_PRECISION_HINT" in runner_openvino._tuned(core, choice, True)) == has_bf16


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
def test_onnxruntime_is_given_as_many_rows_at_once_as_were_chosen(
    kind, write_model, random_inputs, tmp_path
):
    directory = export_onnx(write_model(kind), tmp_path / "onnx")
    batch = random_inputs(7, 19)
    with open_runner(directory, "onnxruntime-cpu") as runner:
        expected = runner.infer(batch)["logits"]
    choice = SessionChoice(runtime="onnxruntime-cpu", settings={"rows_at_once": 3})
    write_tuning(directory, choice, {"for": "onnxruntime-cpu@32x128"})
    with open_runner(directory, "onnxruntime-cpu") as runner:
        got = runner.infer(batch)["logits"]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=1e-5)
    settings = RunnerSettings(runtime="onnxruntime-cpu", threads=1, precision=None)
    runs = profiled_runs(directory, settings, batch, warmup=1, runs=3)
    assert len(runs) == 3  # of three pieces each


def test_a_batch_is_cut_into_pieces_of_a_thousand_tokens():
    graph = Candidate(name="default")
    told = {
        shape: [
            candidate.settings["rows_at_once"]
            for candidate in sessions_for("onnxruntime-cpu", graph, MACHINE, shape)
            if "rows_at_once" in candidate.settings
        ]
        for shape in ((1, 128), (8, 128), (32, 128), (32, 32), (64, 32), (4, 512), (4, 2048))
    }
    nothing = {(1, 128), (8, 128), (32, 32)}
    assert {shape for shape, rows in told.items() if not rows} == nothing
    assert told[32, 128] == [8]
    assert (told[64, 32], told[4, 512], told[4, 2048]) == ([32], [2], [1])


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
def test_openvino_computes_a_batch_in_as_many_pieces_as_streams(
    kind, write_model, random_inputs, tmp_path
):
    directory = export_openvino(write_model(kind), tmp_path / "openvino")
    batches = [random_inputs(rows, 19) for rows in (1, 2, 3, 7)]
    with open_runner(directory, "openvino", threads=2) as runner:
        expected = [runner.infer(batch)["logits"] for batch in batches]
    choice = SessionChoice(runtime="openvino", settings={"NUM_STREAMS": 2})
    write_tuning(directory, choice, {"for": "openvino@32x128"})
    with open_runner(directory, "openvino", threads=2) as runner:
        compiled = runner._session._compiled
        assert compiled.get_property("NUM_STREAMS") == 2
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 2  # of both together
        for batch, logits in zip(batches, expected, strict=True):
            got = runner.infer(batch)["logits"]
            assert got.shape == logits.shape
            np.testing.assert_allclose(got, logits, atol=1e-5)
            kept = got.copy()
            runner.infer(batches[-1])
            np.testing.assert_array_equal(got, kept)  # they are no views of the next answers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"plugin": "x.so"}}, "session setting plugin='x.so' for 'onnxruntime-cpu'"),
        ({"settings": {"enable_mem_pattern": "no"}}, "session setting enable_mem_pattern='no'"),
        ({"settings": {"disabled_optimizers": ["ConstantFolding"]}}, "['ConstantFolding']"),
        ({"settings": {"rows_at_once": 0}}, "session setting rows_at_once=0"),
        ({"runtime": "elsewhere"}, "for 'elsewhere', allowed: none"),
        ({"threads": 0}, "has 0 threads, allowed: 1 and up"),
        ({"stranger": 1}, "has a missing or unknown entry"),
    ],
)
def test_a_session_that_tune_never_writes_is_refused(changes, words, tuned):
    document = read_json(tuned / "export.json")
    write_json(tuned / "export.json", {**document, "session": {**document["session"], **changes}})
    with pytest.raises(ArtifactError, match=re.escape(words)):
        check_export(tuned)


def test_exports_that_were_not_tuned_say_nothing_of_it(onnx_directory):
    assert check_export(onnx_directory).session is None
    assert read_tuning(onnx_directory) is None


def test_triton_gets_what_its_backend_knows(tuned, tmp_path):
    repository = export_triton(tuned, tmp_path / "models", name="tiny")
    config = (repository / "tiny" / "config.pbtxt").read_text()
    assert 'key: "enable_mem_pattern"' in config
    assert "level: -1" in config
    assert re.search(r'"intra_op_thread_count"\s+value {\s+string_value: "1"', config)
    several = TritonOptions(instances=2, threads=2)
    other = export_triton(tuned, tmp_path / "more", name="tiny", options=several)
    config = (other / "tiny" / "config.pbtxt").read_text()
    assert re.search(r'"intra_op_thread_count"\s+value {\s+string_value: "2"', config)


def test_candidates_come_from_the_simplest_on():
    onnx = [candidate.name for candidate in graphs_for("onnxruntime-cpu", MACHINE, (1, 128))]
    several = [candidate.name for candidate in graphs_for("onnxruntime-cpu", MACHINE, (2, 128))]
    assert several == ["default", "Gelu as one node", "int8"]
    assert onnx == [*several[:2], "one text at a time", "int8"]
    openvino = [candidate.name for candidate in graphs_for("openvino", MACHINE, (1, 128))]
    assert openvino[:4] == ["default", "bf16", "int8", "int8, else bf16"]
    assert openvino[4:6] == ["one shape, 1x128", "bf16; one shape, 1x128"]
    assert len(openvino) == 8
    old = Machine(cores=2, logical_cores=2, has_bf16=False)
    assert [c.name for c in graphs_for("openvino", old, (1, 8))][:2] == ["default", "int8"]


def test_sessions_change_one_thing_each_and_are_combined():
    graph = Candidate(name="int8", precision="int8")
    found = {c.name: c for c in sessions_for("onnxruntime-cpu", graph, MACHINE, (1, 128))}
    assert list(found)[:2] == ["int8; threads 4", "int8; threads 1"]
    names = ("threads 4", "LayerNorm not fused", "Gelu not fused", "no memory pattern")
    both = combined(graph, [found[f"int8; {name}"] for name in names])
    assert both.name == "int8; threads 4; LayerNorm not fused; Gelu not fused; no memory pattern"
    assert both.threads == 4
    assert both.settings == {
        "disabled_optimizers": ["SkipLayerNormFusion", "BiasGeluFusion", "GeluFusion"],
        "enable_mem_pattern": False,
    }


def test_openvino_shares_a_batch_out_among_streams_where_the_shape_is_free():
    graph = Candidate(name="int8", precision="int8")
    names = {
        batch: [
            c.name.removeprefix("int8; ")
            for c in sessions_for("openvino", graph, MACHINE, (batch, 128))
        ]
        for batch in (1, 2, 32)
    }
    assert "hyper-threads" in names[1]
    assert {batch: [n for n in each if "stream" in n] for batch, each in names.items()} == {
        1: [],
        2: ["streams 2"],
        32: ["streams 2", f"streams {MACHINE.cores}"],
    }
    fixed = replace(graph, shape=(32, 128))
    assert not any("stream" in c.name for c in sessions_for("openvino", fixed, MACHINE, (32, 128)))
