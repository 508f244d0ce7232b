"""`api.train`: what a run directory says, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from cofi_deploy import api
from cofi_deploy.api.run_task import TaskArguments, task_of_run
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.config import TrainSettings
from cofi_deploy.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DivergedError,
    EnvironmentProblem,
    HubUnreachableError,
    UsageError,
)
from cofi_deploy.loading import load
from cofi_deploy.train.pipeline import Pipeline


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ctrl-C comes when training begins; the list gets the states of the runs at that moment."""
    states: list[str] = []

    def stop(pipeline: Pipeline) -> None:
        states.append(read_json(pipeline.run / "run.json")["state"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "train", stop)
    return states


def change(run: Path, **values: object) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), **values})


def test_run_json_says_all_that_is_needed_to_repeat_the_run(tiny_run, tiny_bert, tiny_data):
    document = read_json(tiny_run / "run.json")
    assert document["state"] == "done"
    assert document["error"] is None
    assert document["model"] == str(tiny_bert)
    assert document["teacher"] is None
    assert document["task"]["name"] == "sst2"
    assert document["task"]["data_dir"] == str(tiny_data)
    assert TrainSettings.from_json(document["settings"]).sparsities == (0.5, 0.8)
    assert document["precision"] == "fp32"
    assert re.fullmatch("[0-9a-f]{64}", document["data_fingerprint"])
    assert {"python", "torch", "transformers"} <= set(document["versions"])
    assert document["machine"]["cores"] >= 1
    assert document["wall_s"] > 0
    assert all(stage["samples_per_s"] > 0 for stage in document["stages"].values())
    assert [entry["directory"] for entry in document["result"]["models"]] == ["models/0.5", "model"]


def test_every_model_has_a_card_with_its_own_numbers(tiny_run):
    for entry in read_json(tiny_run / "run.json")["result"]["models"]:
        card = (tiny_run / entry["directory"] / "README.md").read_text("utf-8")
        assert f"{entry['encoder_parameters']:,}" in card
        assert f"{entry['metric']:.4f}" in card


def test_the_task_of_a_run_is_found_again(tiny_run):
    arguments = task_of_run(tiny_run)
    assert arguments.max_length == 48
    assert arguments.load().fingerprint() == read_json(tiny_run / "run.json")["data_fingerprint"]


def test_a_run_that_is_done_is_not_resumed(tiny_run):
    with pytest.raises(UsageError, match=re.escape(f"{str(tiny_run)!r} is done already")):
        api.train(resume=tiny_run)


def test_an_unfinished_run_is_resumed_to_the_same_result(own_run):
    result = read_json(own_run / "run.json")["result"]
    change(own_run, state="failed", error="the disk was full", result=None)
    assert api.train(resume=own_run) == own_run
    document = read_json(own_run / "run.json")
    assert (document["state"], document["error"]) == ("done", None)
    assert document["result"] == result


def test_resuming_with_changed_data_is_refused(own_run, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    with (data / "SST-2" / "train.tsv").open("a") as stream:
        stream.write("one more film\t1\n")
    document = read_json(own_run / "run.json")
    change(own_run, state="running", task={**document["task"], "data_dir": str(data)})
    with pytest.raises(UsageError, match="has changed since the run began"):
        api.train(resume=own_run)


def test_a_run_json_that_is_of_no_training_run_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {"state": "running"})
    with pytest.raises(CheckpointError, match="has no 'settings'"):
        api.train(resume=tmp_path)


def test_settings_of_another_version_are_named(own_run):
    settings = read_json(own_run / "run.json")["settings"]
    change(own_run, state="failed", settings={**settings, "student_lrr": 1.0})
    with pytest.raises(ConfigError, match=r"unknown key 'student_lrr'.*did you mean 'student_lr'"):
        api.train(resume=own_run)


def test_resuming_what_is_no_run_says_so(tmp_path):
    with pytest.raises(UsageError, match=re.escape(f"{str(tmp_path)!r} is no run directory")):
        api.train(resume=tmp_path)


def test_a_run_that_diverges_is_failed_and_says_why(train_tiny, tmp_path):
    with pytest.raises(DivergedError):
        train_tiny(tmp_path / "run", settings={"teacher_lr": 1e30})
    document = read_json(tmp_path / "run" / "run.json")
    assert document["state"] == "failed"
    assert "teacher_lr" in document["error"]


def test_a_run_that_ctrl_c_stopped_says_so_and_how_to_go_on(train_tiny, tmp_path, interrupted):
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run")
    document = read_json(tmp_path / "run" / "run.json")
    assert interrupted == ["running"]
    assert document["state"] == "failed"
    assert document["error"] == "interrupted; continue with --resume"
    assert document["wall_s"] >= 0


def test_an_output_that_holds_a_run_is_refused(train_tiny, own_run):
    before = (own_run / "run.json").read_bytes()
    with pytest.raises(UsageError, match=re.escape(f"continue it with --resume {own_run}")):
        train_tiny(own_run)
    assert (own_run / "run.json").read_bytes() == before


