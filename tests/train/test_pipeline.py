"""The whole training pipeline on tiny models: every stage, every kind of task."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch
from transformers import BertConfig, BertModel

from cofi_deploy import load
from cofi_deploy.arch import LayerArch
from cofi_deploy.artifacts import write_json
from cofi_deploy.config import AUTO_ALIGN
from cofi_deploy.errors import BudgetError, CheckpointError, ConfigError
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.train.distill import LayerProjection
from cofi_deploy.train.stages import finetune_stage
from cofi_deploy.train.teacher import LiveTeacher
from tests.builders import random_model

STAGES = ["teacher", "distill", "prune-0.5", "prune-0.8", "finetune-0.5", "finetune-0.8"]


def test_the_run_directory_holds_teacher_and_models_and_no_working_files(finished_run):
    names = {path.name for path in finished_run.directory.iterdir()}
    assert names == {"metrics.jsonl", "model", "models", "run.json", "teacher"}
    assert [path.name for path in (finished_run.directory / "models").iterdir()] == ["0.5"]


def test_run_json_lists_every_stage_with_its_metric_and_speed(finished_run):
    stages = finished_run.json["stages"]
    assert list(stages) == STAGES
    for results in stages.values():
        assert 0.0 <= results["metric"] <= 1.0
        assert results["metric"] == results["accuracy"]
        assert results["samples_per_s"] > 0


def test_the_report_scores_teacher_and_models_on_the_validation_split(finished_run):
    report = finished_run.report
    assert report["metric_name"] == "accuracy"
    assert report["examples"] == 24
    assert report["teacher"]["realized_sparsity"] == 0.0
    assert [entry["directory"] for entry in report["models"]] == ["models/0.5", "model"]
    assert [entry["target_sparsity"] for entry in report["models"]] == [0.5, 0.8]


@pytest.mark.parametrize(("directory", "target"), [("models/0.5", 0.5), ("model", 0.8)])
def test_the_realized_sparsity_is_the_target_up_to_one_ffn_unit(finished_run, directory, target):
    arch = load(finished_run.directory / directory).arch
    one_unit = (2 * arch.hidden + 1) / arch.dense.prunable_parameters
    assert abs(arch.sparsity - target) <= one_unit


def test_models_answer_and_carry_the_labels_of_the_task(finished_run):
    model = load(finished_run.directory / "model")
    tokenizer = load_tokenizer(finished_run.directory / "model")
    logits = model(**tokenizer("a good film", return_tensors="pt")).logits
    assert logits.shape == (1, 2)
    assert torch.isfinite(logits).all()
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_metrics_jsonl_has_each_step_of_each_stage_once(finished_run):
    logged = [(line["stage"], line["step"], line.get("split")) for line in finished_run.metrics]
    assert len(set(logged)) == len(logged)
    assert [stage for stage in STAGES if any(entry[0] == stage for entry in logged)] == STAGES


def test_metrics_jsonl_has_what_training_curves_are_drawn_from(finished_run):
    logged = [line for line in finished_run.metrics if "split" not in line]
    for line in logged:
        if line["stage"] == "teacher":
            continue
        assert {"loss", "loss_prediction", "loss_layer"} <= line.keys()
        assert line["teacher_layers"] == [2, 3]
        assert len(line["matched_layers"]) == 2
        assert all(0 <= layer < 3 for layer in line["matched_layers"])
        if line["stage"].startswith("prune"):
            assert 0 <= line["expected_sparsity"] <= 1
            assert 0 <= line["realized_sparsity"] <= 1
            assert {"target_sparsity", "lambda_linear", "lambda_quadratic"} <= line.keys()
            assert "loss_lagrangian" in line
    assert any("realized_sparsity" in line for line in logged)


def test_a_given_teacher_is_taken_instead_of_trained(finished_run, train_run, tmp_path):
    given = finished_run.directory / "teacher"
    run = train_run(tmp_path, teacher=given, sparsities=(0.6,), distill_epochs=0.0)
    assert list(run.json["stages"]) == ["prune-0.6", "finetune-0.6"]
    assert run.report["teacher"] == finished_run.report["teacher"]
    ours, theirs = load(run.directory / "teacher"), load(given)
    for (name, mine), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other), name


def test_the_last_of_a_family_is_bit_for_bit_what_a_run_of_its_own_gives(
    finished_run, train_run, tmp_path
):
    run = train_run(tmp_path, teacher=finished_run.directory / "teacher", sparsities=(0.8,))
    assert run.json["stages"].keys() == {"distill", "prune-0.8", "finetune-0.8"}
    alone, member = load(run.directory / "model"), load(finished_run.directory / "model")
    assert alone.arch == member.arch
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, member.state_dict()[name]), name


def test_a_cached_and_a_live_teacher_lead_to_the_same_model(finished_run, train_run, tmp_path):
    few = {
        "teacher": finished_run.directory / "teacher",
        "sparsities": (0.6,),
        "distill_epochs": 0.0,
        "dropout": 0.0,
    }
    cached = train_run(tmp_path / "cached", **few)
    live = train_run(tmp_path / "live", cache_gib=0.0, **few)
    assert cached.json["teacher_cache"] is True
    assert live.json["teacher_cache"] is False
    one, other = load(cached.directory / "model"), load(live.directory / "model")
    assert one.arch == other.arch
    for (name, mine), theirs in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=5e-3, rtol=0.0, msg=name)


def test_the_cache_is_decided_once_in_the_life_of_a_run(make_pipeline, tmp_path, capfd):
    write_json(tmp_path / "run.json", {"stages": {}, "teacher_cache": False})
    report = make_pipeline(tmp_path, sparsities=(0.6,)).train()
    assert len(report["models"]) == 1
    assert "teacher-cache" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("task", "metric"),
    [("stsb", "pearson"), ("squad", "f1"), ("token-classification", "f1")],
    ids=["regression", "qa", "tokens"],
)
def test_regression_and_question_answering_pass_every_stage(train_run, tmp_path, task, metric):
    run = train_run(tmp_path, task, sparsities=(0.7,), prune_epochs=0.2, finetune_epochs=0.2)
    assert list(run.json["stages"]) == ["teacher", "distill", "prune-0.7", "finetune-0.7"]
    assert run.report["metric_name"] == metric
    model = load(run.directory / "model")
    assert abs(model.arch.sparsity - 0.7) < 0.005
    assert load(run.directory / "teacher").kind == model.kind


def test_without_fine_tuning_the_cut_model_is_the_result(finished_run, train_run, tmp_path):
    run = train_run(
        tmp_path,
        teacher=finished_run.directory / "teacher",
        sparsities=(0.6,),
        finetune_epochs=0.0,
    )
    assert run.json["stages"]["finetune-0.6"] == {}
    assert "alignment" not in run.json  # nothing was asked for
    assert abs(load(run.directory / "model").arch.sparsity - 0.6) < 0.005


def test_an_aligned_run_ends_with_widths_that_are_multiples(train_run, tiny_bert, tmp_path):
    wide = tmp_path / "wide"  # fine enough for a step of 16 units
    shutil.copytree(tiny_bert, wide)
    sizes = json.loads((wide / "config.json").read_text()) | {"intermediate_size": 640}
    BertModel(BertConfig(**sizes)).save_pretrained(wide)
    run = train_run(
        tmp_path / "run", model=wide, sparsities=(0.6,), distill_epochs=0.0, align="auto"
    )
    arch = load(run.directory / "model").arch
    assert {arch.hidden % AUTO_ALIGN, *(layer.ffn % AUTO_ALIGN for layer in arch.layers)} == {0}
    assert abs(arch.sparsity - 0.6) < 0.005
    # What alignment changed is told: sizes, and the accuracy of both cuts before fine-tuning.
    told = run.json["alignment"]["0.6"]
    assert (told["multiple"], told["split"]) == (AUTO_ALIGN, "selection")
    before, after = told["without"], told["with"]
    assert (after["hidden"], after["ffn"]) == (arch.hidden, [layer.ffn for layer in arch.layers])
    assert any(width % AUTO_ALIGN for width in (before["hidden"], *before["ffn"]))
    for each in (before, after):
        assert abs(each["realized_sparsity"] - 0.6) < 0.005
        assert 0.0 <= each["metric"] <= 1.0


def test_too_coarse_an_alignment_is_refused_before_anything_is_trained(make_pipeline, tmp_path):
    with pytest.raises(BudgetError, match="--align is 32, but so many FFN units are"):
        make_pipeline(tmp_path, align=32)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_sparsity_out_of_reach_is_refused_before_anything_is_trained(make_pipeline, tmp_path):
    with pytest.raises(BudgetError, match=re.escape("target sparsity is 0.9999")):
        make_pipeline(tmp_path, sparsities=(0.9999,))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_pruned_teacher_is_refused(finished_run, make_pipeline, tmp_path):
    pipeline = make_pipeline(tmp_path, teacher=finished_run.directory / "model")
    with pytest.raises(ConfigError, match="is pruned already; give a dense checkpoint"):
        pipeline.train()


def test_a_teacher_of_another_task_is_refused(finished_run, make_pipeline, tmp_path):
    pipeline = make_pipeline(tmp_path, "stsb", teacher=finished_run.directory / "teacher")
    words = re.escape("does text-classification with labels ['negative', 'positive'], but task")
    with pytest.raises(ConfigError, match=words):
        pipeline.train()


def test_a_checkpoint_of_other_settings_is_refused(make_pipeline, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    write_json(tmp_path / "checkpoint" / "state.json", {"stage": "prune-0.123", "step": 3})
    with pytest.raises(CheckpointError, match=re.escape("is of stage 'prune-0.123', but these")):
        make_pipeline(tmp_path).train()


def test_leftovers_of_a_killed_writer_are_swept_away(make_pipeline, tmp_path):
    (tmp_path / ".cache.abc.tmp").mkdir()
    (tmp_path / ".cache.abc.tmp" / "states.npy").write_bytes(b"half")
    (tmp_path / ".run.json.xyz.tmp").write_bytes(b"{")
    make_pipeline(tmp_path, sparsities=(0.6,)).train()
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_that_is_resumed_only_scores_again(finished_run, train_run, tmp_path):
    shutil.copytree(finished_run.directory, tmp_path / "again")
    again = train_run(tmp_path / "again")
    assert again.report == finished_run.report
    assert again.metrics == finished_run.metrics


@pytest.mark.parametrize(
    ("rule", "heads", "factor"),
    [("constant", 1, 1.0), ("by-size", 4, 1.0), ("by-size", 1, None), ("by-size", 0, 0.02**-0.5)],
)
def test_a_small_model_learns_faster_by_size(make_pipeline, tmp_path, rule, heads, factor):
    pipeline = make_pipeline(tmp_path, finetune_lr=1e-4, finetune_lr_rule=rule)
    dense = pipeline.arch
    layer = dense.layers[0] if heads == 4 else LayerArch(heads=heads, ffn=0)
    arch = dataclasses.replace(dense, layers=(layer,) * len(dense.layers))
    model = random_model("text-classification", arch)
    stage = finetune_stage(
        pipeline.setup,
        model,
        LayerProjection(arch.hidden),
        LiveTeacher(model, (1,)),
        target=pipeline.settings.targets[-1],
    )
    expected = factor or (1.0 - arch.sparsity) ** -0.5
    rates = [group["peak_lr"] for group in stage.optimizers["weights"].param_groups]
    assert rates == pytest.approx([1e-4 * expected] * 2)
