"""What is refused before anything is trained: a budget, a teacher or data that cannot work."""

from __future__ import annotations

from pathlib import Path

from cofi_deploy.arch import Arch
from cofi_deploy.config import TrainSettings
from cofi_deploy.errors import ConfigError
from cofi_deploy.loading import label_names, load
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks import EncodedSplit, Task
from cofi_deploy.train.alignment import check_alignment
from cofi_deploy.train.cost import Cost
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.sparsity import check_target


def check_shares(batch_size: int, processes: int) -> None:
    """Refuse more processes than a batch has rows.

    Raises:
        ConfigError: Names both numbers.
    """
    if batch_size < processes:
        raise ConfigError(
            f"batch_size is {batch_size}, but {processes} processes share each batch; start at "
            f"most {batch_size} or set batch_size to {processes} or more"
        )


def check_budget(arch: Arch, settings: TrainSettings, latency: Cost | None = None) -> None:
    """Refuse targets that masks of the chosen families cannot express.

    Raises:
        BudgetError: Names the reachable maximum.
        ConfigError: Widths are to be multiples of more than the model has.
    """
    init = dict.fromkeys(settings.mask_families, 0.0)
    gates = HardConcreteGates(arch.dense, init=init, families=settings.mask_families)
    for target in settings.targets:
        check_target(target.share, gates, latency)
    check_alignment(arch.dense, settings.multiple)


def check_encoded(encoded: EncodedSplit, arch: Arch, model: str) -> None:
    """Refuse features that the model's tables have no rows for.

    Raises:
        ConfigError: A feature is too long, or the tokenizer is of another vocabulary.
    """
    longest = int(encoded.lengths.max())
    if longest > arch.max_positions:
        raise ConfigError(
            f"{encoded.name} data has {longest} tokens in a sequence, but {model!r} reads at most "
            f"{arch.max_positions}; set max_length to {arch.max_positions} or less"
        )
    largest = int(encoded.input_ids.max())
    if largest >= arch.vocab_size:
        raise ConfigError(
            f"the tokenizer of {model!r} gives token {largest}, but the model's vocabulary has "
            f"{arch.vocab_size}; use the tokenizer that it was trained with"
        )


def checked_teacher(path: Path, task: Task, base: Arch) -> CofiPreTrainedModel:
    """The teacher that the user gives, once it is known to suit.

    Args:
        path: Fine-tuned dense checkpoint.
        task: What it has to answer.
        base: Of the model that the student and the tokenizer are taken from.

    Raises:
        ConfigError: It is pruned, does something else, or is of another size.
    """
    model = load(path)
    if not model.arch.is_dense:
        raise ConfigError(f"--teacher {str(path)!r} is pruned already; give a dense checkpoint")
    names = label_names(model)
    if model.kind != task.kind or (task.labels and names != task.labels):
        raise ConfigError(
            f"--teacher {str(path)!r} does {model.kind} with labels {list(names)}, but task "
            f"{task.name!r} needs {task.kind} with {list(task.labels)}"
        )
    for name in ("dense", "vocab_size", "max_positions"):
        got, wanted = getattr(model.arch, name), getattr(base, name)
        if got != wanted:
            raise ConfigError(
                f"--teacher {str(path)!r} has {name} {got}, but --model has {wanted}; "
                "give a teacher that was fine-tuned from --model"
            )
    return model
