"""`Diagnosis`: a fault by its name; and the evidence that the checks for faults share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cofi_deploy.arch import Arch
from cofi_deploy.exports import ExportManifest, read_manifest, rebuild_command
from cofi_deploy.serve.accuracy import Scored
from cofi_deploy.serve.subject import Subject
from cofi_deploy.tasks import EncodedSplit

Fault = Literal[
    "head_count",
    "swapped_labels",
    "truncated_vocabulary",
    "fp16_overflow",
    "not_finite",
    "slower_model",
    "different_tokenizer",
    "other_answers",
]
# By label and runtime.
Answers = Mapping[tuple[str, str], Scored]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One fault of one model in one runtime; the sentence names it, its values and the way on."""

    model: str
    runtime: str
    fault: Fault
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One split in the tokens of each model.

    ``encoded`` is by label; ``own`` by label and runtime, for artifacts whose vocabulary was cut.
    """

    encoded: Mapping[str, EncodedSplit]
    own: Mapping[tuple[str, str], EncodedSplit]

    def fed(self, label: str, runtime: str) -> EncodedSplit:
        """What a model reads in a runtime."""
        return self.own.get((label, runtime), self.encoded[label])


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The artifact of a subject for one runtime: what a check looks at."""

    subject: Subject
    runtime: str

    @property
    def label(self) -> str:
        """Name of the model."""
        return self.subject.label

    @property
    def directory(self) -> Path:
        """Where the artifact is."""
        return self.subject.artifacts[self.runtime]

    def manifest(self) -> ExportManifest:
        """What an export says about itself.

        Raises:
            ArtifactError: It is not readable.
        """
        return read_manifest(self.directory)

    def expected(self) -> Arch:
        """What the artifact should be: the model's Arch, with the artifact's own cut vocabulary.

        Raises:
            ArtifactError: Neither model nor manifest is readable.
        """
        if self.runtime != "torch" and self.subject.own_tokenizer(self.runtime) is not None:
            return self.manifest().arch
        return self.subject.arch()

    def remedy(self) -> str:
        """What makes the artifact again."""
        if self.runtime == "torch":
            return "train or copy the model again"
        return f"export it again: {rebuild_command(self.manifest())}"

    def diagnosis(self, fault: Fault, what: str) -> Diagnosis:
        """``what`` as a sentence about this artifact."""
        sentence = f"{self.label} in {self.runtime}: {what}"
        return Diagnosis(model=self.label, runtime=self.runtime, fault=fault, sentence=sentence)
