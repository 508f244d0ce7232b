"""Real text of the task: what lossy formats take their ranges from and are judged on.

Comes in: a task or a file. Goes out: a `CalibrationText`. The development set has no part in it:
nothing may be chosen on what is reported. Next files: `lossy.py`, `vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from cofi_deploy.arch import Arch
from cofi_deploy.errors import DataError
from cofi_deploy.export.manifest import Source
from cofi_deploy.export.parity import encode_sentences
from cofi_deploy.tasks import Task

Text = tuple[str, str | None]  # a sentence, or a pair: question and context for QA
Row = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # token ids and token types, (sequence,)

CHECK_SPLIT: Final = "selection"

_ROWS = 256  # ranges hardly move after the first hundred


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """Texts as a server will get them.

    Attributes:
        texts: All that there is; the ranges of int8 are taken from some of them.
        max_length: Tokens of the longest input.
        source: Where the texts are from, in words.
        task: Whose held-out examples a lossy artifact is scored on; None for plain text.
        file: Where plain text was read from, for the command that makes the artifact again.
    """

    texts: Sequence[Text]
    max_length: int
    source: str
    task: Task | None = None
    file: Path | None = None

    def rows(self, tokenizer: PreTrainedTokenizerBase, arch: Arch, limit: int) -> list[Row]:
        """Up to ``limit`` texts, evenly spaced, as token ids and types."""
        step = max(1, -(-len(self.texts) // limit))
        length = min(self.max_length, arch.max_positions)
        return [encode_text(tokenizer, text, length) for text in self.texts[::step]]


def calibration_from_task(task: Task) -> CalibrationText:
    """The training examples of a task, without those held out, which are to judge by.

    Raises:
        DataError: The training data is missing or unusable.
    """
    texts = [(example.text, example.text_pair) for example in task.splits["train"].examples]
    return CalibrationText(
        texts=tuple(dict.fromkeys(texts)),
        max_length=task.max_length,
        source=f"training data of {task.name}",
        task=task,
    )


def calibration_from_file(path: Path, *, max_length: int) -> CalibrationText:
    """One text in each line; a tab parts the two texts of a pair.

    Raises:
        DataError: The file is missing, not UTF-8, or has no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read texts from {str(path)!r}: {error}") from error
    texts = [_text(line) for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{str(path)!r} holds no text; give one text in each line")
    return CalibrationText(
        texts=tuple(dict.fromkeys(texts)), max_length=max_length, source=str(path), file=path
    )


def calibration_rows(source: Source, text: CalibrationText | None) -> list[Row]:
    """Rows of the text, or of the built-in sentences where there is none."""
    if text is None:
        return encode_sentences(source.tokenizer, source.arch)
    return text.rows(source.tokenizer, source.arch, _ROWS)


def text_options(text: CalibrationText | None) -> dict[str, Any]:
    """What `export.json` says about the text; ``calibration`` is the flag of that name."""
    if text is None:
        return {}
    flag = {} if text.file is None else {"calibration": str(text.file)}
    return {"text": text.source, **flag}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: Text, max_length: int) -> Row:
    """Token ids and token types of a text or a pair, cut to ``max_length`` tokens."""
    encoded = tokenizer(
        *text, truncation=True, max_length=max_length, return_token_type_ids=True, verbose=False
    )
    ids, types = encoded["input_ids"], encoded["token_type_ids"]
    return np.asarray(ids, dtype=np.int64), np.asarray(types, dtype=np.int64)


def _text(line: str) -> Text:
    first, tab, second = line.partition("\t")
    return first, second if tab else None
