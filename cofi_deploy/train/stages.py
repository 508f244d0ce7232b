"""What each stage trains: the teacher, the gated student, the cut student.

Every function builds a `Stage` for `loop.run_stage`; `pipeline.py` puts them in order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from cofi_deploy.config import TrainSettings
from cofi_deploy.masks import Masks
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.targets import Target
from cofi_deploy.tasks import EncodedSplit, Task
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.cost import Cost, expected_share, realized_share
from cofi_deploy.train.distill import LayerProjection, teacher_layers
from cofi_deploy.train.evaluate import evaluate
from cofi_deploy.train.gates import CLAMP, HardConcreteGates
from cofi_deploy.train.lagrangian import Lagrangian, scheduled_sparsity, warmup_progress
from cofi_deploy.train.loop import Pace, Part, Stage
from cofi_deploy.train.losses import Distillation, shared_label_loss
from cofi_deploy.train.plan import finetune_name, prune_name, pruning_parts
from cofi_deploy.train.precision import Numerics
from cofi_deploy.train.processes import world_size
from cofi_deploy.train.sparsity import ParameterCost, expected_sparsity, realized_sparsity
from cofi_deploy.train.teacher import Teacher

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
# With gate_lr = 0 a gate can cross its whole range this many times in the pruning steps.
_GATE_CROSSINGS = 6.0
_MIN_GATE_LR, _MAX_GATE_LR = 0.01, 0.2
# By size, a model that has less left than this learns no faster.
_LEAST_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all stages share."""

    task: Task
    settings: TrainSettings
    numerics: Numerics
    batches: Batches
    selection: EncodedSplit
    latency: Cost | None = None  # where the budget is a speedup

    @property
    def distillation(self) -> Distillation:
        """The student's loss."""
        s = self.settings
        return Distillation(
            kind=self.task.kind,
            temperature=s.temperature,
            prediction_weight=s.prediction_weight,
            layer_weight=s.layer_weight,
            label_weight=s.label_weight,
            matching=s.layer_matching,
        )

    def cost(self, gates: HardConcreteGates) -> Cost:
        """What the budget counts."""
        return self.latency or ParameterCost(gates.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Student:
    """The model being pruned, with what is learnt beside it."""

    model: CofiPreTrainedModel
    projection: LayerProjection
    gates: HardConcreteGates
    lagrangian: Lagrangian
    generator: torch.Generator

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Everything that a checkpoint must hold."""
        return {
            "weights": self.model,
            "projection": self.projection,
            "gates": self.gates,
            "lagrangian": self.lagrangian,
        }


def teacher_stage(setup: Setup, model: CofiPreTrainedModel, name: str = "teacher") -> Stage:
    """Fine-tune the dense model against the true labels, embeddings included."""
    s = setup.settings

    def loss(step: int) -> Mapping[str, Tensor | float]:
        batch = setup.batches.at(step)
        with setup.numerics.autocast():
            outputs = model.train().outputs(batch.inputs)
        return {"loss": shared_label_loss(outputs, batch, setup.task.kind)}

    return Stage(
        name=name,
        steps=setup.batches.steps(s.teacher_epochs),
        modules={"weights": model},
        optimizers={"weights": _weights_optimizer(s, [model], s.teacher_lr, embeddings=True)},
        lr_setting="teacher_lr",
        loss=loss,
        evaluate=lambda: evaluate(model, setup.task, setup.selection),
        keep_best=True,
        pace=_pace(setup),
    )


def distill_stage(setup: Setup, student: Student, teacher: Teacher) -> Stage:
    """Teach the student the task without masks: the paper's pre-pruning phase."""
    s = setup.settings
    notes = _notes(setup, student.model)

    def loss(step: int) -> Mapping[str, Tensor | float]:
        batch = setup.batches.at(step)
        student.model.train()
        with setup.numerics.autocast():
            losses, notes["matched_layers"] = setup.distillation(
                student.model, student.projection, batch, teacher.answers(batch)
            )
        return losses

    learners = [student.model, student.projection]
    return Stage(
        name="distill",
        steps=setup.batches.steps(s.distill_epochs),
        modules=student.modules,
        optimizers={"weights": _weights_optimizer(s, learners, s.student_lr)},
        lr_setting="student_lr",
        generators={"gates": student.generator},
        loss=loss,
        evaluate=lambda: evaluate(student.model, setup.task, setup.selection),
        notes=lambda: notes,
        pace=_pace(setup),
    )


def prune_stages(setup: Setup, student: Student, teacher: Teacher) -> dict[Target, Stage]:
    """One pruning, in as many stages as there are targets."""
    whole = _pruning(setup, student, teacher)

    def part_of_it(target: Target, part: Part) -> Stage:
        return dataclasses.replace(
            whole,
            name=prune_name(target),
            steps=part.end - part.begin,
            schedule=part,
            loss=lambda step: whole.loss(part.begin + step),
        )

    parts = pruning_parts(setup.settings, setup.batches)
    return {target: part_of_it(target, part) for target, part in parts.items()}


def _pruning(setup: Setup, student: Student, teacher: Teacher) -> Stage:
    """Learn weights and masks jointly while the scheduled share of the cost rises."""
    s = setup.settings
    warmup_steps = setup.batches.steps(s.warmup_epochs)
    cost = setup.cost(student.gates)
    notes = _notes(setup, student.model)

    def loss(step: int) -> Mapping[str, Tensor | float]:
        batch = setup.batches.at(step)
        student.model.train()
        with setup.numerics.autocast():
            losses, notes["matched_layers"] = setup.distillation(
                student.model,
                student.projection,
                batch,
                teacher.answers(batch),
                student.gates.sample(student.generator),
            )
        progress = warmup_progress(step, warmup_steps)
        now = scheduled_sparsity(progress, last=s.targets[-1].share, schedule=s.sparsity_schedule)
        keep_prob = student.gates.keep_prob()
        share = expected_share(cost, keep_prob)
        # Every process computes all of it, and losses are added up.
        penalty = student.lagrangian(share, now) / world_size()
        return {
            **losses,
            "loss": losses["loss"] + penalty,
            "loss_lagrangian": penalty,
            "expected_sparsity": expected_sparsity(keep_prob, student.gates.shape),
            f"target_{cost.name}": cost.value(now),
            f"expected_{cost.name}": cost.value(share),
            "lambda_linear": student.lagrangian.lambda_linear,
            "lambda_quadratic": student.lagrangian.lambda_quadratic,
        }

    gate_lr = s.gate_lr or _fitted_gate_lr(setup)
    return Stage(
        name="prune",
        steps=warmup_steps + setup.batches.steps(s.prune_epochs),
        modules=student.modules,
        optimizers={
            "weights": _weights_optimizer(s, [student.model, student.projection], s.student_lr),
            "gates": AdamW(student.gates.parameters(), lr=gate_lr, weight_decay=0.0),
            "multipliers": AdamW(
                student.lagrangian.parameters(),
                lr=s.multiplier_lr or gate_lr,
                weight_decay=0.0,
                maximize=True,
            ),
        },
        lr_setting="student_lr",
        generators={"gates": student.generator},
        loss=loss,
        after_step=student.gates.clamp,
        evaluate=lambda: _evaluate_masked(setup, student),
        notes=lambda: {**notes, **_realized(setup, student)},
        pace=_pace(setup),
    )


def finetune_stage(
    setup: Setup,
    model: CofiPreTrainedModel,
    projection: LayerProjection,
    teacher: Teacher,
    *,
    target: Target,
) -> Stage:
    """Fine-tune the cut model: same losses, no masks; the best weights on selection are kept."""
    s = setup.settings
    notes = _notes(setup, model)

    def loss(step: int) -> Mapping[str, Tensor | float]:
        batch = setup.batches.at(step)
        model.train()
        with setup.numerics.autocast():
            losses, notes["matched_layers"] = setup.distillation(
                model, projection, batch, teacher.answers(batch)
            )
        return losses

    return Stage(
        name=finetune_name(target),
        steps=setup.batches.steps(s.finetune_epochs),
        modules={"weights": model, "projection": projection},
        optimizers={"weights": _weights_optimizer(s, [model, projection], _finetune_lr(s, model))},
        lr_setting="finetune_lr",
        loss=loss,
        evaluate=lambda: evaluate(model, setup.task, setup.selection),
        notes=lambda: notes,
        keep_best=True,
        pace=_pace(setup),
    )


def _notes(setup: Setup, model: CofiPreTrainedModel) -> dict[str, object]:
    """What ``matched_layers`` is matched to: 1-based numbers of the teacher's layers."""
    layers = teacher_layers(model.arch.dense.layers, setup.settings.teacher_layers)
    return {"teacher_layers": list(layers)}


def _evaluate_masked(setup: Setup, student: Student) -> dict[str, float]:
    masks: Masks = student.gates.fixed()
    scores = evaluate(student.model, setup.task, setup.selection, masks)
    return {**scores, **_realized(setup, student)}


def _realized(setup: Setup, student: Student) -> dict[str, float]:
    """What it would come to if the model were cut now; draws no random number."""
    masks, cost = student.gates.fixed(), setup.cost(student.gates)
    return {
        "realized_sparsity": realized_sparsity(masks, student.gates.shape),
        f"realized_{cost.name}": cost.value(realized_share(cost, masks)),
    }


def _finetune_lr(settings: TrainSettings, model: CofiPreTrainedModel) -> float:
    """Peak learning rate of a cut model: narrow ones take, and need, larger steps."""
    if settings.finetune_lr_rule == "constant":
        return settings.finetune_lr
    return settings.finetune_lr / math.sqrt(max(1.0 - model.arch.sparsity, _LEAST_SHARE))


def _fitted_gate_lr(setup: Setup) -> float:
    """The published 0.01 suits tens of thousands of steps; fewer need larger ones."""
    s = setup.settings
    steps = setup.batches.steps(s.warmup_epochs) + setup.batches.steps(s.prune_epochs)
    return min(_MAX_GATE_LR, max(_MIN_GATE_LR, _GATE_CROSSINGS * 2.0 * CLAMP / steps))


def _weights_optimizer(
    settings: TrainSettings,
    modules: Sequence[nn.Module],
    lr: float,
    *,
    embeddings: bool = False,
) -> AdamW:
    """AdamW over weights; the student's embeddings stay frozen, as published."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            frozen = "embeddings." in name and not embeddings
            parameter.requires_grad_(not frozen)
            if frozen:
                continue
            exempt = name.endswith(".bias") or ".norm." in name
            (plain if exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay, "peak_lr": lr},
        {"params": plain, "weight_decay": 0.0, "peak_lr": lr},
    ]
    return AdamW(groups, lr=lr, betas=_ADAM_BETAS, eps=_ADAM_EPSILON, fused=True)


def _pace(setup: Setup) -> Pace:
    return Pace(
        evaluations=setup.settings.evaluations,
        lr_warmup=setup.settings.lr_warmup,
        max_grad_norm=setup.settings.max_grad_norm,
        samples_per_step=setup.settings.batch_size,
        seed=setup.settings.seed,
        scaler=setup.numerics.scaler(),
    )
