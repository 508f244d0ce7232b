"""The stages in the published order, from a dense checkpoint to compact models.

teacher -> cache of its answers -> distillation -> pruning through every target -> cut ->
fine-tuning of each cut model. What one stage leaves for the next lies in the run directory, so a
killed run continues with the stage, and the step, that it had reached.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from cofi_deploy.artifacts import read_json, sha256_file, write_json
from cofi_deploy.atomic import sweep_leftovers
from cofi_deploy.config import TrainSettings
from cofi_deploy.loading import WEIGHTS, load, load_dense, read_dense_arch, save_compact, save_dense
from cofi_deploy.masks import Masks
from cofi_deploy.targets import Target
from cofi_deploy.tasks import Task
from cofi_deploy.train.alignment import aligned_masks, kept_widths
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.checks import check_budget, check_encoded, check_shares, checked_teacher
from cofi_deploy.train.distill import teacher_layers
from cofi_deploy.train.evaluate import evaluate
from cofi_deploy.train.final_report import final_report
from cofi_deploy.train.handover import read_cut, write_cut
from cofi_deploy.train.latency_table import LatencyCost
from cofi_deploy.train.loop import Stage, Standing, interruption, save_stage
from cofi_deploy.train.plan import finetune_name, planned_stages
from cofi_deploy.train.precision import Numerics
from cofi_deploy.train.processes import is_main, on_main, rank, together, world_size
from cofi_deploy.train.progress import RunProgress
from cofi_deploy.train.projection import masks_at_target
from cofi_deploy.train.sparsity import realized_sparsity
from cofi_deploy.train.speedup import SpeedupBudget, measured_masks
from cofi_deploy.train.stage_runner import StageRunner
from cofi_deploy.train.stages import (
    Setup,
    Student,
    distill_stage,
    finetune_stage,
    prune_stages,
    teacher_stage,
)
from cofi_deploy.train.student import new_student
from cofi_deploy.train.teacher import CachedTeacher, LiveTeacher, Teacher, build_cache, cache_bytes

_SELECTION_LIMIT = 2000


class Pipeline:
    """One training run in one directory."""

    def __init__(  # noqa: PLR0913 - everything that stages share
        self,
        run: Path,
        *,
        task: Task,
        model: str,
        teacher: Path | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainSettings,
        speedup: SpeedupBudget | None = None,
    ) -> None:
        """Encode the data; nothing is written yet.

        Args:
            run: The run directory, with a run.json in it.
            task: Its train split is learnt, its selection split decides.
            model: Dense checkpoint to start from.
            teacher: Fine-tuned dense checkpoint to take instead of training one.
            tokenizer: Of ``model``.
            settings: Resolved settings.
            speedup: Where they ask for speedups.

        Raises:
            BudgetError: A sparsity or speedup that the masks cannot reach.
            ConfigError: Data and model do not fit each other.
        """
        self.run = run
        self.task = task
        self.model = model
        self.given_teacher = teacher
        self.tokenizer = tokenizer
        self.settings = settings
        self.arch = read_dense_arch(model)
        self.speedup = speedup
        latency = None if speedup is None else LatencyCost(speedup.table, self.arch.dense)
        check_budget(self.arch, settings, latency)
        check_shares(settings.batch_size, world_size())
        self.numerics = Numerics.choose(settings.precision)
        train = task.encode("train", tokenizer, limit=settings.train_limit or None)
        limit = min(settings.validation_limit or _SELECTION_LIMIT, _SELECTION_LIMIT)
        selection = task.encode("selection", tokenizer, limit=limit)
        for encoded in (train, selection):
            check_encoded(encoded, self.arch, model)
        batches = Batches(
            train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            device=self.numerics.device,
            part=(rank(), world_size()),
        )
        self.setup = Setup(
            task=task,
            settings=settings,
            numerics=self.numerics,
            batches=batches,
            selection=selection,
            latency=latency,
        )

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.run / "checkpoint"

    def train(self) -> dict[str, Any]:
        """Run or continue all stages.

        Returns:
            For run.json: metrics of teacher and models on selection and validation.

        Raises:
            DivergedError: Loss or gradients are not finite.
            KeyboardInterrupt: Ctrl-C or SIGTERM came; the run can be resumed.
        """
        on_main(lambda: sweep_leftovers(self.run))
        set_seed(self.settings.seed)
        planned = planned_stages(
            self.settings,
            self.setup.batches,
            trains_teacher=self.given_teacher is None,
            cached=on_main(self._decide_cache),
        )
        metrics = self.run / "metrics.jsonl" if is_main() else None
        with interruption, RunProgress(metrics, planned) as progress:
            interval_s = self.settings.checkpoint_seconds
            runner = StageRunner(self.run, progress, list(planned), interval_s=interval_s)
            on_main(runner.forget_unfinished)
            self._teacher_stage(runner)
            if not runner.are_done([finetune_name(each) for each in self.settings.targets]):
                self._student_stages(runner)
            report = on_main(lambda: self._report(progress))
        if is_main():
            for name in ("checkpoint", "cache", "cut"):
                shutil.rmtree(self.run / name, ignore_errors=True)
        return report

    def model_directory(self, target: Target) -> Path:
        """`model/` for the last target, `models/<target>/` for the rest of a family."""
        if target == self.settings.targets[-1]:
            return self.run / "model"
        return self.run / "models" / target.name

    def _decide_cache(self) -> bool:
        """Whether the teacher's answers are cached: decided once in the life of a run.

        The cache rounds states to fp16 and takes disk space itself, so a run that decided anew
        when it is resumed could go on differently.
        """
        document = read_json(self.run / "run.json")
        if "teacher_cache" not in document:
            count = len(teacher_layers(len(self.arch.layers), self.settings.teacher_layers))
            size = cache_bytes(self.setup.batches.encoded, count, self.arch.hidden)
            free = shutil.disk_usage(self.run).free
            document["teacher_cache"] = size <= min(self.settings.cache_gib * 2**30, free / 2)
            write_json(self.run / "run.json", document)
        return bool(document["teacher_cache"])

    def _teacher_stage(self, runner: StageRunner) -> None:
        directory = self.run / "teacher"
        if self.given_teacher is not None:
            on_main(lambda: self._take_teacher(directory))
            return
        if runner.is_done("teacher"):
            return
        with together():
            model = load_dense(
                self.model,
                self.task.kind,
                labels=self.task.labels,
                dropout=self.settings.teacher_dropout,
            )
            stage = teacher_stage(self.setup, self.numerics.place(model))
        runner.run(stage)
        on_main(lambda: save_dense(model, self.tokenizer, directory))
        on_main(lambda: runner.mark_done("teacher"))

    def _take_teacher(self, directory: Path) -> None:
        if self.given_teacher is not None and not directory.exists():
            model = checked_teacher(self.given_teacher, self.task, self.arch)
            save_dense(model, self.tokenizer, directory)

    def _student_stages(self, runner: StageRunner) -> None:
        with together():
            teacher_model = self.numerics.place(load(self.run / "teacher"))
        layers = teacher_layers(len(teacher_model.arch.layers), self.settings.teacher_layers)
        live = LiveTeacher(teacher_model, layers)
        teacher = self._cached(live, runner) if on_main(self._decide_cache) else live
        source = self.run / "teacher" if self.settings.student_init == "teacher" else self.model
        with together():
            student = new_student(source, teacher_model.arch, self.setup)
        self._prune(runner, student, teacher)
        for target in self.settings.targets:
            self._finetune(runner, teacher, target)

    def _cached(self, live: LiveTeacher, runner: StageRunner) -> Teacher:
        encoded, directory = self.setup.batches.encoded, self.run / "cache"
        key = ":".join(
            [
                sha256_file(self.run / "teacher" / WEIGHTS),
                self.task.fingerprint(),
                f"{len(encoded)}x{int(encoded.offsets[-1])}",
                str(live.layers),
            ]
        )
        done = 0
        runner.progress.start("teacher-cache")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            runner.progress.advance(done, {}, count=count)
            interruption.stop_if_asked()

        device = self.numerics.device
        on_main(
            lambda: build_cache(live, encoded, directory, key=key, device=device, advance=advance)
        )
        with together():
            return CachedTeacher(directory, encoded, device)

    def _prune(self, runner: StageRunner, student: Student, teacher: Teacher) -> None:
        """Distil, prune, cut on the way; each stage's end is the checkpoint of the next."""
        steps = self._pruning(student, teacher)
        for index, step in enumerate(steps):
            stage = step.stage
            if runner.is_done(stage.name):
                continue
            runner.run(stage)
            following = steps[index + 1] if index + 1 < len(steps) else None
            on_main(lambda: self._leave(student, step, following))  # noqa: B023 - called here
            on_main(lambda: runner.mark_done(stage.name))  # noqa: B023 - called here

    def _leave(self, student: Student, step: _PruningStep, following: _PruningStep | None) -> None:
        """Write what fine-tuning and the next stage begin with."""
        if step.target is not None:
            # A new model draws weights: with that undone, pruning goes on as without this cut.
            with torch.random.fork_rng(devices=[]):
                self._cut(student, step.target)
        if following is not None:
            save_stage(following.stage, self.checkpoint, Standing())

    def _cut(self, student: Student, target: Target) -> None:
        masks, latency = self._masks(student, target)
        if latency is not None:
            self._note("latency", target, latency)
        if self.settings.multiple > 1:
            self._note("alignment", target, self._alignment(student, target, masks))
        write_cut(self._cut_directory(target), student, masks, self.tokenizer)

    def _masks(self, student: Student, target: Target) -> tuple[Masks, dict[str, Any] | None]:
        """What is cut, and what was measured of it where the budget is a speedup."""
        align = self.settings.multiple
        if self.speedup is None:
            return aligned_masks(student.gates, target.share, align), None
        return measured_masks(student.gates, target, self.speedup, student.model.arch, align=align)

    def _note(self, what: str, target: Target, facts: Mapping[str, Any]) -> None:
        """Into run.json, where a resumed run finds it."""
        document = read_json(self.run / "run.json")
        document.setdefault(what, {})[target.name] = facts
        write_json(self.run / "run.json", document)

    def _alignment(self, student: Student, target: Target, masks: Masks) -> dict[str, Any]:
        """Sizes and accuracy of the cut without and with it, before fine-tuning."""
        cost = self.setup.cost(student.gates)
        both = {"without": masks_at_target(student.gates, target.share, cost), "with": masks}
        return {
            "multiple": self.settings.multiple,
            "split": "selection",
            "metric_name": self.task.metric_name,
            **{name: self._sizes_and_metric(student, each) for name, each in both.items()},
        }

    def _sizes_and_metric(self, student: Student, masks: Masks) -> dict[str, Any]:
        scores = evaluate(student.model, self.task, self.setup.selection, masks)
        realized = realized_sparsity(masks, student.gates.shape)
        return {**kept_widths(masks), "realized_sparsity": realized, "metric": scores["metric"]}

    def _pruning(self, student: Student, teacher: Teacher) -> list[_PruningStep]:
        steps = []
        if self.settings.distill_epochs > 0:
            steps.append(_PruningStep(None, distill_stage(self.setup, student, teacher)))
        stages = prune_stages(self.setup, student, teacher)
        return [*steps, *(_PruningStep(target, stage) for target, stage in stages.items())]

    def _cut_directory(self, target: Target) -> Path:
        return self.run / "cut" / target.name

    def _finetune(self, runner: StageRunner, teacher: Teacher, target: Target) -> None:
        name = finetune_name(target)
        if runner.is_done(name):
            return
        with together():
            model, projection = read_cut(
                self._cut_directory(target), hidden=self.arch.hidden, dropout=self.settings.dropout
            )
        place = self.numerics.place
        set_seed(self.settings.seed)
        if self.settings.finetune_epochs > 0:
            runner.run(
                finetune_stage(self.setup, place(model), place(projection), teacher, target=target)
            )
        on_main(lambda: save_compact(model, self.tokenizer, self.model_directory(target)))
        on_main(lambda: runner.mark_done(name))

    def _report(self, progress: RunProgress) -> dict[str, Any]:
        progress.say("scoring on the validation split")
        limit = self.settings.validation_limit or None
        encoded = self.task.encode("validation", self.tokenizer, limit=limit)
        check_encoded(encoded, self.arch, self.model)
        models = {target: self.model_directory(target) for target in self.settings.targets}
        return final_report(self.run, models, self.task, encoded, self.numerics)


class _PruningStep(NamedTuple):
    """A stage to come, and the target that the student is cut at behind it, if any."""

    target: Target | None
    stage: Stage
