"""Rows of one operating point: what is withheld, what is told, and what tokens are counted."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cofi_deploy.serve.conditions import Load
from cofi_deploy.serve.latency import OperatingPoint, Samples
from cofi_deploy.serve.latency_rows import Timed, kept_samples, latency_rows, notes_of

RUNNER = SimpleNamespace(runtime="torch", precision="fp32", device="cpu", threads=2)
WITHHELD = {
    "p50_ms",
    "p50_low_ms",
    "p50_high_ms",
    "p90_ms",
    "p90_low_ms",
    "p90_high_ms",
    "p99_ms",
    "p99_low_ms",
    "p99_high_ms",
    "sequences_per_s",
}


def batch(*lengths: int) -> dict[str, np.ndarray]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return {"input_ids": np.ones(mask.shape, np.int64), "attention_mask": mask.astype(np.int64)}


def timed(
    others_cores: float | None = 0.0,
    *,
    deviation: float = 0.02,
    seq_len: int | str = 8,
    batches=(),
) -> Timed:
    rng = np.random.default_rng(0)
    variants = max(1, len(batches))
    texts = np.tile(np.arange(variants) + 1.0, 40)
    load = Load(
        window_s=5.0,
        cores=2,
        own_cores=0.8,
        others_cores=others_cores,
        stolen_cores=0.0,
        switches_per_s=1.0,
    )
    ms = {
        "dense": 10 * texts * rng.lognormal(0, deviation, len(texts)),
        "pruned": 2 * texts * rng.lognormal(0, deviation, len(texts)),
    }
    return Timed(
        OperatingPoint(batch_size=2, seq_len=seq_len, runtime="torch"),
        {"dense": RUNNER, "pruned": RUNNER},
        {label: list(batches) for label in ("dense", "pruned")},
        Samples(ms=ms, variants=variants, load=load),
    )


def test_a_quiet_machine_gives_everything():
    rows = latency_rows(timed(), seed=0)
    assert "noise" not in rows["dense"].keys() | rows["pruned"].keys()
    assert rows["dense"]["p50_ms"] == pytest.approx(10, rel=0.02)
    assert rows["dense"]["sequences_per_s"] == pytest.approx(200, rel=0.02)
    assert rows["pruned"]["speedup"] == pytest.approx(5, rel=0.02)
    assert rows["pruned"]["speedup_low"] < 5 < rows["pruned"]["speedup_high"]
    assert "speedup" not in rows["dense"]
    assert rows["dense"]["rounds"] == 40
    assert notes_of(timed(), rows) == []


def test_a_busy_machine_gives_no_milliseconds_but_the_ratio():
    measured = timed(others_cores=0.6)
    rows = latency_rows(measured, seed=0)
    for row in rows.values():
        assert {name for name, value in row.items() if value is None} == WITHHELD
        assert row["noise"].startswith(
            "this machine is too busy to measure: other processes used 0.6 of 2 cores"
        )
    assert rows["pruned"]["speedup"] == pytest.approx(5, rel=0.02)
    (note,) = notes_of(measured, rows)
    assert note.startswith("torch@2x8: this machine is too busy to measure: other processes used")
    assert note.endswith("(no times are given, ratios are: the models ran in turn)")
    assert kept_samples(measured, "dense")["too_busy"]


def test_a_machine_that_mostly_does_something_else_gives_no_ratio_either():
    measured = timed(others_cores=1.6)
    rows = latency_rows(measured, seed=0)
    ratio = [rows["pruned"][key] for key in ("speedup", "speedup_low", "speedup_high")]
    assert ratio == [None, None, None]
    assert notes_of(measured, rows)[0].endswith("(no times are given)")


def test_a_wide_interval_is_stated_without_its_ratio():
    measured = timed(deviation=1.5)
    rows = latency_rows(measured, seed=0)
    row = rows["pruned"]
    assert row["speedup"] is None
    assert row["speedup_high"] > 1.5 * row["speedup_low"]
    interval = f"{row['speedup_low']:.2f} to {row['speedup_high']:.2f}"
    assert f"the 95 % interval of the speedup is {interval}, allowed" in row["noise"]
    assert notes_of(measured, rows) == [f"pruned in torch@2x8: {row['noise']}"]
    assert rows["dense"]["p50_ms"] is not None


def test_tokens_are_those_of_the_texts_and_not_their_padding():
    batches = [batch(2, 6), batch(10, 10)]
    row = latency_rows(timed(deviation=0.0, seq_len="task", batches=batches), seed=0)["dense"]
    assert row["p50_ms"] == pytest.approx(15.0)  # half of the batches take 10 ms, half 20
    assert row["sequences_per_s"] == pytest.approx(2 / 0.015)
    assert row["tokens_per_s"] == pytest.approx(28 / 2 / 0.015)
    assert (row["tokens_mean"], row["tokens_p50"]) == (7.0, 8.0)
    assert row["padding_share"] == pytest.approx(4 / 32)


@pytest.mark.parametrize("others", [0.0, 0.6, 1.6, None])
def test_rows_are_json(others):
    rows = latency_rows(timed(others_cores=others), seed=0)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
