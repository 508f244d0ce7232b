"""Dense against pruned through one Triton server: load, latency, and what faults do to it.

Both models lie in one repository, run in one server and are loaded in turn. Measured are a closed
loop of 1 to 64 clients and the highest rate of Poisson arrivals at which 99 % of the answers come
within 50 ms; then the faults of `triton_faults.py`. Every answer is compared with that of PyTorch.
Writes results/triton.json.

    python benchmarks/triton_serving.py --dense DIR --pruned DIR

The machine must be idle: generator and server share its cores. The file is not called triton.py
because torch would then import it in place of the package of that name.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from triton_cases import Cases, make_cases, read_texts
from triton_faults import run_faults
from triton_patient import Patient
from triton_rates import FIXED, IDS, QUICK, TEXT, Bench, Size, closed_loops, highest_rates
from triton_service import BACKEND, add_model, running, trivial_model

from cofi_deploy.artifacts import write_json
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.loading import load
from cofi_deploy.results import result_document

ROOT = Path(__file__).resolve().parent
TRIVIAL = "trivial"
CEILING_CLIENTS = 32
# What `Size` takes on two cores.
MINUTES = 12.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for and write the result file."""
    asked = _parser().parse_args(arguments)
    size = QUICK if asked.quick else Size().scaled(asked.minutes / MINUTES)
    models = {"dense": asked.dense, "pruned": asked.pruned}
    busy = psutil.cpu_percent(interval=1.0)
    if busy > 10:
        print(f"other processes keep the processor {busy:.0f} % busy: do not publish this")
    texts = read_texts(asked.texts, size.texts)
    print(f"asking PyTorch {len(texts)} texts of {asked.texts}")
    cases = {name: make_cases(model, texts) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[dict[str, Any]] = []
        if not asked.faults_only:
            rows += measure(models, cases, size, texts=asked.texts, scratch=Path(scratch))
        if not asked.no_faults:
            patient = Patient(
                model=asked.pruned,
                cases=cases["pruned"],
                scratch=Path(scratch),
                requests=size.fault_requests,
                seconds=size.fault_s,
            )
            rows += run_faults(patient)
    lengths = cases["dense"].lengths
    document = result_document(rows, command=_command(asked))
    document |= {"busy_percent_before": busy, "mean_length": sum(lengths) / len(lengths)}
    write_json(asked.output, document)
    print(f"wrote {asked.output}")


def measure(
    models: dict[str, Path], cases: dict[str, Cases], size: Size, *, texts: str, scratch: Path
) -> list[dict[str, Any]]:
    """All rows but those of the faults."""
    repository = scratch / "repository"
    everything = {**models, TRIVIAL: trivial_model(scratch / TRIVIAL, models["dense"])}
    for name, model in everything.items():
        add_model(repository, name, model)
    cases = {**cases, TRIVIAL: make_cases(everything[TRIVIAL], read_texts(texts, 16))}
    facts = {name: _facts(name, model, texts) for name, model in everything.items()}
    with running(repository, scratch / "triton.log", model_control="none") as server:
        bench = Bench(url=server.grpc_address, pid=server.pid, cases=cases, size=size, facts=facts)
        return [
            *closed_loops(bench, FIXED, [CEILING_CLIENTS], models=[TRIVIAL]),
            *closed_loops(bench, FIXED, size.clients),
            *closed_loops(bench, IDS, size.few_clients),
            *closed_loops(bench, TEXT, size.few_clients),
            *highest_rates(bench, FIXED, size.searches),
            *highest_rates(bench, TEXT, size.searches),
        ]


def _facts(name: str, model: Path, task: str) -> dict[str, Any]:
    """What every row of a model says about it."""
    network = load(model)
    options = TritonOptions(backend=BACKEND)
    return {
        "task": task,
        "model": name,
        "family": network.config.structure.family,
        "realized_sparsity": network.config.structure.sparsity,
        "parameters": sum(tensor.numel() for tensor in network.parameters()),
        "runtime": "triton",
        "backend": BACKEND,
        "precision": "fp32",
        "device": "cpu",
        "threads": options.intra_op_threads,
        "instances": options.instances,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dense", type=Path, required=True, help="directory of the dense model")
    parser.add_argument("--pruned", type=Path, required=True, help="directory of the pruned one")
    parser.add_argument("--texts", default="sst2", help="GLUE task, or a csv file (sst2)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="about, in all (12)")
    parser.add_argument("--quick", action="store_true", help="tiny loads, to see that it works")
    parser.add_argument("--no-faults", action="store_true", help="load only")
    parser.add_argument("--faults-only", action="store_true", help="no load")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "triton.json")
    return parser


def _command(asked: argparse.Namespace) -> list[str]:
    """The command without the places of this machine."""
    command = ["python", "benchmarks/triton_serving.py", "--dense", "DIR", "--pruned", "DIR"]
    command += ["--texts", asked.texts, "--minutes", f"{asked.minutes:g}"]
    return command + [
        flag
        for flag, given in {
            "--quick": asked.quick,
            "--no-faults": asked.no_faults,
            "--faults-only": asked.faults_only,
        }.items()
        if given
    ]


if __name__ == "__main__":
    main()
