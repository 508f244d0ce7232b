"""`train --speedup --for`: what is refused, what is measured once, and the whole way to a model."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cofi_deploy import api
from cofi_deploy.api import speedup
from cofi_deploy.api.speedup import StructureTimer, Subject, table_for, write_table
from cofi_deploy.api.speedup_target import speedup_point
from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.config import TrainSettings
from cofi_deploy.errors import BudgetError, ConfigError, EnvironmentProblem, UsageError
from cofi_deploy.loading import load, load_tokenizer, read_dense_arch
from cofi_deploy.serve.latency import OperatingPoint, Samples
from cofi_deploy.serve.runner import physical_cores
from tests.made_up_clock import MadeUpClock, made_up_ms

POINT = "onnxruntime-cpu@1x16"


@pytest.fixture
def subject(tiny_bert: Path) -> Subject:
    return Subject(
        arch=read_dense_arch(tiny_bert),
        kind="text-classification",
        labels=("no", "yes"),
        tokenizer=load_tokenizer(tiny_bert),
    )


def asked(*speedups: float, point: str = POINT) -> TrainSettings:
    return TrainSettings(sparsities=(), speedups=speedups, speedup_for=point)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("onnxruntime-cpu", "operating point is 'onnxruntime-cpu', allowed: BATCHxLENGTH such as"),
        ("onnxruntime-cpu@128", "operating point is 'onnxruntime-cpu@128', allowed: BATCHxLENGTH"),
        ("onnxruntime-cpu@0x128", "operating point is 'onnxruntime-cpu@0x128', allowed"),
        ("onnxruntme@1x128", "runtime is 'onnxruntme', allowed: torch, onnxruntime-cpu"),
        ("1x128", "--speedup --for 1x128: allowed: RUNTIME@BATCHxLENGTH with a number of tokens"),
        ("openvino@1xtask", "--speedup --for openvino@1xtask: allowed: RUNTIME@BATCHxLENGTH"),
        ("torch@1x128", "one of the runtimes onnxruntime-cpu, onnxruntime-cuda, openvino, such as"),
        ("tensorrt@1x128", "--speedup --for tensorrt@1x128: allowed"),
    ],
)
def test_a_place_that_is_none_is_refused_with_those_that_are(text: str, words: str):
    with pytest.raises(UsageError, match=re.escape(words)):
        speedup_point(text)


def test_short_names_of_runtimes_are_known():
    assert str(speedup_point("ort@8x64")) == "onnxruntime-cpu@8x64"


def test_a_runtime_that_is_not_here_is_an_environment_problem(monkeypatch):
    monkeypatch.setattr("cofi_deploy.api.runtime_names.availability", lambda _: "no such wheel")
    with pytest.raises(EnvironmentProblem, match="--for openvino@1x8: no such wheel"):
        speedup_point("openvino@1x8")


def test_more_tokens_than_the_model_reads_are_refused(subject, tmp_path):
    words = "--for onnxruntime-cpu@1x128 has 128 tokens, but the model reads at most 64; name"
    with pytest.raises(UsageError, match=re.escape(words)):
        table_for(subject, asked(2.0, point="onnxruntime-cpu@1x128"), tmp_path)


def test_a_table_is_measured_once_and_found_again(subject, tmp_path):
    clock = MadeUpClock()
    table = table_for(subject, asked(2.0), tmp_path, time_in_turn=clock)
    write_table(table, tmp_path)
    measured = len(clock.timed)
    assert table_for(subject, asked(2.0), tmp_path, time_in_turn=clock) == table
    assert len(clock.timed) == measured
    assert (table.point, table.threads) == (POINT, physical_cores())
    assert {"runtime", "version", "threads", "cpu", "seq_len", "arch"} <= table.key.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": {"version": "0.0.1"}}, "is of another version, so it is measured again"),
        ({"hidden_sizes": []}, "missing or unknown entry"),
    ],
)
def test_a_table_of_another_version_or_form_is_measured_again(
    subject, tmp_path, caplog, changes, words
):
    clock = MadeUpClock()
    write_table(table_for(subject, asked(2.0), tmp_path, time_in_turn=clock), tmp_path)
    document = read_json(tmp_path / "latency_table.json")
    key = {**document["key"], **changes.pop("key", {})}
    write_json(tmp_path / "latency_table.json", {**document, "key": key, **changes})
    measured = len(clock.timed)
    with caplog.at_level(logging.WARNING):
        table_for(subject, asked(2.0), tmp_path, time_in_turn=clock)
    assert len(clock.timed) > measured
    assert words in caplog.text


def test_a_machine_too_busy_to_compare_is_refused_before_training(subject, tmp_path):
    words = r"other processes used 1\.8 of 2 cores; .*; nothing was trained"
    with pytest.raises(EnvironmentProblem, match=words):
        table_for(subject, asked(2.0), tmp_path, time_in_turn=MadeUpClock(others_cores=1.8))


def test_a_machine_that_others_use_is_told_and_noted(subject, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        table = table_for(subject, asked(2.0), tmp_path, time_in_turn=MadeUpClock(others_cores=0.8))
    words = "this machine is too busy to measure: other processes used 0.8 of 2 cores"
    assert words in caplog.text
    assert table.notes["busy"][0].startswith(words)


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("kind", ["text-classification", "question-answering"])
def test_structures_are_exported_opened_and_run_without_a_single_trained_weight(
    subject, runtime, kind
):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    runs: list[str] = []

    def timer(calls):
        for name, call in calls.items():
            call()
            runs.append(name)
        return Samples(ms={})

    arch = read_arch_without_sublayers(subject.arch)
    point = OperatingPoint(batch_size=2, seq_len=16, runtime=runtime)
    of_kind = Subject(arch=subject.arch, kind=kind, labels=(), tokenizer=subject.tokenizer)
    StructureTimer(point, of_kind, timer=timer)({"dense": subject.arch, "empty": arch})
    assert runs == ["dense", "empty"]


def read_arch_without_sublayers(arch: Arch) -> Arch:
    empty = [{"heads": 0, "ffn": 0}] * len(arch.layers)
    return Arch.from_json({**arch.to_json(), "layers": empty, "hidden": 5})


@pytest.fixture
def made_up_time(monkeypatch) -> list[str]:
    """Structures are exported, opened and run once, for real; the milliseconds are made up."""
    asked_for: list[str] = []
    for_real = StructureTimer.__call__

    def timed(self: StructureTimer, archs: Mapping[str, Arch]) -> Samples:
        for_real(self, archs)
        asked_for.extend(archs)
        return MadeUpClock(factor=1.2)(archs)

    def once(calls: Mapping[str, Any]) -> Samples:
        for call in calls.values():
            call()
        return Samples(ms={})

    monkeypatch.setattr(StructureTimer, "__call__", timed)
    monkeypatch.setattr(speedup, "_time", once)
    return asked_for


@pytest.fixture
def without_budget(few_steps) -> dict[str, Any]:
    changes = {"max_length": 48, "evaluations": 1, "distill_epochs": 0.0}
    return {name: value for name, value in few_steps.items() if name != "sparsities"} | changes


@pytest.mark.slow
def test_from_a_speedup_to_models_that_have_it_in_onnx_runtime(
    train_tiny, without_budget, made_up_time, tmp_path
):
    run = tmp_path / "run"
    train_tiny(run, overrides=without_budget, speedup=[1.5, 3.0], target=POINT)
    document = read_json(run / "run.json")
    names = ["teacher", "prune-1.5x", "prune-3x", "finetune-1.5x", "finetune-3x"]
    assert list(document["stages"]) == names
    entries = document["result"]["models"]
    assert [entry["directory"] for entry in entries] == ["models/1.5x", "model"]
    dense = made_up_ms(load(run / "teacher").arch)
    for entry, speedup_asked in zip(entries, (1.5, 3.0), strict=True):
        arch = load(run / entry["directory"]).arch
        assert dense / (1.2 * made_up_ms(arch)) == pytest.approx(speedup_asked, rel=0.05)
        assert entry["target_speedup"] == speedup_asked
        assert "target_sparsity" not in entry
        assert entry["latency"]["is_met"]
        assert entry["latency"]["for"] == POINT
        card = (run / entry["directory"] / "README.md").read_text("utf-8")
        assert f"Speedup: target {speedup_asked:g} in `{POINT}`, measured" in card
    assert read_json(run / "latency_table.json")["scale"] == pytest.approx(1.2, rel=0.01)
    logged = (run / "metrics.jsonl").read_text("utf-8")
    for key in ("target_speedup", "expected_speedup", "realized_speedup", "expected_sparsity"):
        assert f'"{key}"' in logged

    # Resumed, the table and what was measured of the cut are found where they were.
    made_up_time.clear()
    again = shutil.copytree(run, tmp_path / "again")
    write_json(again / "run.json", {**document, "state": "failed", "result": None})
    api.train(resume=again)
    assert read_json(again / "run.json")["result"] == document["result"]
    assert made_up_time == []


@pytest.mark.slow
def test_an_unreachable_speedup_is_refused_before_anything_is_trained(
    train_tiny, without_budget, made_up_time, tmp_path
):
    with pytest.raises(BudgetError, match=r"target speedup is 5000, but masks of .* reach 1 to "):
        train_tiny(tmp_path / "run", overrides=without_budget, speedup=5000, target=POINT)
    assert made_up_time
    assert not (tmp_path / "run").exists()


def test_two_budgets_and_half_a_budget_are_refused_before_anything_is_read(train_tiny, tmp_path):
    words = "sparsities is [0.5] and speedups is [2.0], allowed: one of them"
    with pytest.raises(ConfigError, match=re.escape(words)):
        train_tiny(tmp_path, overrides={}, sparsity=0.5, speedup=2.0, target=POINT)
    with pytest.raises(ConfigError, match=re.escape("speedups is [2.0] and speedup_for is ''")):
        train_tiny(tmp_path, overrides={}, speedup=2.0)
    with pytest.raises(ConfigError, match=re.escape("speedups is [] and speedup_for is 'ort@1x8'")):
        train_tiny(tmp_path, overrides={}, target="ort@1x8")
