"""Run by a Python that has Optimum: opens exports as its users do, with nothing of cofi_deploy.

In: a folder with `cases.json`, the export `<name>/` of each case, and its ids in `<name>.npz`.
Out, in the same folder: the logits in `<name>.logits.npz`, the answers to text in `answers.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from optimum.onnxruntime import (
    ORTModelForQuestionAnswering,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)

CLASSES = {
    "text-classification": ORTModelForSequenceClassification,
    "text-regression": ORTModelForSequenceClassification,
    "token-classification": ORTModelForTokenClassification,
    "question-answering": ORTModelForQuestionAnswering,
}


def read(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Write the logits of one export, and tell what it makes of the case's text."""
    directory, kind = folder / case["name"], case["kind"]
    model = CLASSES[kind].from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with np.load(folder / f"{case['name']}.npz") as file:
        outputs = model(**{name: torch.from_numpy(file[name]) for name in file.files})
    np.savez(
        folder / f"{case['name']}.logits.npz",
        **{name: tensor.numpy() for name, tensor in outputs.items()},
    )
    task = "text-classification" if kind == "text-regression" else kind
    pipeline = transformers.pipeline(task, model=model, tokenizer=tokenizer)
    return {
        "ids": tokenizer(*case["text"])["input_ids"],
        "answer": pipeline(*case["text"])
        if kind != "question-answering"
        else pipeline(question=case["text"][0], context=case["text"][1]),
    }


def main(folder: Path) -> None:
    """Read every case of the folder."""
    cases = json.loads((folder / "cases.json").read_text("utf-8"))
    answers = {case["name"]: read(folder, case) for case in cases}
    loaded = {"cofi_deploy": "cofi_deploy" in sys.modules, "transformers": transformers.__version__}
    text = json.dumps({"loaded": loaded, "answers": answers}, default=float)
    (folder / "answers.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
