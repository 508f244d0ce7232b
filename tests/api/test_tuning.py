"""`api.export(tune=True)`: what is tried, what is kept, what is refused, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from cofi_deploy import api
from cofi_deploy.api import exporting, tuning
from cofi_deploy.api.places import find_model
from cofi_deploy.api.run_task import task_of_run
from cofi_deploy.api.tuning import TuningRequest, check_target, tune
from cofi_deploy.api.tuning_choice import choose, fastest_first, timed_row
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import EnvironmentProblem, ExportError, UsageError
from cofi_deploy.export import text_parity
from cofi_deploy.export.calibration import calibration_from_task
from cofi_deploy.exports import check_export, read_tuning, rebuild_command
from cofi_deploy.serve.conditions import Load
from cofi_deploy.serve.latency import OperatingPoint, Samples
from cofi_deploy.serve.runner import open_runner

ROUNDS = 24


def samples_of(ms: Mapping[str, float], noise: float = 0.001, load: Load | None = None) -> Samples:
    """Durations around given medians."""
    rng = np.random.default_rng(0)
    return Samples(
        ms={name: value * (1 + noise * rng.standard_normal(ROUNDS)) for name, value in ms.items()},
        load=load,
    )


class Timer:
    """Runs every call once, then says what it was told to say."""

    def __init__(self, ms: Mapping[str, float], load: Load | None = None) -> None:
        self.ms, self.load = ms, load
        self.rounds: list[list[str]] = []

    def __call__(self, calls):
        for call in calls.values():
            call()
        self.rounds.append(list(calls))
        return samples_of({name: self.ms.get(name, 10.0) for name in calls}, load=self.load)


@pytest.fixture(scope="module")
def text(tiny_run):
    return calibration_from_task(task_of_run(tiny_run).load())


@pytest.fixture
def request_for(tiny_run, text):
    def make(point: str, **changes) -> TuningRequest:
        place = find_model(tiny_run)
        return TuningRequest(
            **{"model": place.model, "point": OperatingPoint.parse(point), "text": text, **changes}
        )

    return make


def rows_of(directory: Path):
    tuning_ = read_tuning(directory)
    return tuning_, {row["candidate"]: row for row in tuning_["rows"]}


@pytest.mark.slow
def test_the_fastest_wins_with_what_its_session_gained_together(request_for, tmp_path):
    ms = {"int8": 5.0, "int8; threads do not spin": 4.0, "int8; LayerNorm not fused": 4.5}
    both = "int8; threads do not spin; LayerNorm not fused"
    timer = Timer({**ms, both: 3.0, "int8; Gelu not fused": 4.95})
    directory = tune(request_for("onnxruntime-cpu@2x16"), tmp_path, timer=timer)
    told, rows = rows_of(directory)
    assert (told["kept"], told["for"]) == (both, "onnxruntime-cpu@2x16")
    assert next(iter(rows)) == both
    assert rows[both]["ratio_to_default"] == pytest.approx(10 / 3, rel=0.01)
    manifest = check_export(directory)
    assert manifest.precision == "int8"
    assert manifest.session.settings == {
        "session.intra_op.allow_spinning": "0",
        "disabled_optimizers": ["SkipLayerNormFusion"],
    }
    # The default and the graph are timed again beside what is compared with them.
    assert all({"default", "int8"} <= set(names) for names in timer.rounds)
    assert rows["int8"]["metric_name"] == "accuracy"
    assert rows["int8"]["agreement"] > 0.9
    assert rebuild_command(manifest).endswith("--format onnx --tune --for onnxruntime-cpu@2x16")


@pytest.mark.slow
def test_pytorch_answers_the_held_out_text_once_for_all_candidates(
    request_for, text, tmp_path, monkeypatch
):
    texts = 0
    real = text_parity.torch_outputs

    def counted(model, inputs):
        nonlocal texts
        texts += len(inputs["input_ids"])
        return real(model, inputs)

    monkeypatch.setattr(text_parity, "torch_outputs", counted)
    directory = tune(request_for("onnxruntime-cpu@1x8"), tmp_path, timer=Timer({"int8": 5.0}))
    _, rows = rows_of(directory)
    judged = [name for name, row in rows.items() if "metric" in row]
    assert len(judged) > 8  # int8, and every way of opening it
    assert texts == len(text.task.splits["selection"])


@pytest.mark.slow
def test_a_tie_keeps_the_default(request_for, tmp_path):
    # One percent is no gain, however surely it was measured.
    timer = Timer({"int8": 9.9, "Gelu as one node": 9.95})
    directory = tune(request_for("onnxruntime-cpu@1x8"), tmp_path, timer=timer)
    assert read_tuning(directory)["kept"] == "default"
    assert check_export(directory).session.settings == {}


@pytest.mark.slow
def test_without_text_nothing_lossy_is_tried(request_for, tmp_path):
    timer = Timer({"int8": 1.0})
    directory = tune(request_for("onnxruntime-cpu@1x8", text=None), tmp_path, timer=timer)
    told, rows = rows_of(directory)
    assert told["kept"] == "default"
    assert rows["int8"]["refused"] == "no text to judge it by; name a run or --calibration"
    assert all("int8" not in names for names in timer.rounds)


@pytest.mark.slow
def test_a_metric_that_falls_too_far_is_refused_however_fast(request_for, tmp_path, monkeypatch):
    build = tuning.build

    def spoiled(model, output, candidate, runtime, **arguments):
        directory = build(model, output, candidate, runtime, **arguments)
        document = read_json(directory / "export.json")
        if candidate.precision == "int8":
            text_ = document["parity"]["text"]
            text_["metric"] = text_["metric_pytorch"] - 0.013
            write_json(directory / "export.json", document)
        return directory

    monkeypatch.setattr(tuning, "build", spoiled)
    timer = Timer({"int8": 1.0})
    directory = tune(request_for("onnxruntime-cpu@1x8", max_drop=1.0), tmp_path, timer=timer)
    told, rows = rows_of(directory)
    assert told["kept"] == "default"
    assert rows["int8"]["refused"] == "loses 1.30 points of accuracy, --max-drop is 1"
    assert rows["int8"]["p50_ms"] == pytest.approx(1.0, rel=0.01)


@pytest.mark.slow
def test_a_fusion_that_the_audit_refuses_is_told_and_not_kept(request_for, tmp_path, monkeypatch):
    def audit(proto, arch):
        if any(item.data_type == TensorProto.INT8 for item in proto.graph.initializer):
            raise ExportError("fused node 'x' computes layer 0 with 4 heads, the Arch says 3")
        return 0

    monkeypatch.setattr(tuning, "check_fused_attention", audit)
    timer = Timer({"int8": 1.0})
    directory = tune(request_for("onnxruntime-cpu@1x8"), tmp_path, timer=timer)
    told, rows = rows_of(directory)
    assert told["kept"] == "default"
    assert "computes layer 0 with 4 heads" in rows["int8"]["refused"]
    assert "p50_ms" not in rows["int8"]  # what is wrong is not even timed


@pytest.mark.slow
def test_openvino_fixes_a_shape_only_where_that_was_asked_for(request_for, tmp_path):
    fixed = "one shape, 2x16"
    for may_fix, kept in ((False, "default"), (True, fixed)):
        folder = tmp_path / str(may_fix)
        folder.mkdir()
        request = request_for("openvino@2x16", may_fix_shape=may_fix)
        directory = tune(request, folder, timer=Timer({fixed: 5.0}))
        told, rows = rows_of(directory)
        assert told["kept"] == kept
    assert rows[fixed]["refused"] is None
    assert check_export(directory).options["seq_len"] == [16, 16, 16]


@pytest.mark.slow
def test_a_graph_of_one_text_is_kept_only_where_that_was_asked_for(tiny_run, tmp_path, monkeypatch):
    timer = Timer({"one text at a time": 5.0})
    monkeypatch.setattr(
        exporting, "tuned", lambda request, folder: tune(request, folder, timer=timer)
    )
    asked = {"tune": True, "target": "ort@1x8"}
    both = [
        api.export(tiny_run, format="onnx", output=tmp_path / str(index), **asked, **more)
        for index, more in enumerate([{}, {"batch_size": (1, 1, 1)}])
    ]
    told, rows = rows_of(both[0])
    assert told["kept"] == "default"
    words = "it computes one text at a time; allow it with --batch-size 1"
    assert rows["one text at a time"]["refused"] == words
    assert read_tuning(both[1])["kept"] == "one text at a time"
    command = rebuild_command(check_export(both[1]))
    assert command.endswith("--format onnx --tune --for onnxruntime-cpu@1x8 --batch-size 1:1:1")


@pytest.mark.slow
def test_a_busy_machine_is_no_place_to_choose(request_for, tmp_path):
    load = Load(
        window_s=9.0, cores=2, own_cores=1.0, others_cores=0.9, stolen_cores=0.0, switches_per_s=9.0
    )
    with pytest.raises(EnvironmentProblem, match=r"too busy.*0\.9 of 2 cores.*nothing was chosen"):
        tune(request_for("onnxruntime-cpu@1x8"), tmp_path, timer=Timer({}, load))


@pytest.mark.parametrize("point", ["tensorrt@1x128", "1x128", "openvino@1xtask"])
def test_a_target_that_cannot_be_tuned_for_says_what_can(point):
    words = f"--tune --for {point}: allowed: RUNTIME@BATCHxLENGTH with a number of tokens"
    with pytest.raises(UsageError, match=re.escape(words)):
        check_target(OperatingPoint.parse(point))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"tune": True}, "--tune needs --for RUNTIME@BATCHxLENGTH"),
        ({"target": "ort@1x8"}, "--for ort@1x8 says where --tune measures; give both"),
        ({"max_drop": 1.0}, "--max-drop bounds what --tune may lose; give both"),
        (
            {"tune": True, "target": "openvino@1x8"},
            "--for openvino@1x8 opens exports of format openvino, got --format onnx",
        ),
        (
            {"tune": True, "target": "ort@1x8", "precision": "int8"},
            "--precision is what --tune chooses; leave one of them out",
        ),
        (
            {"tune": True, "target": "ort@1x8", "opset": 20},
            "--opset is what --tune chooses; leave one of them out",
        ),
        (
            {"tune": True, "target": "ort@1x8", "seq_len": (16, 16, 16)},
            "measures one shape; give --batch-size 1 --seq-len 8",
        ),
        ({"tune": True, "target": "ort@1x8", "max_drop": -1.0}, "--max-drop is -1, allowed: 0 and"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(asked, words, tiny_run, tmp_path):
    with pytest.raises(UsageError, match=re.escape(words)):
        api.export(tiny_run, format="onnx", output=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_bound_without_labels_is_refused(tiny_run, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a film\n", encoding="utf-8")
    with pytest.raises(UsageError, match="--max-drop judges by held-out examples with labels"):
        api.export(
            tiny_run,
            format="onnx",
            calibration=texts,
            tune=True,
            target="ort@1x8",
            max_drop=1.0,
            output=tmp_path / "out",
        )


@pytest.mark.slow
def test_what_was_tuned_is_exported_printed_and_obeyed(tiny_run, tmp_path, monkeypatch):
    timer = Timer({"default; threads do not spin": 5.0})
    monkeypatch.setattr(
        exporting, "tuned", lambda request, folder: tune(request, folder, timer=timer)
    )
    directory = api.export(
        tiny_run, format="onnx", tune=True, target="ort@1x8", output=tmp_path / "onnx"
    )
    printed = exporting.exported({"onnx": directory})["onnx"]
    assert printed["tuning"]["kept"] == "default; threads do not spin"
    assert {path.name for path in tmp_path.iterdir()} == {"onnx"}
    with open_runner(directory, "onnxruntime-cpu") as runner:
        options = runner._session._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_of_what_is_not_surely_slower_the_simplest_is_chosen():
    assert choose(samples_of({"default": 10.0, "b": 9.9, "c": 9.85}), ["default", "b", "c"]) == (
        "default"
    )
    assert choose(samples_of({"default": 10.0, "b": 9.0, "c": 8.95}), ["default", "b", "c"]) == "b"
    # Noise that could be a gain is none.
    noisy = samples_of({"default": 10.0, "b": 9.0}, noise=0.3)
    assert choose(noisy, ["default", "b"]) == "default"
    assert choose(samples_of({"default": 10.0, "b": 5.0, "c": 3.0}), ["default", "b"]) == "b"


def test_rows_tell_the_ratio_with_its_interval_fastest_first():
    samples = samples_of({"default": 10.0, "b": 5.0})
    rows = [timed_row(samples, name, "default") for name in ("default", "b")]
    fast = fastest_first([{"candidate": "refused"}, rows[0], rows[1]])
    assert [row.get("p50_ms") for row in fast] == [
        pytest.approx(5.0, rel=0.01),
        pytest.approx(10.0, rel=0.01),
        None,
    ]
    assert fast[0]["ratio_to_default_low"] <= 2.0 <= fast[0]["ratio_to_default_high"] * 1.01
