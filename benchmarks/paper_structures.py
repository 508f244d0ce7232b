"""What are the paper's structures worth in today's runtimes? BERT-base, random weights.

CoFi's speedups (Xia, Zhong, Chen, ACL 2022) were measured in PyTorch on a V100. Here BERT-base is
cut to the structures that the paper and its talk show (`paper_archs.py`), at 60 to 95 % sparsity,
and timed against dense BERT-base in every runtime of this machine, side by side. Nothing is
trained: latency does not depend on the values of the weights. Writes
results/paper_structures.json.

    python benchmarks/paper_structures.py                       minutes; the machine must be idle
    python benchmarks/paper_structures.py --point 1x128 --seconds 5 --output mine.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_archs import BASE_MODEL, published, structures, write_model

from cofi_deploy import api
from cofi_deploy.artifacts import write_json
from cofi_deploy.results import result_document

RESULTS = Path(__file__).resolve().parent / "results"
POINTS = ("1x128", "32x128")
RUNTIMES = ("torch", "onnxruntime-cpu", "onnxruntime-cuda", "openvino")


def measure(
    points: Sequence[str], runtimes: Sequence[str], seconds: float, *, divisor: int = 1
) -> dict[str, Any]:
    """Time every structure against dense, interleaved; the rows carry what was published.

    Args:
        points: `<batch>x<length>`.
        runtimes: Those that are not here are skipped, with the reason.
        seconds: Of timing at each point.
        divisor: Of all widths; for anything but 1 the base model is no BERT-base.
    """
    with tempfile.TemporaryDirectory() as folder:
        archs = structures(divisor)
        models = {name: write_model(Path(folder) / name, arch) for name, arch in archs.items()}
        timed = api.bench(
            list(models.values()),
            runtimes=runtimes,
            points=points,
            min_repeats=10,
            max_seconds=seconds,
            fresh_process=False,
            exports_root=Path(folder) / "exports",
        )
    base_model = BASE_MODEL if divisor == 1 else f"{BASE_MODEL}, widths divided by {divisor}"
    rows = [
        {**row, "base_model": base_model, **published(row["model"], archs[row["model"]])}
        for row in timed.rows
    ]
    document = result_document(rows)
    document["notes"] = timed.notes
    document["skipped"] = timed.skipped
    document["structures"] = {name: arch.to_json() for name, arch in archs.items()}
    return document


def main() -> None:
    """Read the flags, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--point", action="append", help="BATCHxLENGTH; repeatable")
    parser.add_argument("--runtime", action="append", help="repeatable")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing at each point")
    parser.add_argument("--divide", type=int, default=1, help="all widths by this, for a trial")
    parser.add_argument("--output", type=Path, default=RESULTS / "paper_structures.json")
    flags = parser.parse_args()
    document = measure(
        flags.point or POINTS, flags.runtime or RUNTIMES, flags.seconds, divisor=flags.divide
    )
    write_json(flags.output, document)
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()
