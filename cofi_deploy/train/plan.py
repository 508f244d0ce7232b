"""The stages of a run in order, how long each is, and what its steps cost."""

from __future__ import annotations

from cofi_deploy.config import TrainSettings
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.stages import finetune_name, prune_name

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
    for target in s.targets:
        part = (target.share - start) / s.targets[-1].share
        steps = batches.steps(s.warmup_epochs * part) + batches.steps(s.prune_epochs)
        planned[prune_name(target)] = (steps, _MASK_COST + 1.1 - (start + target.share) / 2.0)
        start = target.share
    for target in s.targets:
        cost = 0.15 + 1.1 * (1.0 - target.share)
        planned[finetune_name(target)] = (batches.steps(s.finetune_epochs), cost)
    return planned
