"""benchmarks/alignment.py compares like with like: parameters are equal, only widths differ."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import BertConfig, BertModel

from cofi_deploy import api
from cofi_deploy.artifacts import read_json
from tests.api.conftest import few_steps, one_thread, tiny_bert, tiny_data
from tests.scripts import load_script

__all__ = ["few_steps", "one_thread", "tiny_bert", "tiny_data"]

alignment = load_script("alignment")
SIZES = alignment.SIZES


@pytest.mark.parametrize("name", SIZES)
def test_the_ffn_of_a_group_has_the_same_parameters_in_every_alignment(name: str):
    group, _, multiple = name.partition("-")
    (hidden, widths), (any_hidden, any_widths) = SIZES[name], SIZES[f"{group}-any"]
    assert hidden * sum(widths) == pytest.approx(any_hidden * sum(any_widths), rel=0.004)
    if multiple != "any":
        assert {size % int(multiple) for size in (hidden, *widths)} == {0}


@pytest.mark.slow
def test_accuracy_and_time_without_and_with_alignment_are_reported(
    tiny_bert, tiny_data, few_steps, tmp_path, monkeypatch
):
    wide = tmp_path / "wide"  # fine enough for a step of 8 units
    shutil.copytree(tiny_bert, wide)
    sizes = json.loads((wide / "config.json").read_text()) | {"intermediate_size": 640}
    BertModel(BertConfig(**sizes)).save_pretrained(wide)
    real = api.train

    def quick(*arguments, overrides=None, **words):
        few = {**few_steps, "max_length": 48, **(overrides or {})}
        del few["sparsities"]
        return real(*arguments, overrides=few, **words)

    for name, value in {"RUNS": tmp_path / "runs", "ROOT": tmp_path, "DATA": tiny_data}.items():
        monkeypatch.setattr(alignment, name, value)
    monkeypatch.setattr("training.minilm", lambda: wide)
    monkeypatch.setattr(alignment, "SPARSITY", 0.6)
    monkeypatch.setattr(alignment, "SECONDS", 0.1)
    monkeypatch.setattr(alignment, "POINTS", ("1x16",))
    monkeypatch.setattr(alignment.api, "train", quick, raising=False)
    alignment.train("sst2", 8)
    alignment.measure("sst2", 8)
    document = read_json(tmp_path / "results" / "alignment-sst2.json")
    assert document["same_gates"]
    assert document["schema_version"] == 1
    names = {"sst2-align-any", "sst2-align-8"}
    rows = document["rows"]
    assert {row["model"] for row in rows if "metric" in row} == names
    for runtime in ("onnxruntime-cpu", "openvino"):
        timed = [row for row in rows if row.get("runtime") == runtime]
        assert {row["model"] for row in timed} == {"sst2-dense", *names}
        assert all("speedup_low" in row for row in timed if row["model"] in names)
    assert {layer["ffn"] % 8 for layer in document["structures"]["sst2-align-8"]["layers"]} == {0}
    assert document["alignment"]["multiple"] == 8
