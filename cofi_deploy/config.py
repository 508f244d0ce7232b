"""Settings of `train`: flags over a TOML file over a recipe, every problem reported at once.

They end at `api.train`: what lies below takes the resolved, frozen `TrainSettings`. Next file:
`config_checks.py`, which values and combinations are refused.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from cofi_deploy.artifacts import read_toml
from cofi_deploy.config_checks import BUDGETS, problems_of
from cofi_deploy.errors import ConfigError, did_you_mean
from cofi_deploy.masks import FAMILIES
from cofi_deploy.targets import Target

RECIPES = ("paper", "balanced", "fast", "smoke")
VERIFY_TARGETS = ("max_drop", "min_speedup")
SMALL_TASK_ROWS = 10_000  # below it a recipe's [small] table applies
# An AVX-512 register holds 16 floats, a half-precision tensor core instruction sums 16 products.
# `benchmarks/alignment.py widths` measures whether a machine agrees.
AUTO_ALIGN = 16

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a model is taught, pruned and recovered; epochs may be fractions."""

    sparsities: tuple[float, ...] = _setting(
        (0.95,), "target sparsities, ascending: each becomes a model of its own"
    )
    speedups: tuple[float, ...] = _setting((), "measured speedups instead, ascending")
    speedup_for: str = _setting("", "where they are measured: RUNTIME@BATCHxLENGTH")
    batch_size: int = _setting(32, "sequences per optimizer step")
    max_length: int = _setting(0, "longest sequence in tokens; 0: the task's own (128, QA 384)")
    teacher_epochs: float = _setting(3.0, "epochs of fine-tuning the dense teacher")
    teacher_lr: float = _setting(5e-5, "peak learning rate of the teacher")
    teacher_dropout: float = _setting(0.1, "dropout while the teacher is fine-tuned")
    student_init: Literal["teacher", "pretrained"] = _setting(
        "teacher", "where the student's weights start from"
    )
    distill_epochs: float = _setting(0.0, "epochs of distillation before any pruning")
    warmup_epochs: float = _setting(4.0, "epochs in which the target sparsity rises")
    prune_epochs: float = _setting(4.0, "epochs behind the warm-up, at the last target")
    finetune_epochs: float = _setting(8.0, "epochs of fine-tuning the cut model")
    student_lr: float = _setting(1e-4, "peak learning rate of the weights while pruning")
    finetune_lr: float = _setting(1e-4, "peak learning rate of the cut model")
    finetune_lr_rule: Literal["constant", "by-size"] = _setting(
        "constant",
        "by-size: finetune_lr over the square root of the share of the encoder that is left",
    )
    gate_lr: float = _setting(0.0, "learning rate of log_alpha; 0: fitted to the number of steps")
    multiplier_lr: float = _setting(0.0, "learning rate of the multipliers; 0: as gate_lr")
    gate_init: float = _setting(10.0, "mean of the initial log_alpha")
    gate_init_ffn: float = _setting(0.0, "the same for FFN units")
    mask_families: tuple[str, ...] = _setting(FAMILIES, "which families are pruned")
    align: Literal[1, 8, 16, 32, "auto"] = _setting(
        1, "hidden size and FFN widths are multiples of so many; auto: of 16"
    )
    sparsity_schedule: Literal["linear", "cubic"] = _setting("linear", "shape of the warm-up")
    lr_warmup: float = _setting(0.06, "share of a stage in which the learning rate rises")
    weight_decay: float = _setting(0.0, "AdamW weight decay")
    max_grad_norm: float = _setting(1.0, "gradient norm above which gradients are scaled down")
    dropout: float = _setting(0.0, "dropout of the student")
    temperature: float = _setting(2.0, "softening of both distributions in the prediction loss")
    prediction_weight: float = _setting(0.5, "weight of the prediction loss")
    layer_weight: float = _setting(1.0, "weight of the layer loss (a mean over teacher layers)")
    label_weight: float = _setting(0.0, "weight of the loss against the true labels")
    layer_matching: Literal["free", "monotonic", "fixed"] = _setting(
        "monotonic", "how student layers are matched to teacher layers"
    )
    teacher_layers: int = _setting(4, "how many teacher layers are learnt from")
    cache_gib: float = _setting(6.0, "largest cache of teacher outputs on disk; 0: none")
    checkpoint_seconds: float = _setting(
        120.0, "seconds between two checkpoints; 0: one after every step"
    )
    evaluations: int = _setting(4, "evaluations on the selection split in each stage")
    precision: Precision = _setting(
        "auto", "auto: bf16 where the hardware multiplies it, else fp32"
    )
    seed: int = _setting(42, "of data order, dropout, gates and fresh weights")
    train_limit: int = _setting(0, "use only so many training examples; 0: all")
    validation_limit: int = _setting(
        0, "score only so many examples, while training and at the end; 0: all"
    )

    def __post_init__(self) -> None:
        """Check ranges and combinations.

        Raises:
            ConfigError: Lists every problem found.
        """
        problems = list(problems_of(vars(self)))
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def targets(self) -> tuple[Target, ...]:
        """The budget of each model, ascending."""
        if self.speedups:
            return tuple(Target("speedup", value) for value in self.speedups)
        return tuple(Target("sparsity", value) for value in self.sparsities)

    @property
    def multiple(self) -> int:
        """What hidden size and FFN widths are multiples of."""
        return AUTO_ALIGN if self.align == "auto" else self.align

    def to_json(self) -> dict[str, Any]:
        """Plain values, for run.json; what was left to us is decided."""
        return {**dataclasses.asdict(self), "align": self.multiple}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainSettings:
        """What `to_json` gave, read back from run.json.

        Raises:
            ConfigError: Lists every key that is unknown here and every value that does not fit.
        """
        problems: list[str] = []
        converted = _convert(values, problems)
        if problems:
            raise ConfigError("; ".join(problems))
        return cls(**converted)


