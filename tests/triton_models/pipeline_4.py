"""Answers of transformers 4.57's question-answering pipeline, which version 5 no longer has.

Run as a script by `test_questions.py`, in a process whose PYTHONPATH starts with that version.
In: JSON on stdin, with `model`, `questions` (pairs) and `top_k`. Out: a list of lists of answers.
"""

from __future__ import annotations

import json
import sys

from transformers import AutoTokenizer, pipeline

from cofi_deploy.loading import load


def main() -> None:
    task = json.load(sys.stdin)
    answer = pipeline(
        "question-answering",
        model=load(task["model"]),
        tokenizer=AutoTokenizer.from_pretrained(task["model"]),
        device="cpu",
    )
    found = []
    for question, context in task["questions"]:
        answers = answer(question=question, context=context, top_k=task["top_k"])
        found.append(answers if isinstance(answers, list) else [answers])
    json.dump(found, sys.stdout)


main()
