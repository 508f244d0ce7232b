"""The stages of a run in order, how long each is, and what its steps cost."""

from __future__ import annotations

from cofi_deploy.config import TrainSettings
from cofi_deploy.targets import Target
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.lagrangian import progress_at
from cofi_deploy.train.loop import Part

# Costs in steps of a dense model forwards and backwards, dropout left out; measured on two cores.
_TEACHER_COST = 1.1
_CACHE_COST = 0.36  # forwards only
_DISTILL_COST = 1.2
_MASK_COST = 0.2


def planned_stages(
    settings: TrainSettings, batches: Batches, *, trains_teacher: bool, cached: bool
) -> dict[str, tuple[int, float]]:
    """Steps of every stage and the cost of one; the teacher's cache counts features as steps."""
    s = settings
    planned: dict[str, tuple[int, float]] = {}
    if trains_teacher:
        planned["teacher"] = (batches.steps(s.teacher_epochs), _TEACHER_COST)
    if cached:
        planned["teacher-cache"] = (len(batches.encoded), _CACHE_COST / s.batch_size)
    if s.distill_epochs > 0:
        planned["distill"] = (batches.steps(s.distill_epochs), _DISTILL_COST)
    start = 0.0
    for target, part in pruning_parts(s, batches).items():
        cost = _MASK_COST + 1.1 - (start + target.share) / 2.0
        planned[prune_name(target)] = (part.end - part.begin, cost)
        start = target.share
    for target in s.targets:
        cost = 0.15 + 1.1 * (1.0 - target.share)
        planned[finetune_name(target)] = (batches.steps(s.finetune_epochs), cost)
    return planned


def pruning_parts(settings: TrainSettings, batches: Batches) -> dict[Target, Part]:
    """Which steps of the pruning lead to each target, in rising order.

    A family is pruned as a run of its own for the last target would be: the other members are
    what the student is when the schedule passes their targets.
    """
    warmup = batches.steps(settings.warmup_epochs)
    last = settings.targets[-1].share
    ends: list[int] = []
    for target in settings.targets:
        passed = progress_at(target.share, last=last, schedule=settings.sparsity_schedule)
        ends.append(max(round(warmup * passed), ends[-1] + 1 if ends else 1))
    ends[-1] = max(ends[-1], warmup + batches.steps(settings.prune_epochs))
    begins = [0, *ends[:-1]]
    return {
        target: Part(begin=begin, end=end, whole=ends[-1])
        for target, begin, end in zip(settings.targets, begins, ends, strict=True)
    }


def prune_name(target: Target) -> str:
    """Name of the stage that prunes to ``target``."""
    return f"prune-{target.name}"


def finetune_name(target: Target) -> str:
    """Name of the stage that fine-tunes the model cut at ``target``."""
    return f"finetune-{target.name}"