def resolve_settings(
    *,
    recipe: str = "balanced",
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    training_rows: int,
    kind: str,
) -> TrainSettings:
    """Merge defaults, recipe, TOML file and flags, in rising order of precedence.

    Args:
        recipe: A built-in recipe; its tables ``[small]`` and ``[question-answering]`` apply to
            tasks below 10,000 training rows and to QA.
        config: TOML file with the same keys in a table ``[train]`` or at the top.
        overrides: Settings given as flags; None values are skipped.
        training_rows: Size of the training data.
        kind: The task's kind.

    Raises:
        ConfigError: Unknown recipe or keys, wrong types, bad ranges: all of them at once.
    """
    problems: list[str] = []
    values = _tables(load_recipe(recipe), training_rows, kind, problems)
    if config is not None:
        table = _tables(_read_toml(config, problems), training_rows, kind, problems)
        values = _over(values, table)
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    values = _over(values, flags)
    if "speedups" in values:
        values.setdefault("sparsities", ())  # the default is for those who ask for nothing
    converted = _convert(values, problems)
    try:
        settings = TrainSettings(**converted)
    except ConfigError as error:
        raise ConfigError("settings: " + "; ".join([*problems, str(error)])) from error
    if problems:
        raise ConfigError("settings: " + "; ".join(problems))
    return settings


def verify_targets(path: Path) -> dict[str, float]:
    """The ``[verify]`` table of a TOML file: what `verify` demands.

    Raises:
        ConfigError: Unreadable, or a key that is not a target.
    """
    table = read_toml(path).get("verify", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{str(path)!r}: verify is {table!r}, expected a table [verify]")
    problems = [
        f"unknown key {key!r} in [verify], {did_you_mean(key, VERIFY_TARGETS)}"
        for key in table
        if key not in VERIFY_TARGETS
    ]
    problems += [
        f"[verify] {key} is {value!r}, expected a number"
        for key, value in table.items()
        if isinstance(value, bool) or not isinstance(value, int | float)
    ]
    if problems:
        raise ConfigError(f"{str(path)!r}: " + "; ".join(problems))
    return {key: float(value) for key, value in table.items()}


def load_recipe(name: str) -> dict[str, Any]:
    """A built-in recipe as parsed TOML.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    text = resources.files("cofi_deploy").joinpath("recipes", f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` wins; a budget also over a budget of another kind."""
    lost = {"sparsities": {"speedups", "speedup_for"}, "speedups": {"sparsities"}}
    dropped = {key for budget in BUDGETS if budget in above for key in lost[budget]}
    return {**{key: value for key, value in below.items() if key not in dropped}, **above}


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    document = read_toml(path)
    table = document.get("train")
    if not isinstance(table, dict):
        return document
    problems.extend(
        f"{key!r} stands beside the table [train]; move it into that table"
        for key in document
        if key not in {"train", "verify"}
    )
    return table


def _tables(
    document: Mapping[str, Any], rows: int, kind: str, problems: list[str]
) -> dict[str, Any]:
    """Top-level keys, then the tables that apply to this task."""
    values = {key: value for key, value in document.items() if not isinstance(value, dict)}
    known = {"small": rows < SMALL_TASK_ROWS, "question-answering": kind == "question-answering"}
    for name, table in document.items():
        if not isinstance(table, dict) or name == "verify":
            continue
        if name not in known:
            allowed = did_you_mean(name, [*known, "train", "verify"])
            problems.append(f"unknown table [{name}], {allowed}")
        elif known[name]:
            values |= table
        else:
            problems.extend(_unknown(key) for key in table if key not in _names())
    return values


def _names() -> list[str]:
    return [entry.name for entry in dataclasses.fields(TrainSettings)]


def _unknown(key: str) -> str:
    return f"unknown key {key!r}, {did_you_mean(key, _names())}"


def _convert(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Check names and types against the dataclass; TOML lists become tuples."""
    hints = typing.get_type_hints(TrainSettings)
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            problems.append(_unknown(key))
            continue
        try:
            converted[key] = _converted(value, hints[key])
        except (TypeError, ValueError):
            problems.append(f"{key} is {value!r}, expected {_type_name(hints[key])}")
    return converted


def _converted(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        if isinstance(value, bool) or value not in typing.get_args(hint):
            raise ValueError(value)
        return value
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise TypeError(value)
        return tuple(_converted(entry, item) for entry in value)
    if isinstance(value, bool) or (hint is int and not isinstance(value, int)):
        raise TypeError(value)
    if hint is float and not isinstance(value, int | float):
        raise TypeError(value)
    return hint(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list of {typing.get_args(hint)[0].__name__}"
    return str(hint.__name__)
