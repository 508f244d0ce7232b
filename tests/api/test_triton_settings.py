"""`--set KEY=VALUE` of an export to Triton."""

from __future__ import annotations

import re

import pytest

from cofi_deploy import api
from cofi_deploy.api.triton_settings import POD_THREADS, triton_options
from cofi_deploy.errors import ConfigError, UsageError
from cofi_deploy.export.triton_config import TritonOptions


def test_settings_become_options_of_their_types():
    settings = {
        "instances": 2,
        "threads": 3,
        "device": "cpu",
        "warmup_lengths": [8, 16],
        "metric_tags": {"team": "search"},
        "response_cache": True,
    }
    assert triton_options({"backend": "python", "max_batch_size": 8}, settings) == TritonOptions(
        backend="python",
        max_batch_size=8,
        instances=2,
        threads=3,
        device="cpu",
        warmup_lengths=(8, 16),
        metric_tags={"team": "search"},
        response_cache=True,
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("instance", 2, "unknown setting 'instance', allowed: instances"),
        ("instance", 2, "did you mean 'instances'?"),
        ("instances", "two", "instances is 'two', expected a whole number"),
        ("instances", True, "instances is True, expected a whole number"),
        ("threads", 1.5, "threads is 1.5, expected a whole number"),
        ("response_cache", "yes", "response_cache is 'yes', expected true or false"),
        ("device", "tpu", "device is 'tpu', expected one of cpu, gpu"),
        ("warmup_lengths", 16, "warmup_lengths is 16, expected a list like [16, 128]"),
        ("warmup_lengths", ["a"], "warmup_lengths is ['a'], expected a list like [16, 128]"),
        ("metric_tags", "a", "metric_tags is 'a', expected a table like {team = \"search\"}"),
        ("metric_tags", {"a": 1}, "metric_tags is {'a': 1}, expected a table"),
        ("server", 25, "server is 25, expected text"),
        ("backend", "python", "backend is set with --backend"),
        ("max_batch_size", 4, "max_batch_size is set with --batch-size MIN:OPT:MAX"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_what_does(key, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        triton_options({}, {key: value})


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as info:
        triton_options({}, {"threads": "x", "colour": 1})
    assert "threads is 'x'" in str(info.value)
    assert "unknown setting 'colour'" in str(info.value)


def test_an_instance_in_a_pod_never_takes_all_cores_of_its_node():
    assert triton_options({}, {}).threads is None
    assert triton_options({}, {}, kserve=True).threads == POD_THREADS
    assert triton_options({}, {"threads": 2}, kserve=True).threads == 2
    assert triton_options({"backend": "tensorrt"}, {}, kserve=True).threads is None


def test_the_next_version_is_served_like_the_one_before_where_nothing_is_said():
    before = {"name": "tiny", "backend": "python", "threads": 2, "warmup_lengths": [8], "plans": []}
    flags = {"backend": None, "max_batch_size": None}
    assert triton_options(flags, {}, served=before) == TritonOptions(
        backend="python", threads=2, warmup_lengths=(8,)
    )
    changed = triton_options({**flags, "max_batch_size": 4}, {"threads": 3}, served=before)
    assert changed == TritonOptions(
        backend="python", max_batch_size=4, threads=3, warmup_lengths=(8,)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "onnx", "name": "x"}, "--name is for --format triton, got --format onnx"),
        ({"format": "trt", "kserve": True}, "--kserve is for --format triton, got --format trt"),
        (
            {"format": "triton", "repository": "models", "output": "out"},
            "give --output for a repository of its own, or --repository to add to one; not both",
        ),
        (
            {"format": "triton", "url": "http://localhost:8000"},
            "--url names the server of a --repository, and none is given",
        ),
    ],
    ids=["name", "kserve", "both", "url"],
)
def test_flags_that_say_nothing_about_the_export_are_refused(arguments, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        api.export("runs/none", **arguments)
