"""The stages in the published order, from a dense checkpoint to compact models.

teacher -> cache of its answers -> distillation -> pruning through every target sparsity -> cut ->
fine-tuning of each cut model. What one stage leaves for the next lies in the run directory, so a
killed run continues with the stage, and the step, that it had reached.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import safetensors.torch
from transformers import PreTrainedTokenizerBase, set_seed

from cofi_deploy.artifacts import read_json, sha256_file, write_bytes, write_json
from cofi_deploy.config import TrainSettings
from cofi_deploy.errors import CheckpointError, ConfigError
from cofi_deploy.loading import WEIGHTS, load, load_dense, read_dense_arch, save_compact, save_dense
from cofi_deploy.model import CofiPreTrainedModel
from cofi_deploy.tasks import Task
from cofi_deploy.train.batches import Batches
from cofi_deploy.train.checkpoint import read_state
from cofi_deploy.train.cut import cut
from cofi_deploy.train.distill import LayerProjection, teacher_layers
from cofi_deploy.train.evaluate import evaluate
from cofi_deploy.train.gates import HardConcreteGates
from cofi_deploy.train.lagrangian import Lagrangian
from cofi_deploy.train.loop import Stage, interruption, run_stage, save_stage
from cofi_deploy.train.precision import Numerics
from cofi_deploy.train.progress import RunProgress, forget_after
from cofi_deploy.train.projection import masks_at_sparsity
from cofi_deploy.train.sparsity import check_target_sparsity
from cofi_deploy.train.stages import (
    Setup,
    Student,
    distill_stage,
    finetune_name,
    finetune_stage,
    prune_name,
    prune_stage,
    teacher_stage,
)
from cofi_deploy.train.teacher import CachedTeacher, LiveTeacher, Teacher, build_cache, cache_bytes

_PROJECTION = "projection.safetensors"
_SELECTION_LIMIT = 2000


class Pipeline:
    """One training run in one directory."""

    def __init__(
        self,
        run: Path,
        *,
        task: Task,
        model: str,
        teacher: Path | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainSettings,
    ) -> None:
        """Encode the data; nothing is written yet.

        Args:
            run: The run directory, with a run.json in it.
            task: Its train split is learnt, its selection split decides.
            model: Dense checkpoint to start from.
            teacher: Fine-tuned dense checkpoint to take instead of training one.
            tokenizer: Of ``model``.
            settings: Resolved settings.
        """
        self.run = run
        self.task = task
        self.model = model
        self.given_teacher = teacher
        self.tokenizer = tokenizer
        self.settings = settings
        self.numerics = Numerics.choose(settings.precision)
        train = task.encode("train", tokenizer, limit=settings.train_limit or None)
        self.setup = Setup(
            task=task,
            settings=settings,
            numerics=self.numerics,
            batches=Batches(
                train,
                batch_size=settings.batch_size,
                seed=settings.seed,
                device=self.numerics.device,
            ),
            selection=task.encode("selection", tokenizer, limit=_SELECTION_LIMIT),
        )

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.run / "checkpoint"

    def train(self) -> dict[str, Any]:
        """Run or continue all stages.

        Returns:
            For run.json: metrics of teacher and models on selection and validation.
        """
        interruption.install()
        set_seed(self.settings.seed)
        state = read_state(self.checkpoint)
        planned = self._planned()
        if state is not None:
            forget_after(self.run / "metrics.jsonl", list(planned), state["stage"], state["step"])
        with RunProgress(self.run / "metrics.jsonl", planned) as progress:
            runner = _StageRunner(self.run, progress, list(planned), state)
            self._teacher_stage(runner)
            self._student_stages(runner)
            report = self._final_report(progress)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        shutil.rmtree(self.run / "cache", ignore_errors=True)
        return report

    def model_directory(self, target: float) -> Path:
        """`model/` for the highest sparsity, `models/<sparsity>/` for the rest of a family."""
        if target == self.settings.sparsities[-1]:
            return self.run / "model"
        return self.run / "models" / f"{target:g}"

    def _planned(self) -> dict[str, tuple[int, float]]:
        """Steps of every stage and what a step costs, in dense training steps."""
        s, batches = self.settings, self.setup.batches
        planned: dict[str, tuple[int, float]] = {}
        if self.given_teacher is None:
            planned["teacher"] = (batches.steps(s.teacher_epochs), 1.1)
        if self._cache_fits():
            planned["teacher-cache"] = (len(batches.encoded), 0.36 / s.batch_size)
        if s.distill_epochs > 0:
            planned["distill"] = (batches.steps(s.distill_epochs), 1.2)
        start = 0.0
        for target in s.sparsities:
            share = (target - start) / max(s.sparsities)
            steps = batches.steps(s.warmup_epochs * share) + batches.steps(s.prune_epochs)
            planned[prune_name(target)] = (steps, 0.2 + 1.1 - (start + target) / 2.0)
            start = target
        for target in s.sparsities:
            planned[finetune_name(target)] = (
                batches.steps(s.finetune_epochs),
                0.15 + 1.1 * (1.0 - target),
            )
        return planned

    def _teacher_stage(self, runner: _StageRunner) -> None:
        directory = self.run / "teacher"
        if self.given_teacher is not None:
            if not directory.exists():
                save_dense(self._checked_teacher(self.given_teacher), self.tokenizer, directory)
            return
        if runner.is_done("teacher"):
            return
        model = load_dense(
            self.model,
            self.task.kind,
            labels=self.task.labels,
            dropout=self.settings.teacher_dropout,
        ).to(self.numerics.device)
        runner.run(teacher_stage(self.setup, model))
        save_dense(model, self.tokenizer, directory)
        runner.mark_done("teacher")

    def _checked_teacher(self, path: Path) -> CofiPreTrainedModel:
        model = load(path)
        if not model.arch.is_dense:
            raise ConfigError(f"--teacher {str(path)!r} is pruned already; give a dense checkpoint")
        names = tuple(model.config.id2label[key] for key in sorted(model.config.id2label))
        if model.kind != self.task.kind or (self.task.labels and names != self.task.labels):
            raise ConfigError(
                f"--teacher {str(path)!r} does {model.kind} with labels {list(names)}, but task "
                f"{self.task.name!r} needs {self.task.kind} with {list(self.task.labels)}"
            )
        return model

    def _student_stages(self, runner: _StageRunner) -> None:
        teacher_model = load(self.run / "teacher").to(self.numerics.device)
        layers = teacher_layers(len(teacher_model.arch.layers), self.settings.teacher_layers)
        live = LiveTeacher(teacher_model, layers)
        teacher = self._cached(live, runner)
        student = self._student(teacher_model)
        for target in self.settings.sparsities:
            check_target_sparsity(target, student.gates)
        self._prune(runner, student, teacher)
        for target in self.settings.sparsities:
            self._finetune(runner, teacher, target, teacher_model.arch.hidden)

    def _cache_fits(self) -> bool:
        arch = read_dense_arch(self.given_teacher or self.model)
        count = len(teacher_layers(len(arch.layers), self.settings.teacher_layers))
        size = cache_bytes(self.setup.batches.encoded, count, arch.hidden)
        free = shutil.disk_usage(self.run).free
        return size <= min(self.settings.cache_gib * 2**30, free / 2)

    def _cached(self, live: LiveTeacher, runner: _StageRunner) -> Teacher:
        if not self._cache_fits():
            return live
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

        build_cache(
            live, encoded, directory, key=key, device=self.numerics.device, advance=advance
        )
        return CachedTeacher(directory, encoded, self.numerics.device)

    def _student(self, teacher_model: CofiPreTrainedModel) -> Student:
        s, device = self.settings, self.numerics.device
        source = self.run / "teacher" if s.student_init == "teacher" else self.model
        set_seed(s.seed)
        model = load_dense(source, self.task.kind, labels=self.task.labels, dropout=s.dropout)
        # On the CPU generator, so that gates and masks do not depend on the device.
        generator = torch.Generator().manual_seed(s.seed)
        shape = teacher_model.arch.dense
        init = dict.fromkeys(("hidden", "heads", "attn_block", "ffn_block"), s.gate_init)
        gates = HardConcreteGates(
            shape,
            init={**init, "ffn": s.gate_init_ffn},
            families=s.mask_families,
            generator=generator,
        )
        gates.clamp()
        return Student(
            model=model.to(device),
            projection=LayerProjection(shape.hidden).to(device),
            gates=gates.to(device),
            lagrangian=Lagrangian().to(device),
            generator=torch.Generator(device).manual_seed(s.seed),
        )

    def _prune(self, runner: _StageRunner, student: Student, teacher: Teacher) -> None:
        """Distil, then pass every target; each stage's end is the checkpoint of the next."""
        makers: list[Callable[[], Stage]] = []
        if self.settings.distill_epochs > 0:
            makers.append(lambda: distill_stage(self.setup, student, teacher))
        start = 0.0
        for target in self.settings.sparsities:
            makers.append(_prune_maker(self.setup, student, teacher, target, start))
            start = target
        for index, make in enumerate(makers):
            stage = make()
            if runner.is_done(stage.name):
                continue
            runner.run(stage)
            if stage.name != "distill":
                self._cut(student, float(stage.name.removeprefix("prune-")))
            if index + 1 < len(makers):
                save_stage(makers[index + 1](), self.checkpoint, 0)
            runner.mark_done(stage.name)

    def _cut(self, student: Student, target: float) -> None:
        masks = masks_at_sparsity(student.gates, target)
        compact = cut(student.model, masks).cpu()
        directory = self.run / "cut" / f"{target:g}"
        save_compact(compact, self.tokenizer, directory / "model")
        projection = copy.deepcopy(student.projection)
        projection.cut(masks)
        tensors = {key: t.cpu().contiguous() for key, t in projection.state_dict().items()}
        write_bytes(directory / _PROJECTION, safetensors.torch.save(tensors))

    def _finetune(
        self, runner: _StageRunner, teacher: Teacher, target: float, hidden: int
    ) -> None:
        name = finetune_name(target)
        if runner.is_done(name):
            return
        directory = self.run / "cut" / f"{target:g}"
        model = load(directory / "model").to(self.numerics.device)
        _set_dropout(model, self.settings.dropout)
        tensors = safetensors.torch.load_file(directory / _PROJECTION)
        projection = LayerProjection(hidden)
        projection.resize_input(tensors["linear.weight"].shape[1])
        projection.load_state_dict(tensors)
        projection.to(self.numerics.device)
        set_seed(self.settings.seed)
        if self.settings.finetune_epochs > 0:
            runner.run(finetune_stage(self.setup, model, projection, teacher, target=target))
        save_compact(model.cpu(), self.tokenizer, self.model_directory(target))
        runner.mark_done(name)

    def _final_report(self, progress: RunProgress) -> dict[str, Any]:
        """Score teacher and models on the validation split, which nothing has looked at so far."""
        progress.say("scoring on the validation split")
        encoded = self.task.encode("validation", self.tokenizer)
        report: dict[str, Any] = {"metric_name": self.task.metric_name, "examples": len(encoded)}
        report["teacher"] = self._scores(self.run / "teacher", encoded)
        report["models"] = [
            {
                "target_sparsity": target,
                "directory": self.model_directory(target).relative_to(self.run).as_posix(),
                **self._scores(self.model_directory(target), encoded),
            }
            for target in self.settings.sparsities
        ]
        return report

    def _scores(self, directory: Path, encoded: Any) -> dict[str, Any]:
        model = load(directory).to(self.numerics.device)
        return {
            **evaluate(model, self.task, encoded),
            "realized_sparsity": model.arch.sparsity,
            "parameters": sum(p.numel() for p in model.parameters()),
            "encoder_parameters": model.arch.prunable_parameters,
        }


