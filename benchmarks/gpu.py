"""Every check that needs a GPU, on one borrowed card, in eight minutes. Writes results/gpu.json.

Training throughput with and without AMP, and the latency of the paper's structures (BERT-base,
random weights) in PyTorch with CUDA graphs, ONNX Runtime CUDA and TensorRT, at 1x128 and 128x128.
Runs from a source tree with PyTorch, transformers and onnx alone; what else is missing is skipped
by name. The result file is written after every part, the most telling ones come first, and a part
that the time left cannot hold is not begun.

    python benchmarks/gpu.py                           one NVIDIA GPU that nothing else uses
    python benchmarks/gpu.py --device cpu --seconds 1  a small likeness, to see that it runs
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import source_tree  # noqa: F401 - makes the tree below importable
import torch
from gpu_inference import runtime_rows, torch_rows
from gpu_training import LENGTHS, training_rows
from paper_archs import BASE_MODEL, structures

from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import write_json
from cofi_deploy.errors import CofiDeployError
from cofi_deploy.results import result_document
from cofi_deploy.train.precision import Numerics

RESULTS = Path(__file__).resolve().parent / "results"
POINTS = ("1x128", "128x128")
CPU_DIVISOR = 16  # BERT-base would take minutes for each part on a CPU

Rows = list[dict[str, Any]]
# Dense first, then from the most pruned to the least; engines take their time to build.
_FEW = ("dense", "mean-s95", "mean-s80")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement: how long it takes at the most, what it lacks here, and how it is made."""

    name: str
    needs_s: float
    lacks: str | None
    measure: Callable[[], Rows]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, where, and for how long."""

    archs: Mapping[str, Arch]
    device: torch.device
    points: Sequence[str]
    seconds: float
    folder: Path

    def parts(self) -> Iterator[Part]:
        """The most telling ones first."""
        yield self._torch("fp16")
        yield self._train("bf16")
        yield self._torch("fp32")
        yield self._train("fp16")
        yield self._train("fp32")
        provider = "onnxruntime-cuda" if self.device.type == "cuda" else "onnxruntime-cpu"
        yield self._runtime(provider, "fp16", tuple(self.archs))
        yield self._runtime("tensorrt", "fp16", _FEW)
        yield self._runtime(provider, "fp32", tuple(self.archs))
        yield self._runtime("tensorrt", "fp32", _FEW)

    def _torch(self, precision: str) -> Part:
        return Part(
            name=f"latency torch {precision}",
            needs_s=len(self.points) * (1.5 * self.seconds + 10.0),
            lacks=None,
            measure=partial(
                torch_rows,
                self.archs,
                precision,
                self.device,
                points=self.points,
                seconds=self.seconds,
            ),
        )

    def _train(self, precision: str) -> Part:
        on_cpu = self.device.type != "cuda"
        return Part(
            name=f"training {precision}",
            needs_s=2.0 * self.seconds + 20.0,
            lacks=_cpu_lacks(precision) if on_cpu else None,
            measure=partial(
                training_rows,
                self.archs,
                precision,
                self.device,
                seconds=self.seconds,
                examples=128 if on_cpu else 1024,
            ),
        )

    def _runtime(self, runtime: str, precision: str, names: Sequence[str]) -> Part:
        # An export with its checks takes up to 10 s, an engine up to 40 s.
        export_s = 40.0 if runtime == "tensorrt" else 10.0
        return Part(
            name=f"latency {runtime} {precision}",
            needs_s=len(names) * export_s + 1.5 * len(self.points) * self.seconds,
            lacks=_lacks(runtime),
            measure=partial(
                runtime_rows,
                {name: self.archs[name] for name in names},
                runtime,
                precision,
                points=self.points,
                seconds=self.seconds,
                folder=self.folder,
            ),
        )


def run_parts(
    parts: Iterator[Part],
    budget_s: float,
    write: Callable[[Rows, Rows], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measure what fits into the time, and write what there is after each part.

    Args:
        parts: In the order of their worth.
        budget_s: Seconds; no part begins that may need more than is left of them.
        write: Takes all rows so far, and what became of every part so far.
        clock: Seconds, increasing.

    Returns:
        Whether nothing failed; what was skipped has not failed.
    """
    end = clock() + budget_s
    rows: Rows = []
    outcomes: Rows = []
    for part in parts:
        left, began = end - clock(), clock()
        reason = part.lacks
        if reason is None and part.needs_s > left:
            reason = f"needs up to {part.needs_s:.0f} s, {max(left, 0.0):.0f} s are left"
        outcome: dict[str, Any] = {"part": part.name, "state": "skipped", "reason": reason}
        if reason is None:
            outcome |= _outcome(part, rows)
            outcome["wall_s"] = round(clock() - began, 1)
        outcomes.append(outcome)
        why = f" ({outcome['reason']})" if outcome["reason"] else ""
        print(f"{part.name}: {outcome['state']}{why}")
        write(rows, outcomes)
    return all(outcome["state"] != "failed" for outcome in outcomes)


