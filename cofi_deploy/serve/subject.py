"""`Subject`: a model under a name, with the artifact of it that each runtime opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cofi_deploy.arch import Arch
from cofi_deploy.errors import UsageError
from cofi_deploy.exports import read_manifest
from cofi_deploy.inspect_model import describe

# What a runtime reads to answer. Tokenizer, configuration and caches are no part of the size.
_MODEL_SUFFIXES = frozenset(
    {".safetensors", ".onnx", ".onnx_data", ".data", ".xml", ".bin", ".plan"}
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to be measured.

    Attributes:
        label: Its name in rows and reports.
        artifacts: Directory for each runtime: a model directory for ``torch``, an export for the
            others. A runtime that is not in it is skipped.
        facts: Keys of its rows that only the caller knows: ``base_model``, ``recipe``, ``seed``,
            ``target_sparsity``, ``target_speedup``.
        unusable: Why the artifact for a runtime cannot be run; found by `diagnosis.screen`.
    """

    label: str
    artifacts: Mapping[str, Path]
    facts: Mapping[str, Any] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Path:
        """A directory that holds its tokenizer: every artifact's does.

        Raises:
            UsageError: The subject has no artifact.
        """
        return self.artifacts.get("torch") or self._any_artifact()

    @property
    def home(self) -> str:
        """The runtime whose artifact holds `tokenizer`."""
        return "torch" if "torch" in self.artifacts else next(iter(self.artifacts))

    def own_tokenizer(self, runtime: str) -> Path | None:
        """The artifact's directory where its vocabulary was cut, so that ids differ from others'.

        Raises:
            ArtifactError: The export's manifest is not readable.
        """
        directory = self.artifacts[runtime]
        if runtime == "torch" or not read_manifest(directory).options.get("shrink_embeddings"):
            return None
        return directory

    def arch(self) -> Arch:
        """Its structure, from the model directory or from an export's manifest.

        Raises:
            ArtifactError: Neither is readable.
        """
        if "torch" in self.artifacts:
            return Arch.from_json(describe(self.artifacts["torch"])["arch"])
        return read_manifest(self._any_artifact()).arch

    def row(self) -> dict[str, Any]:
        """The keys that all of its rows share.

        Raises:
            ArtifactError: The model directory is not readable.
        """
        known: dict[str, Any] = {"model": self.label, **self.facts}
        if "torch" in self.artifacts:
            facts = describe(self.artifacts["torch"])
            known |= {key: facts[key] for key in ("family", "parameters", "realized_sparsity")}
            return known
        arch = self.arch()
        return known | {"family": arch.family, "realized_sparsity": arch.sparsity}

    def size_bytes(self, runtime: str) -> int:
        """Bytes of the files that the runtime reads weights and graph from."""
        files = self.artifacts[runtime].rglob("*")
        return sum(path.stat().st_size for path in files if path.suffix in _MODEL_SUFFIXES)

    def _any_artifact(self) -> Path:
        if not self.artifacts:
            raise UsageError(f"{self.label!r} has no artifact for any runtime; export it first")
        return next(iter(self.artifacts.values()))