class _StageRunner:
    """Knows which stages are done, and where the interrupted one stopped."""

    def __init__(
        self, run: Path, progress: RunProgress, order: list[str], state: dict[str, Any] | None
    ) -> None:
        self.progress = progress
        self._run_json = run / "run.json"
        self._checkpoint = run / "checkpoint"
        self._state = state
        finished = set(read_json(self._run_json).get("stages", {}))
        if state is not None:
            if state["stage"] not in order:
                raise CheckpointError(
                    f"the checkpoint is of stage {state['stage']!r}, but these settings have "
                    f"{', '.join(order)}; resume with the settings that the run began with"
                )
            finished |= {name for name in order if order.index(name) < order.index(state["stage"])}
        self._finished = finished
        self._results: dict[str, float] = {}

    def is_done(self, name: str) -> bool:
        if name in self._finished:
            self.progress.skip(name)
        return name in self._finished

    def run(self, stage: Stage) -> None:
        state = self._state
        resume = state is not None and state["stage"] == stage.name
        self._results = run_stage(
            stage,
            self._checkpoint,
            self.progress,
            resume_from=state["step"] if resume and state is not None else None,
        )

    def mark_done(self, name: str) -> None:
        """Into run.json, after everything that the stage leaves behind has been written."""
        document = read_json(self._run_json)
        document.setdefault("stages", {})[name] = self._results
        write_json(self._run_json, document)


def _prune_maker(
    setup: Setup, student: Student, teacher: Teacher, target: float, start: float
) -> Callable[[], Stage]:
    return lambda: prune_stage(setup, student, teacher, target=target, start=start)


def _set_dropout(model: torch.nn.Module, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