def _outcome(part: Part, rows: Rows) -> dict[str, Any]:
    """Extends ``rows``; a part that fails (no memory, no kernel) does not stop the others."""
    try:
        rows += part.measure()
    except (CofiDeployError, RuntimeError, ValueError, OSError, ImportError) as error:
        first = (str(error).splitlines() or [""])[0]
        return {"state": "failed", "reason": f"{type(error).__name__}: {first}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {"state": "done", "reason": None}


def _lacks(runtime: str) -> str | None:
    """Why a runtime cannot be used here; packages by their names."""
    for package in ("onnx", "onnxruntime"):  # an export is checked in ONNX Runtime
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    from cofi_deploy.serve.runner import availability  # noqa: PLC0415

    return availability(runtime)


def _cpu_lacks(precision: str) -> str | None:
    if precision == "fp16":
        return "fp16 trains on a GPU only"
    if precision == "bf16" and Numerics.choose("auto").dtype != torch.bfloat16:
        return "this processor does not multiply bf16, it converts"
    return None


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"PyTorch {torch.__version__} reaches no CUDA device; name a Python whose PyTorch does "
            "(PYTHON=python3 make bench-gpu), or try it small: --device cpu --output trial.json"
        )
    return torch.device(name)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget-seconds", type=float, default=480.0, help="of the whole run")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each number")
    parser.add_argument("--point", action="append", help="BATCHxLENGTH; repeatable")
    parser.add_argument("--output", type=Path, default=None, help="by default results/gpu.json")
    flags = parser.parse_args()
    if flags.output is None and flags.device == "cpu":
        parser.error("--device cpu is a trial; give --output, results/gpu.json is of a GPU")
    return flags


def main() -> None:
    """Read the flags, measure, write; exit 1 where a part failed."""
    began = time.monotonic()
    flags = _flags()
    device = _device(flags.device)
    divisor = 1 if device.type == "cuda" else CPU_DIVISOR
    output = flags.output or RESULTS / "gpu.json"
    base_model = BASE_MODEL if divisor == 1 else f"{BASE_MODEL}, widths divided by {divisor}"
    archs = structures(divisor)

    def write(rows: Rows, outcomes: Rows) -> None:
        document = result_document([{**row, "base_model": base_model} for row in rows])
        document["parts"] = outcomes
        document["training_lengths"] = LENGTHS
        document["fp32_matmul_precision"] = torch.get_float32_matmul_precision()
        document["structures"] = {name: arch.to_json() for name, arch in archs.items()}
        write_json(output, document)

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            archs=archs,
            device=device,
            points=flags.point or POINTS,
            seconds=flags.seconds,
            folder=Path(folder),
        )
        left = flags.budget_seconds - (time.monotonic() - began)
        ok = run_parts(plan.parts(), left, write)
    print(f"wrote {output}")
    raise SystemExit(not ok)


if __name__ == "__main__":
    main()
