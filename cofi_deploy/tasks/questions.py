"""Extractive question answering on the user's own data.

In: a file, a folder or a hub data set id, in SQuAD's JSON layout or as rows of question, context
and answers. Out: a `QuestionTask`. Next: `squad_files.py` for the checks, `squad.py` for the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from cofi_deploy.tasks.columns import choose_roles
from cofi_deploy.tasks.files import Problems
from cofi_deploy.tasks.own_data import check_columns, find_tables
from cofi_deploy.tasks.squad import QuestionTask, article_divider
from cofi_deploy.tasks.squad_files import (
    LayoutError,
    RawQuestion,
    examples_from_questions,
    questions_of_articles,
)
from cofi_deploy.tasks.tables import Row, Table
from cofi_deploy.tasks.task import Example, Source, Splits

_USUAL_COLUMNS = {
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph", "document", "text"),
    "answers": ("answers", "answer", "answer_text"),
    "id": ("id",),
}
# Where the one answer of a row starts, for tables that cannot nest.
_START_COLUMNS = ("answer_start", "start")
_ARTICLE_COLUMNS = ("title", "article")


def load_questions(
    *,
    data: str,
    columns: Mapping[str, str],
    max_length: int,
    seed: int,
    holdout: float | None,
) -> QuestionTask:
    """A task on the user's questions; where train has some without answer, so may the model.

    Answers are lists as in SQuAD, one text, or empty. A text without its place is looked for in
    the context. What is held out are whole articles (column `title`), else whole contexts.

    Args:
        data: File, folder or hub id.
        columns: The user's names for `question`, `context`, `answers` and `id`; guessed for the
            rest, and not asked for in SQuAD's JSON layout.
        max_length: Tokens of a window, question included.
        seed: Of the choice of the held-out questions.
        holdout: Share of train that becomes `selection` (and `validation`, where it is cut).

    Raises:
        ConfigError: columns that are not there, or not obvious.
        DataError: files that are missing or bad.
        HubUnreachableError: a hub id without a network and without a cached copy.
    """
    tables = find_tables(data)
    chosen = None if _is_squad(tables.train) else _columns(tables.train, columns)
    if tables.validation is not None and chosen is not None:
        check_columns(tables.validation, list(chosen.values()))
    no_answers = _some_lack_answers(tables.train, chosen)

    def source(table: Table) -> Source:
        return Source(table.origin, partial(_examples, table, chosen, no_answers=no_answers))

    divide = article_divider(tables.train.origin, seed=seed, holdout=holdout)
    validation = source(tables.validation) if tables.validation is not None else None
    return QuestionTask(
        name="question-answering",
        max_length=max_length,
        splits=Splits(source(tables.train), validation, divide, divide),
        no_answers=no_answers,
    )


def _is_squad(table: Table) -> bool:
    return "paragraphs" in table.columns


def _columns(table: Table, given: Mapping[str, str]) -> dict[str, str]:
    return choose_roles(table.columns, given, _USUAL_COLUMNS, table.origin)


def _examples(table: Table, chosen: Mapping[str, str] | None, *, no_answers: bool) -> list[Example]:
    questions = _questions(table, chosen)
    return examples_from_questions(questions, Problems(table.origin), no_answers=no_answers)


def _questions(table: Table, chosen: Mapping[str, str] | None) -> Iterator[RawQuestion]:
    if chosen is None:
        yield from questions_of_articles({"data": [dict(row.values) for row in table.rows]})
        return
    for at, row in enumerate(table.rows):
        context = row.values.get(chosen["context"])
        article = next((row.values[name] for name in _ARTICLE_COLUMNS if name in row.values), None)
        fields = {
            "id": str(row.values.get(chosen.get("id", ""), at)),
            "question": row.values.get(chosen["question"]),
            "answers": _answers(row, chosen["answers"], context),
        }
        yield RawQuestion(row.where, str(article or context), context, fields)


def _answers(row: Row, column: str, context: object) -> list[dict[str, Any]]:
    """The row's answers as SQuAD has them.

    Raises:
        LayoutError: they are neither text nor lists.
    """
    raw = row.values.get(column)
    if raw is None or raw == "":
        return []
    if isinstance(raw, str):
        start = next((row.values[name] for name in _START_COLUMNS if name in row.values), None)
        return [{"text": raw, "answer_start": _place(start, raw, context)}]
    if isinstance(raw, Mapping):  # lists side by side, as on the hub
        texts, starts = raw.get("text"), raw.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            pairs = zip(texts, starts, strict=True)
            return [{"text": text, "answer_start": start} for text, start in pairs]
    if isinstance(raw, list) and all(isinstance(item, Mapping) for item in raw):
        return [dict(item) for item in raw]
    if isinstance(raw, list) and all(isinstance(item, str) for item in raw):
        return [{"text": text, "answer_start": _place(None, text, context)} for text in raw]
    raise LayoutError(
        f"{row.where}, column {column!r}: got {raw!r}, allowed: a text, a list of texts, or text "
        "and answer_start as in SQuAD"
    )


def _place(start: object, text: str, context: object) -> int:
    """Where the answer starts: as told, else at its first occurrence."""
    if isinstance(start, str) and start.strip().isdecimal():
        return int(start)
    if isinstance(start, int):
        return start
    return context.find(text) if isinstance(context, str) else 0


def _some_lack_answers(table: Table, chosen: Mapping[str, str] | None) -> bool:
    try:
        return any(
            raw.fields.get("is_impossible") or not raw.fields.get("answers")
            for raw in _questions(table, chosen)
        )
    except LayoutError:
        return False  # told with its place when the examples are read
