"""SQuAD's JSON layout, and the hub's rows of it, to checked examples.

In: a file or hub split. Out: `Example`s with `text` the question and `text_pair` the context, or
a `DataError` that lists up to ten bad places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cofi_deploy.errors import DataError
from cofi_deploy.tasks.files import Problems, read_text, text_problem
from cofi_deploy.tasks.task import Answer, Example


class RawQuestion(NamedTuple):
    """A question before any check; `where` is the words for its place in the file."""

    where: str
    article: str
    context: Any
    fields: Mapping[str, Any]


class LayoutError(ValueError):
    """A part of the JSON is not what SQuAD's layout has there."""


def read_squad_file(path: Path, *, no_answers: bool) -> list[Example]:
    """Parse and check one file of SQuAD 1.1 or, with `no_answers`, 2.0.

    An answer that does not occur at its `answer_start` is moved to its nearest occurrence.

    Raises:
        DataError: not JSON, cut off, not SQuAD's layout, or with bad questions.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{str(path)!r} line {error.lineno}, column {error.colno} is not JSON ({error.msg}); "
            "the file may be cut off, fetch it again"
        ) from error
    problems = Problems(str(path))
    return examples_from_questions(questions_of_articles(content), problems, no_answers=no_answers)


def questions_of_articles(content: object) -> Iterator[RawQuestion]:
    """All questions of a file's content.

    Raises:
        LayoutError: it is not SQuAD's layout.
    """
    for at, article in enumerate(_items(content, "data", "the top")):
        title = str(article.get("title", at))
        for number, paragraph in enumerate(_items(article, "paragraphs", f"data[{at}]")):
            place = f"data[{at}].paragraphs[{number}]"
            context = _text(paragraph, "context", place)
            for index, fields in enumerate(_items(paragraph, "qas", place)):
                yield RawQuestion(f"{place}.qas[{index}]", title, context, fields)


def examples_from_questions(
    questions: Iterator[RawQuestion], problems: Problems, *, no_answers: bool
) -> list[Example]:
    """Check every question.

    Raises:
        DataError: a wrong layout, an empty text, a repeated id, an answer that does not occur in
            its context, a question without an answer in SQuAD 1.1, or no question at all.
    """
    examples: list[Example] = []
    seen: dict[str, str] = {}
    try:
        for raw in questions:
            example = _example(raw, problems, no_answers=no_answers)
            if example.id in seen:
                problems.add(raw.where, f"id {example.id!r} is also in {seen[example.id]}", "id")
            seen[example.id] = raw.where
            examples.append(example)
    except LayoutError as error:
        problems.add("SQuAD's layout", str(error))
    problems.raise_if_any()
    if not examples:
        raise DataError(f"{problems.origin!r} has no questions; give a file in SQuAD's layout")
    return examples


def _example(raw: RawQuestion, problems: Problems, *, no_answers: bool) -> Example:
    identifier = _text(raw.fields, "id", raw.where)
    question = _text(raw.fields, "question", raw.where)
    context = _text({"context": raw.context}, "context", raw.where)
    for column, text in (("question", question), ("context", context)):
        wrong = text_problem(text)
        if wrong is not None:
            problems.add(raw.where, wrong, column)
    answers: list[Answer] = []
    if not (no_answers and raw.fields.get("is_impossible")):
        for fields in _items(raw.fields, "answers", raw.where):
            answer = _placed(fields, raw)
            if isinstance(answer, str):
                problems.add(raw.where, answer, "answers")
            else:
                answers.append(answer)
        if not answers and not no_answers and not raw.fields["answers"]:
            problems.add(raw.where, "no answer, which only squad_v2 allows", "answers")
    return Example(identifier, question, context, None, tuple(answers), group=raw.article)


def _placed(fields: Mapping[str, Any], raw: RawQuestion) -> Answer | str:
    """The answer where it stands in the context, or what is wrong with it."""
    text = _text(fields, "text", raw.where)
    start = fields.get("answer_start")
    if not isinstance(start, int):
        raise LayoutError(f"{raw.where}.answers: answer_start is {start!r}, expected an integer")
    if not text.strip():
        return "the answer text is empty"
    if start >= 0 and raw.context.startswith(text, start):
        return Answer(text, start)
    before = raw.context.rfind(text, 0, max(start, 0) + len(text))
    after = raw.context.find(text, max(start, 0))
    found = [place for place in (before, after) if place >= 0]
    if not found:
        return f"answer {text!r} (answer_start {start}) does not occur in the context"
    return Answer(text, min(found, key=lambda place: abs(place - start)))


def _items(parent: object, key: str, place: str) -> list[Mapping[str, Any]]:
    items = parent.get(key) if isinstance(parent, Mapping) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise LayoutError(f"{place} has no list {key!r} of objects")
    return items


def _text(parent: Mapping[str, Any], key: str, place: str) -> str:
    text = parent.get(key)
    if not isinstance(text, str):
        raise LayoutError(f"{place} has no text {key!r} (got {text!r})")
    return text
