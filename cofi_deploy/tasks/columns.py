"""Which column holds the text, the second text, the label and the id.

In: the column names of a table, and what the user gave. Out: `Columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cofi_deploy.errors import ConfigError, did_you_mean

ROLES = ("text", "text_pair", "label", "id")

# Pairs first: `sentence2` is only a second text beside `sentence1`.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
)
TEXTS = (
    "text", "sentence", "content", "review", "comment", "body", "message", "tweet", "document",
    "description", "utterance", "question", "query", "title",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "target", "category", "sentiment", "gold_label", "intent", "topic",
    "score", "rating", "similarity", "value", "y",
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The file's names for the parts of an example."""

    text: str
    text_pair: str | None
    label: str
    id: str | None


def choose_columns(found: Sequence[str], given: Mapping[str, str], origin: str) -> Columns:
    """The columns that the user named, and obvious ones for the rest.

    A text that is named alone has no second text. Of two columns, the one that is not the label is
    the text, whatever it is called.

    Raises:
        ConfigError: an unknown role, a named column that is not there, or nothing obvious.
    """
    _check_given(found, given, ROLES, origin)
    lower = {name.lower(): name for name in reversed(found)}
    label = given.get("label") or _first(LABELS, lower)
    text, pair = given.get("text"), given.get("text_pair")
    if text is None:
        text, guessed_pair = _guess_texts(lower, taken={label, pair})
        pair = pair or guessed_pair
    if text is None and label is not None and len(found) == 2:
        text = next(name for name in found if name != label)
    if text is None or label is None:
        role = "text" if text is None else "label"
        raise ConfigError(
            f"{origin!r}: no column is obviously the {role} (columns: {', '.join(found)}); "
            f"name it, as in --column {role}=NAME"
        )
    return Columns(text, pair, label, given.get("id") or lower.get("id"))


def choose_roles(
    found: Sequence[str],
    given: Mapping[str, str],
    usual: Mapping[str, Sequence[str]],
    origin: str,
) -> dict[str, str]:
    """One column for each role: the one that the user named, else the first usual name.

    Args:
        found: Columns of the table.
        given: Column names by role, from the user.
        usual: By role, what its column is usually called; ``id`` may be missing.
        origin: File or hub split, for error messages.

    Raises:
        ConfigError: an unknown role, a named column that is not there, or nothing obvious.
    """
    _check_given(found, given, tuple(usual), origin)
    lower = {name.lower(): name for name in reversed(found)}
    chosen: dict[str, str] = {}
    for role, names in usual.items():
        column = given.get(role) or _first(tuple(names), lower)
        if column is not None:
            chosen[role] = column
        elif role != "id":
            raise ConfigError(
                f"{origin!r}: no column is obviously the {role} (columns: {', '.join(found)}); "
                f"name it, as in --column {role}=NAME"
            )
    return chosen


def _check_given(
    found: Sequence[str], given: Mapping[str, str], roles: Sequence[str], origin: str
) -> None:
    problems = [
        f"unknown role {role!r}, {did_you_mean(role, roles)}" for role in given if role not in roles
    ]
    problems += [
        f"{origin!r} has no column {name!r}, {did_you_mean(name, found)}"
        for role, name in given.items()
        if role in roles and name not in found
    ]
    used = [name for role, name in given.items() if role in roles]
    twice = sorted({name for name in used if used.count(name) > 1})
    problems += [f"column {name!r} is given two roles" for name in twice]
    if problems:
        raise ConfigError("; ".join(problems))


def _guess_texts(lower: Mapping[str, str], taken: set[str | None]) -> tuple[str | None, str | None]:
    free = {key: name for key, name in lower.items() if name not in taken}
    for first, second in PAIRS:
        if first in free and second in free:
            return free[first], free[second]
    text = _first(TEXTS, free) or free.get("sentence1") or free.get("text1")
    return text, None


def _first(candidates: Sequence[str], lower: Mapping[str, str]) -> str | None:
    return next((lower[name] for name in candidates if name in lower), None)
