"""README.md of the models of a run: hub model cards with the numbers that were measured.

In: run.json, the models, and verify.json where there is one. Out: `README.md` in every model
directory. A card that a person has changed is left alone: its front matter carries a checksum of
what we wrote. Next files: `card_metadata.py`, `card_verified.py`, `card_costs.py`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from cofi_deploy.api.card_costs import Costs
from cofi_deploy.api.card_metadata import card_data, data_set, hub_id, metrics_of
from cofi_deploy.api.card_verified import Verified, read_verified, verified_model
from cofi_deploy.arch import Arch
from cofi_deploy.artifacts import read_json
from cofi_deploy.atomic import write_bytes
from cofi_deploy.errors import CofiDeployError
from cofi_deploy.family_tables import FAMILIES
from cofi_deploy.kinds import TaskKind
from cofi_deploy.loading import read_dense_arch
from cofi_deploy.targets import speedup_told
from cofi_deploy.task_names import GLUE_NAMES

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MARK = "cofi_deploy_card_sha256"
_MARK_LINE = re.compile(rf"^{MARK}: ([0-9a-f]{{64}})\n", re.MULTILINE)

# Tasks of GLUE that read two sentences.
_PAIRS = frozenset(GLUE_NAMES) - {"cola", "sst2"}
_PURPOSES: Mapping[TaskKind, str] = {
    "text-classification": "classifying text",
    "text-regression": "scoring text",
    "token-classification": "tagging the tokens of a text",
    "question-answering": "finding the answer to a question in a passage",
}
# Settings that say how a model came about, in the order of the stages.
_EPOCHS = ("teacher_epochs", "distill_epochs", "warmup_epochs", "prune_epochs", "finetune_epochs")


def write_cards(run: Path) -> None:
    """Write the card of every model of a finished run.

    Raises:
        ArtifactError: run.json or a model is not readable.
        EnvironmentProblem: The disk is full.
    """
    document = read_json(run / "run.json")
    for entry in document["result"]["models"]:
        _write_card(run, document, entry, None)


def refresh_cards(run: Path) -> None:
    """Put what `verify` found into the cards of the models that it measured.

    Nothing fails here: verification is done and written, a card is a courtesy. What keeps a card
    from being written is logged as a warning.

    Args:
        run: Where verify.json was written; when that is no run directory, nothing is done.
    """
    verified = read_verified(run / "verify.json")
    if verified is None or not (run / "run.json").is_file():
        return
    try:
        document = read_json(run / "run.json")
        for entry in document.get("result", {}).get("models", []):
            found = verified_model(verified, entry, _arch(run / entry["directory"]))
            if found is not None:
                _write_card(run, document, entry, found)
    except (CofiDeployError, KeyError, TypeError, ValueError, TemplateError) as error:
        logger.warning("model cards stay as they are: %s: %s", type(error).__name__, error)


def model_card(
    run: Mapping[str, Any],
    entry: Mapping[str, Any],
    *,
    kind: TaskKind,
    arch: Arch,
    base: Arch,
    verified: Verified | None = None,
) -> str:
    """Render a card.

    Args:
        run: Content of run.json, results included.
        entry: The entry of ``run["result"]["models"]`` that the card is for.
        kind: Of the task.
        arch: Of the model.
        base: Of the dense teacher.
        verified: What a verify.json says about the model.
    """
    environment = Environment(
        loader=PackageLoader("cofi_deploy", "templates"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    costs, data = Costs.of_run(run), data_set(run["task"])
    front_matter = card_data(run, entry, kind, costs)
    text = environment.get_template("model_card.md.j2").render(
        front_matter=front_matter.to_yaml().rstrip("\n"),
        has_license=front_matter.license != "other",
        is_pair=run["task"]["name"] in _PAIRS,
        purpose=_PURPOSES[kind],
        points=lambda difference: f"{100 * difference:+.2f}",
        speedup=_speedup,
        latency_told=speedup_told(entry.get("latency", {})),
        targets=[f"{value:g}" for value in _targets(run["settings"])],
        run=run,
        settings=run["settings"],
        epochs={
            name.removesuffix("_epochs"): run["settings"][name]
            for name in _EPOCHS
            if not (name == "teacher_epochs" and run["teacher"])
        },
        result=run["result"],
        model=entry,
        metrics=metrics_of(entry),
        kind=kind,
        arch=arch,
        base=base,
        base_name=hub_id(run["model"]) or f"a local {FAMILIES[base.family].title} checkpoint",
        family=FAMILIES[base.family].title,
        data=data,
        stages=run.get("stages", {}),
        costs=costs,
        verified=verified,
    )
    return _marked(text)


def is_untouched(text: str) -> bool:
    """Whether a card is as we wrote it, byte for byte."""
    found = _MARK_LINE.search(text)
    return found is not None and found[1] == _checksum(_MARK_LINE.sub("", text, count=1))


def _write_card(
    run: Path, document: Mapping[str, Any], entry: Mapping[str, Any], verified: Verified | None
) -> None:
    directory = run / entry["directory"]
    path = directory / CARD_FILE
    if path.is_symlink() or (path.exists() and not is_untouched(_text(path))):
        logger.warning(
            "%r was changed since it was written, or is of an older version: it stays as it is; "
            "move it away and verify again for a new one",
            str(path),
        )
        return
    card = model_card(
        document,
        entry,
        kind=read_json(directory / "config.json")["task_kind"],
        arch=_arch(directory),
        base=read_dense_arch(run / "teacher"),
        verified=verified,
    )
    write_bytes(path, card.encode())


def _targets(settings: Mapping[str, Any]) -> list[float]:
    """Speedups or sparsities; older runs know only the latter."""
    found: list[float] = settings.get("speedups") or settings["sparsities"]
    return found


def _speedup(row: Mapping[str, Any]) -> str:
    """A speedup with its interval, or why there is none."""
    if row.get("speedup") is None:
        return "too noisy to compare"
    return f"{row['speedup']:.2f} ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"


def _arch(directory: Path) -> Arch:
    return Arch.from_json(read_json(directory / "config.json")["arch"])


def _text(path: Path) -> str:
    """The file's text; what is no text, nobody but its owner can judge."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _marked(text: str) -> str:
    """``text`` with its checksum as the first line of the front matter."""
    opening, rest = text.split("\n", 1)
    return f"{opening}\n{MARK}: {_checksum(text)}\n{rest}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