def test_an_output_that_holds_something_else_is_refused(train_tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex', expected an empty or a new"):
        train_tiny(tmp_path)


def test_an_output_below_a_file_is_refused(train_tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=re.escape(f"into {str(tmp_path / 'file')!r}")):
        train_tiny(tmp_path / "file" / "run")


def test_a_budget_of_parameters_is_met(train_tiny, tiny_run, tmp_path):
    total = read_json(tiny_run / "run.json")["result"]["teacher"]["encoder_parameters"]
    run = train_tiny(
        tmp_path / "run",
        parameters=total // 3,
        teacher=tiny_run / "teacher",
        settings={"distill_epochs": 0.0, "finetune_epochs": 0.0},
    )
    (entry,) = read_json(run / "run.json")["result"]["models"]
    assert abs(entry["encoder_parameters"] - total // 3) <= 0.005 * total


def test_few_examples_are_scored_where_few_are_asked_for(train_tiny, tiny_run, tmp_path):
    run = train_tiny(
        tmp_path / "run",
        teacher=tiny_run / "teacher",
        settings={"sparsities": [0.6], "distill_epochs": 0.0, "validation_limit": 8},
    )
    document = read_json(run / "run.json")
    assert document["result"]["examples"] == 8
    # Eighths: the held-out slice is as small.
    assert all(8 * stage["metric"] % 1 == 0 for stage in document["stages"].values())


def test_more_parameters_than_there_are_is_refused(train_tiny, tmp_path):
    with pytest.raises(
        UsageError, match=r"--params is 999999999, but the encoder .* ask for fewer"
    ):
        train_tiny(tmp_path / "run", parameters=999_999_999)


def test_a_budget_out_of_reach_is_refused_before_anything_is_written(train_tiny, tmp_path):
    with pytest.raises(BudgetError, match=re.escape("target sparsity is 0.9999")):
        train_tiny(tmp_path / "run", settings={"sparsities": [0.9999]})
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_another_task_is_refused_before_anything_is_written(
    train_tiny, tiny_run, tmp_path
):
    with pytest.raises(ConfigError, match=r"does text-classification .* 'stsb' needs text-regr"):
        train_tiny(tmp_path / "run", "stsb", teacher=tiny_run / "teacher")
    assert not list(tmp_path.iterdir())


def test_a_teacher_with_other_labels_is_refused_before_anything_is_written(
    train_tiny, tiny_run, tmp_path
):
    rows = [f"word {at},{('red', 'green')[at % 2]}" for at in range(60)]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(ConfigError, match=r"\['negative', 'positive'\], but task"):
        train_tiny(
            tmp_path / "run",
            "text-classification",
            data=str(tmp_path / "own.csv"),
            data_dir=None,
            teacher=tiny_run / "teacher",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["own.csv"]


def test_without_a_model_the_student_starts_from_the_teacher(
    train_tiny, tiny_run, tmp_path, interrupted
):
    teacher = tiny_run / "teacher"
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", model=None, teacher=teacher)
    document = read_json(tmp_path / "run" / "run.json")
    assert document["model"] == document["teacher"] == str(teacher)


@pytest.mark.usefixtures("interrupted")
def test_length_and_seed_in_a_file_of_settings_reach_the_task(train_tiny, few_steps, tmp_path):
    (tmp_path / "settings.toml").write_text("max_length = 16\nseed = 0\n")
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", config=tmp_path / "settings.toml", overrides=few_steps)
    task = task_of_run(tmp_path / "run")
    assert (task.max_length, task.seed) == (16, 0)


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("sparsity", [0.5, (0.5, 0.7)], ids=["one", "family"])
def test_arguments_that_are_settings_have_the_names_of_the_flags(
    sparsity, train_tiny, few_steps, tmp_path
):
    others = {name: value for name, value in few_steps.items() if name != "sparsities"}
    with pytest.raises(KeyboardInterrupt):
        train_tiny(
            tmp_path / "run",
            overrides=others,
            sparsity=sparsity,
            seed=3,
            precision="fp32",
            max_length=24,
        )
    settings = read_json(tmp_path / "run" / "run.json")["settings"]
    expected = [0.5] if sparsity == 0.5 else [0.5, 0.7]
    assert settings["sparsities"] == expected
    assert (settings["seed"], settings["precision"], settings["max_length"]) == (3, "fp32", 24)


def test_a_wrong_setting_is_answered_before_any_data_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"seed is -1, allowed: 0 to"):
        api.train("sst2", data_dir=tmp_path / "nowhere", overrides={"seed": -1})


def test_without_a_network_model_and_data_are_both_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachableError) as caught:
        api.train("squad", model="nobody/nothing")
    assert "nobody/nothing" in str(caught.value)
    assert "--data-dir" in str(caught.value)


def test_the_default_directory_names_task_and_budget(
    train_tiny, interrupted, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(None)
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"sst2-s50-s80-\d{8}-\d{6}", run.name)
    assert interrupted == ["running"]


def test_models_of_a_run_open_with_load(tiny_run):
    assert load(tiny_run / "model").arch.sparsity > load(tiny_run / "models" / "0.5").arch.sparsity


def test_arguments_of_a_task_survive_json():
    arguments = TaskArguments(name="text-classification", data="a.csv", columns={"text": "body"})
    assert TaskArguments(**json.loads(json.dumps(vars(arguments)))) == arguments
