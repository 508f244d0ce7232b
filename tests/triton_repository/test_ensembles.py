"""Ensembles: every edge leads from one model to another that takes it."""

from __future__ import annotations

import re

import pytest

from cofi_deploy.errors import RepositoryError
from cofi_deploy.triton_repository import check_repository

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def step(index, change):
    return lambda config: change(config.ensemble_scheduling.step[index])


def item(path, index, change):
    return lambda config: change(getattr(config, path)[index])


def itself(config):
    config.ensemble_scheduling.step[2].model_name = "tiny_text"


def second_producer(config):
    config.ensemble_scheduling.step[1].output_map["logits"] = "input_ids"


def circle(config):
    first = config.ensemble_scheduling.step[0]
    first.input_map["text"] = "logits"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            step(1, lambda s: setattr(s, "model_name", "gone")),
            "a step runs 'gone', which the repository has not: tiny, tiny_answer,",
        ),
        (itself, "its steps lead back to 'tiny_text' itself"),
        (second_producer, "tensor 'input_ids' has two producers, the second is 'tiny'"),
        (circle, "step 'tiny_tokenizer' needs ['logits'], which no step before it gives"),
        (
            step(1, lambda s: s.input_map.pop("token_type_ids")),
            "step 'tiny' gives no tensor to input 'token_type_ids'",
        ),
        (
            step(1, lambda s: s.input_map.__setitem__("ids", "input_ids")),
            "step 'tiny' gives a tensor to 'ids', which is no input of the model",
        ),
        (
            step(2, lambda s: s.output_map.__setitem__("values", "values")),
            "step 'tiny_answer' takes 'values', which is no output of the model",
        ),
        (
            step(2, lambda s: s.output_map.pop("scores")),
            "output 'scores' is given by no step",
        ),
        (
            lambda c: c.input.add(name="more", data_type=schema.TYPE_STRING, dims=[1]),
            "input 'more' is used by no step",
        ),
        (
            lambda c: setattr(c, "max_batch_size", 64),
            "max_batch_size is 64, but step 'tiny_tokenizer' takes 32; an ensemble may not take",
        ),
        (
            item("output", 1, lambda i: setattr(i, "data_type", schema.TYPE_FP16)),
            "tensor 'scores' is TYPE_FP32 from 'tiny_answer', but the ensemble takes TYPE_FP16",
        ),
        (
            item("output", 1, lambda i: i.dims.__setitem__(0, 4)),
            "tensor 'scores' has shape [-1, 3] from 'tiny_answer', but the ensemble takes [-1, 4]",
        ),
        (
            lambda c: c.instance_group.add(count=1),
            "instance_group is set, but an ensemble only connects its steps; remove it",
        ),
        (
            lambda c: c.ensemble_scheduling.ClearField("step"),
            "platform is 'ensemble', but ensemble_scheduling has no step",
        ),
    ],
)
def test_an_ensemble_that_does_not_connect_is_refused(change, words, edit, repository):
    edit(change, model="tiny_text")
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(repository)


def without_batching(config):
    config.max_batch_size = 0
    config.ClearField("dynamic_batching")
    config.ClearField("model_warmup")
    for tensor in (*config.input, *config.output):
        dims = [-1, *tensor.dims]
        del tensor.dims[:]
        tensor.dims.extend(dims)


def test_a_step_without_batching_takes_the_batch_axis_as_an_ordinary_one(edit, repository):
    edit(without_batching, file="configs/python.pbtxt")
    assert check_repository(repository)


def test_the_fallback_of_a_step_must_fit_its_edges_as_well(edit, repository):
    def smaller(config):
        config.max_batch_size = 8
        config.ClearField("model_warmup")

    edit(smaller, file="configs/python.pbtxt")
    with pytest.raises(RepositoryError, match="max_batch_size is 32, but step 'tiny' takes 8; an"):
        check_repository(repository)
