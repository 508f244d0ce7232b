"""Tasks with one label for a text or a pair of texts: GLUE and the user's own files.

In: splits with labels. Out: features with `labels`, and a score of `logits`. The loaders are
`glue.py` and `text.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cofi_deploy.kinds import TaskKind
from cofi_deploy.tasks.encoding import EncodedSplit, encode_texts, take
from cofi_deploy.tasks.metrics import MetricFunction
from cofi_deploy.tasks.outputs import check_outputs
from cofi_deploy.tasks.task import Example, Outputs, Splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SequenceTask:
    """A text classification or text regression task; see `task.Task` for the contract."""

    name: str
    kind: TaskKind
    labels: tuple[str, ...]
    metric_name: str
    max_length: int
    splits: Splits
    metrics: MetricFunction

    def fingerprint(self) -> str:
        """SHA-256 over the official train and validation examples."""
        return self.splits.fingerprint()

    def encode(
        self, split_name: str, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> EncodedSplit:
        """One feature per example, with `labels` in every batch.

        Raises:
            DataError: the split's data is missing or unusable.
            ConfigError: the tokenizer does not suit, or `limit` is below 1.
        """
        examples = take(self.splits[split_name].examples, limit)
        labels = self._gold(examples)
        return encode_texts(
            split_name, examples, tokenizer, max_length=self.max_length, labels=labels
        )

    def score(self, encoded: EncodedSplit, outputs: Outputs) -> dict[str, float]:
        """The task's metrics, as fractions.

        Raises:
            RunnerError: outputs are missing, of the wrong shape, or not finite.
        """
        return self.metrics(self._predicted(encoded, outputs), self._gold(encoded.examples))

    def predictions(self, encoded: EncodedSplit, outputs: Outputs) -> list[Hashable]:
        """Class index or score of each example.

        Raises:
            RunnerError: as for `score`.
        """
        predicted: list[Hashable] = self._predicted(encoded, outputs).tolist()
        return predicted

    def _predicted(self, encoded: EncodedSplit, outputs: Outputs) -> npt.NDArray[np.generic]:
        width = len(self.labels) or 1
        check_outputs(outputs, ("logits",), [(width,)] * len(encoded))
        logits = np.stack([np.asarray(row["logits"], dtype=np.float64) for row in outputs])
        return logits.argmax(axis=1) if self.labels else logits[:, 0]

    def _gold(self, examples: Sequence[Example]) -> npt.NDArray[np.generic]:
        dtype = np.int64 if self.labels else np.float32
        return np.asarray([example.label for example in examples], dtype=dtype)
