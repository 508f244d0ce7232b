"""Settings: flag over file over recipe over default, and every problem named at once."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from cofi_deploy.config import AUTO_ALIGN, RECIPES, TrainSettings, load_recipe, resolve_settings
from cofi_deploy.errors import ConfigError

LARGE, SMALL = 100_000, 3_000


@pytest.fixture
def toml(tmp_path):
    """Write a file of settings."""

    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def resolved(**options):
    return resolve_settings(
        **{"training_rows": LARGE, "kind": "text-classification", "recipe": "paper", **options}
    )


@pytest.mark.parametrize("kind", ["text-classification", "text-regression", "question-answering"])
@pytest.mark.parametrize("rows", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_resolves_for_every_task(recipe, rows, kind):
    settings = resolve_settings(recipe=recipe, training_rows=rows, kind=kind)
    assert settings.sparsities == (0.95,)
    assert json.loads(json.dumps(settings.to_json()))["batch_size"] == settings.batch_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_table_of_a_recipe_applies_to_its_tasks(recipe):
    document = load_recipe(recipe)
    tables = {"small": (SMALL, "text-classification"), "question-answering": (LARGE, None)}
    for name, (rows, kind) in tables.items():
        settings = resolve_settings(recipe=recipe, training_rows=rows, kind=kind or name)
        for key, value in document.get(name, {}).items():
            assert getattr(settings, key) == value, f"[{name}] {key}"


def test_a_flag_wins_over_the_file_the_file_over_the_recipe_the_recipe_over_the_default(toml):
    path = toml("teacher_epochs = 7.0\nfinetune_epochs = 8.0\n")
    settings = resolved(config=path, overrides={"finetune_epochs": 9.0, "seed": None})
    assert settings.finetune_epochs == 9.0  # flag
    assert settings.teacher_epochs == 7.0  # file
    assert settings.prune_epochs == load_recipe("paper")["prune_epochs"]
    assert settings.seed == TrainSettings().seed


def test_the_file_wins_over_the_table_for_small_tasks_of_the_recipe(toml):
    assert resolved(training_rows=SMALL).warmup_epochs == 20.0
    path = toml("warmup_epochs = 1.5\n")
    assert resolved(training_rows=SMALL, config=path).warmup_epochs == 1.5


@pytest.mark.parametrize(("rows", "epochs"), [(9_999, 2.0), (10_000, 1.0)])
def test_the_small_table_of_a_file_applies_below_ten_thousand_rows(toml, rows, epochs):
    path = toml("[train]\nteacher_epochs = 1.0\n[train.small]\nteacher_epochs = 2.0\n")
    assert resolved(config=path, training_rows=rows).teacher_epochs == epochs


def test_targets_for_verify_may_stand_in_the_same_file(toml):
    path = toml("[train]\nbatch_size = 4\n[verify]\nmax_drop = 1.5\n")
    assert resolved(config=path).batch_size == 4


def test_an_unknown_key_names_its_nearest_neighbour(toml):
    with pytest.raises(ConfigError, match=r"unknown key 'bacth_size'.*did you mean 'batch_size'"):
        resolved(config=toml("bacth_size = 4\n"))


def test_an_unknown_key_in_a_table_that_does_not_apply_is_found_too(toml):
    with pytest.raises(ConfigError, match="unknown key 'bacth_size'"):
        resolved(config=toml("[small]\nbacth_size = 4\n"))


def test_an_unknown_recipe_and_table_name_their_nearest_neighbours(toml):
    with pytest.raises(ConfigError, match=r"unknown recipe 'papr'.*did you mean 'paper'"):
        resolved(recipe="papr")
    with pytest.raises(ConfigError, match=r"unknown table \[smal\].*did you mean 'small'"):
        resolved(config=toml("[smal]\nbatch_size = 4\n"))


def test_a_key_beside_the_train_table_is_not_silently_ignored(toml):
    with pytest.raises(ConfigError, match=r"'batch_size' stands beside the table \[train\]"):
        resolved(config=toml("batch_size = 4\n[train]\nseed = 1\n"))


def test_all_problems_are_reported_at_once(toml):
    path = toml('bacth_size = 4\nseed = "x"\nteacher_lr = 0.0\n[smal]\na = 1\n')
    with pytest.raises(ConfigError) as caught:
        resolved(config=path, overrides={"precision": "fp8", "sparsities": [95]})
    for words in (
        "settings: ",
        "unknown table [smal]",
        "unknown key 'bacth_size'",
        "seed is 'x', expected int",
        "teacher_lr is 0.0, allowed: above 0",
        "precision is 'fp8', expected one of 'auto', 'fp32', 'bf16', 'fp16'",
        "sparsities is [95.0], allowed: one or more between 0 and 1",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_size = 1.5", "batch_size is 1.5, expected int"),
        ("batch_size = true", "batch_size is True, expected int"),
        ('teacher_lr = "2e-5"', "teacher_lr is '2e-5', expected float"),
        ("sparsities = 0.95", "sparsities is 0.95, expected a list of float"),
        ('mask_families = "heads"', "mask_families is 'heads', expected a list of str"),
        ('layer_matching = "best"', "layer_matching is 'best', expected one of 'free'"),
    ],
)
def test_a_wrong_type_is_named(toml, text, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        resolved(config=toml(text))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0, allowed: above 0"),
        ({"teacher_lr": float("nan")}, "teacher_lr is nan, allowed: a finite number"),
        ({"gate_init": float("inf")}, "gate_init is inf, allowed: a finite number"),
        ({"cache_gib": -1.0}, "cache_gib is -1.0, allowed: 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0, allowed: 0 up to but not 1"),
        ({"seed": 2**32}, f"seed is {2**32}, allowed: 0 to {2**32 - 1}"),
        ({"sparsities": ()}, "sparsities is [], allowed: one or more between 0 and 1"),
        ({"sparsities": (0.9, 0.6)}, "sparsities is [0.9, 0.6], expected ascending"),
        ({"sparsities": (0.6, 0.6)}, "sparsities is [0.6, 0.6], expected ascending"),
        ({"mask_families": ()}, "mask_families is empty, allowed: one or more of hidden"),
        ({"mask_families": ("head",)}, "unknown mask family 'head', allowed: hidden"),
        (
            {"prediction_weight": 0.0, "layer_weight": 0.0, "label_weight": 0.0},
            "are all 0: nothing to learn from",
        ),
        ({"warmup_epochs": 0.0, "prune_epochs": 0.0}, "are both 0: nothing would be pruned"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_out_of_range_is_named(values, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        TrainSettings(**values)


@pytest.mark.parametrize(
    "content", [b"batch_size = ", b"\xff\xfe", None], ids=["syntax", "encoding", "absent"]
)
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read settings from '.*settings.toml'"):
        resolved(config=path)


def test_every_setting_has_a_help_text():
    assert all(entry.metadata["help"] for entry in dataclasses.fields(TrainSettings))


@pytest.mark.parametrize(("asked", "multiple"), [("auto", AUTO_ALIGN), (16, 16), (None, 1)])
def test_a_multiple_that_is_left_to_us_is_decided_before_it_is_saved(asked, multiple):
    settings = resolved(overrides={"align": asked})
    assert settings.multiple == multiple
    assert settings.to_json()["align"] == multiple
    assert TrainSettings.from_json(settings.to_json()).multiple == multiple


@pytest.mark.parametrize("asked", [12, True, "16"])
def test_other_multiples_are_refused(asked):
    words = f"align is {asked!r}, expected one of 1, 8, 16, 32, 'auto'"
    with pytest.raises(ConfigError, match=re.escape(words)):
        resolved(overrides={"align": asked})


def test_settings_come_back_from_run_json():
    settings = resolved(overrides={"sparsities": [0.6, 0.9]})
    stored = json.loads(json.dumps(settings.to_json()))
    again = TrainSettings(
        **{key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    )
    assert again == settings


def test_a_budget_wins_over_a_budget_of_another_kind_below_it(toml):
    path = toml('speedups = [10]\nspeedup_for = "onnxruntime-cpu@1x128"\n')
    settings = resolved(config=path)
    assert (settings.sparsities, settings.speedups) == ((), (10.0,))
    assert [target.label for target in settings.targets] == ["x10"]
    flag = resolved(config=path, overrides={"sparsities": [0.9]})
    assert (flag.sparsities, flag.speedups, flag.speedup_for) == ((0.9,), (), "")
    faster = resolved(config=path, overrides={"speedups": [4, 20]})
    assert (faster.speedups, faster.speedup_for) == ((4.0, 20.0), "onnxruntime-cpu@1x128")


@pytest.mark.parametrize(
    ("speedups", "words"),
    [
        ([1.0], "speedups is [1.0], allowed: numbers above 1, such as 10"),
        ([10, 4], "speedups is [10.0, 4.0], expected ascending without repeats"),
        ([float("inf")], "speedups is [inf], allowed: numbers above 1"),
    ],
)
def test_speedups_that_are_none_are_refused(speedups, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        resolved(overrides={"speedups": speedups, "speedup_for": "openvino@1x8"})


def test_settings_of_a_run_before_there_were_speedups_are_read():
    old = {key: value for key, value in TrainSettings().to_json().items() if "speedup" not in key}
    assert TrainSettings.from_json(old) == TrainSettings()
