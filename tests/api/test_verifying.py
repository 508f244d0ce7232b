"""`api.verify` and `api.bench`: what is compared with what, and where the result goes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cofi_deploy import api
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.cli import main
from cofi_deploy.errors import EnvironmentProblem, UsageError
from cofi_deploy.serve import runner_triton
from cofi_deploy.serve.runner import availability

QUICK = {"points": ("1x8",), "threads": 1, "min_repeats": 3, "max_seconds": 0.0}


def test_two_models_outside_of_a_run_need_a_task(own_run, tmp_path):
    outside = [(own_run / name).rename(tmp_path / name) for name in ("teacher", "model")]
    with pytest.raises(UsageError, match=r"have no task; name it with --task"):
        api.verify(outside)


def test_three_models_are_for_bench(tiny_run):
    with pytest.raises(
        UsageError, match=r"one dense and one pruned model, or a run's, got 3; .* bench"
    ):
        api.verify([tiny_run] * 3)


def test_a_required_runtime_that_is_missing_is_the_machines_fault(tiny_run):
    reason = availability("tensorrt")
    if reason is None:
        pytest.skip("TensorRT works here")
    with pytest.raises(EnvironmentProblem) as caught:
        api.verify([tiny_run], require=("tensorrt",))
    assert str(caught.value) == f"--require tensorrt: {reason}"
    assert caught.value.exit_code == 3


def test_an_unknown_runtime_is_refused_before_anything_is_exported(tiny_run, tmp_path):
    with pytest.raises(
        UsageError, match=r"runtime is 'onnxruntime-gpu'.*did you mean 'onnxruntime-c"
    ):
        api.verify(
            [tiny_run], runtimes=("onnxruntime-cpu", "onnxruntime-gpu"), exports_root=tmp_path / "e"
        )
    assert not (tmp_path / "e").exists()


def test_the_card_of_the_model_gets_the_interval(own_run):
    card = own_run / "model" / "README.md"
    assert "paired bootstrap" not in card.read_text("utf-8")
    result = api.verify([own_run / "model"], runtimes=("torch",), points=(), output=own_run)
    (row,) = [row for row in result.document["rows"] if row["model"] != "dense"]
    lost = 100 * (row["metric"] - row["metric_dense"])
    assert f"minus the teacher is {lost:+.2f} points" in card.read_text("utf-8")
    assert "paired bootstrap" not in (own_run / "models/0.5/README.md").read_text("utf-8")


# Load time and memory are measured in processes of their own: hence the mark `slow` below.
@pytest.fixture(scope="module")
def verified(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verified")
    result = api.verify(
        [tiny_run],
        runtimes=("torch", "onnxruntime-cpu"),
        limit=10,
        min_speedup=1e9,
        output=out,
        exports_root=out / "exports",
        **QUICK,
    )
    assert not result.ok
    return out


@pytest.mark.slow
def test_compares_with_the_teacher_of_the_run(verified, tiny_run):
    document = read_json(verified / "verify.json")
    rows = document["rows"]
    assert {row["model"] for row in rows} == {"dense", "s50", "s80"}
    assert {row["runtime"] for row in rows} == {"torch", "onnxruntime-cpu"}
    assert {row["recipe"] for row in rows} == {"balanced"}
    for entry in read_json(tiny_run / "run.json")["result"]["models"]:
        label = f"s{100 * entry['target_sparsity']:g}"
        own = [row for row in rows if row["model"] == label]
        assert {row["target_sparsity"] for row in own} == {entry["target_sparsity"]}
        assert {row["realized_sparsity"] for row in own} == {entry["realized_sparsity"]}
    assert document["judged"] == "s80"


@pytest.mark.slow
def test_onnx_runtime_predicts_what_pytorch_does(verified):
    rows = read_json(verified / "verify.json")["rows"]
    scored = [row for row in rows if "agreement" in row and row["runtime"] != "torch"]
    assert [row["agreement"] for row in scored] == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_missing_exports_are_made_below_the_root(verified):
    names = {path.relative_to(verified).as_posix() for path in verified.glob("exports/*/*")}
    assert names == {
        "exports/sst2-tiny/onnx",
        "exports/sst2-tiny-0.5/onnx",
        "exports/sst2-tiny-teacher/onnx",
    }


@pytest.mark.slow
@pytest.mark.parametrize("member", ["models/0.5", "model"])
def test_a_member_that_is_named_is_measured_and_judged_alone(member, tiny_run, tmp_path):
    document = api.verify(
        [tiny_run / member],
        runtimes=("torch",),
        limit=10,
        max_drop=100,
        output=tmp_path,
        exports_root=tmp_path / "exports",
        **{**QUICK, "points": ()},
    ).document
    assert (document["members"], document["judged"]) == (["pruned"], "pruned")
    targets = {row.get("target_sparsity") for row in document["rows"] if row["model"] == "pruned"}
    assert targets == {0.5 if member == "models/0.5" else 0.8}


@pytest.mark.slow
def test_targets_of_a_run_are_about_its_main_model(tiny_run, tmp_path):
    result = api.verify(
        [tiny_run],
        runtimes=("torch",),
        limit=10,
        max_drop=100,
        output=tmp_path,
        exports_root=tmp_path / "exports",
        **{**QUICK, "points": ()},
    )
    assert result.document["judged"] == "s80"
    assert len(result.verdict.claims) == 1


@pytest.mark.slow
def test_leaves_a_report(verified):
    assert "sst2" in (verified / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_bench_takes_the_first_as_the_baseline(verified, tiny_run):
    result = api.bench(
        [tiny_run / "teacher", tiny_run / "models" / "0.5", tiny_run],
        runtimes=("onnxruntime-cpu",),
        exports_root=verified / "exports",
        **QUICK,
    )
    timed = [row for row in result.rows if "p50_ms" in row]
    assert [row["model"] for row in timed] == [
        "sst2-tiny-teacher",
        "sst2-tiny-0.5",
        "sst2-tiny",
    ]
    assert ["speedup" in row for row in timed] == [False, True, True]


@pytest.mark.slow
def test_bench_needs_no_task_for_any_length_and_takes_texts_from_the_run(verified, tiny_run):
    result = api.bench(
        [tiny_run / "teacher", tiny_run],
        runtimes=("torch",),
        fresh_process=False,
        exports_root=verified / "exports",
        **{**QUICK, "points": ("1x3", "2x17", "3xtask")},
    )
    shapes = [(row["batch_size"], row["seq_len"]) for row in result.rows[1::2]]
    assert shapes == [(1, 3), (2, 17), (3, "task")]
    texts = [row for row in result.rows if row["seq_len"] == "task"]
    assert all(row["tokens_mean"] > 2 for row in texts)
    assert all(0 <= row["padding_share"] < 1 for row in texts)


@pytest.mark.slow
def test_the_command_writes_conditions_notes_and_what_was_skipped(tiny_run, tmp_path):
    # Outside of a run nothing knows the task, so that its lengths cannot be timed.
    model = shutil.copytree(tiny_run / "model", tmp_path / "model")
    output = tmp_path / "bench.json"
    arguments = [str(model), "--runtime", "torch", "--runtime", "tensorrt", "--threads", "1"]
    arguments += ["--point", "1x5", "--point", "1xtask", "--repeats", "2", "--max-seconds", "0"]
    done = CliRunner().invoke(main, ["bench", *arguments, "--output", str(output)])
    assert done.exit_code == 0, done.output
    document = read_json(output)
    assert [row["seq_len"] for row in document["rows"]] == [5]
    assert document["conditions"]["cpu_count"] >= 1
    assert [skipped["runtime"] for skipped in document["skipped"]] == ["tensorrt"]
    assert any(note.startswith("torch@1xtask was skipped") for note in document["notes"])
    assert [samples["rounds"] for samples in document["latency_samples"]] == [2]


@pytest.mark.slow
def test_a_repository_of_another_vocabulary_is_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_triton, "unavailable", lambda _: None)
    monkeypatch.setattr(runner_triton, "prepare", lambda _: None)
    repository = tmp_path / "sst2-tiny-teacher" / "triton"
    api.export(tiny_run / "teacher", format="triton", output=repository)
    manifest = read_json(repository / "export.json")
    whole = manifest["arch"]["vocab_size"]
    manifest["arch"]["vocab_size"] = whole // 2
    write_json(repository / "export.json", manifest)
    words = (
        f"{str(repository)!r} serves a vocabulary of {whole // 2} pieces, the model has {whole}; "
        f"export it again: cofi-deploy export {tiny_run / 'teacher'} --format triton "
        f"--output {repository}"
    )
    with pytest.raises(UsageError, match=re.escape(words)):
        api.verify([tiny_run], runtimes=("triton",), exports_root=tmp_path, **QUICK)
