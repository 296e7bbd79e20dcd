"""Fine-tune a teacher or a student on one task: the loop, and what `sd finetune` does."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.glue import GlueTask
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.student.classifier import (
    ExampleTokens,
    StudentClassifier,
    TaskModel,
    TeacherClassifier,
    save_classifier,
)
from sentence_distill.student.config import FinetuneConfig, FinetuneOptions
from sentence_distill.student.figures import Outcome, Scores, TaskRecord, load_distillation, main_score, shown_score
from sentence_distill.student.files import is_student, moved_record
from sentence_distill.student.metrics import task_metrics
from sentence_distill.student.model import Student, load_student
from sentence_distill.student.models import find_model
from sentence_distill.student.task_data import Labelled, TaskData, from_logits, not_a_student, read_task, scale_of

# Version of the fine-tuning loop, recorded with the results: count it up with a change that gives other weights for the
# same options. 2: patience is at least a third of the steps.
LOOP = 2
# Steps between two evaluations on dev: an epoch, but several a pass over a large task, and many epochs of few examples.
_FEWEST_BETWEEN, _MOST_BETWEEN = 20, 500
# Seconds between two checkpoints, written after an evaluation; one of a large teacher takes seconds.
_BETWEEN_CHECKPOINTS = 120.0


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of fine-tuning; the same for every task and every row of a table."""

    epochs: int = 6
    """Maximum passes over the training examples."""
    least_steps: int = 200
    """Steps that a small data set gets, in more passes than `epochs`; 0 if a number of epochs was asked for."""
    max_steps: int | None = 2000
    """Maximum steps, but at least one epoch: large tasks get fewer passes. None sets no limit."""
    whole_epoch: bool = True
    """False lets `max_steps` end the first epoch too, as a limit of time needs."""
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (1e-3,)
    """Peaks of AdamW's schedule to try with the first seed; the best on dev serves the other seeds."""
    encoder_rate: float = 1.0
    """Learning rate of the pre-trained weights, as a multiple of the head's."""
    frozen_layers: int = 0
    """Lower layers of a teacher that stay as they are, and its word embeddings with them; 0 trains everything."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises; then it falls linearly to 0."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Gradient clipping: maximum norm."""
    patience: int = 3
    """Evaluations on dev without a better score after which fine-tuning ends, but a third of the steps at least: a
    long schedule improves late, when its learning rate is low."""

    def given(self, options: FinetuneOptions) -> "Hyperparameters":
        """Return these with those of the options that were given."""
        found = replace(self, encoder_rate=options.encoder_rate, frozen_layers=options.frozen_layers)
        if options.epochs is not None:
            # No default length cuts or extends a number of epochs that was asked for.
            found = replace(found, epochs=options.epochs, least_steps=0, max_steps=None)
        if options.max_steps is not None:
            found = replace(found, max_steps=options.max_steps)
        if options.learning_rates is not None:
            found = replace(found, learning_rates=tuple(dict.fromkeys(options.learning_rates)))
        return found

    def steps(self, examples: int) -> int:
        """Return the maximum number of steps over so many examples."""
        per_epoch = -(-examples // self.batch_size)
        wanted = max(self.epochs * per_epoch, self.least_steps)
        if self.max_steps is None:
            return wanted
        return max(per_epoch if self.whole_epoch else 1, min(self.max_steps, wanted))

    def describe(self, examples: int) -> str:
        """Say how long fine-tuning over so many examples is, and why."""
        steps, per_epoch = self.steps(examples), -(-examples // self.batch_size)
        passes = f"{steps / per_epoch:.3g} epochs of {examples:,} examples"
        if steps > self.epochs * per_epoch:
            why = f": at least {self.least_steps} steps; --epochs N sets another length"
        else:
            why = f" of {self.epochs}: --finetune-steps ends it there" if steps < self.epochs * per_epoch else ""
        return f"at most {steps:,} steps, {passes}{why}"

    def between(self, examples: int) -> int:
        """Return the number of steps between two evaluations on dev."""
        return min(max(-(-examples // self.batch_size), _FEWEST_BETWEEN), _MOST_BETWEEN)


STUDENT = Hyperparameters()
# A student learns far longer from logits than from labels: there is more text, and no overfitting seen.
LOGITS = replace(STUDENT, epochs=20, max_steps=4000)
TEACHER = Hyperparameters(epochs=3, max_steps=2500, batch_size=32, learning_rates=(5e-5,), warmup=0.1)

_Model = TypeVar("_Model", StudentClassifier, TeacherClassifier)


@dataclass(frozen=True)
class Fitter:
    """Fine-tunes models on tasks: teachers and students, on labels and on a teacher's logits."""

    config: Hyperparameters
    device: torch.device
    precision: torch.dtype
    """bfloat16 computes under autocast."""

    def fit(
        self,
        start: Callable[[], _Model],
        data: TaskData,
        *,
        train: Labelled | None = None,
        rates: Sequence[float] | None = None,
        seed: int,
        label: str,
        checkpoint: Path | None = None,
    ) -> tuple[_Model, Outcome]:
        """Fine-tune from the same start with each learning rate; the best on dev is returned.

        `train` and `rates` take the place of the task's examples and the configuration's learning rates; `seed` is that
        of the order of examples and of dropout, `label` names the progress bar. A run that is killed resumes from
        `checkpoint`, with the same weights as without the kill, until the caller has saved the model and removes the
        file; several learning rates start over.
        """
        best: tuple[_Model, Outcome] | None = None
        examples = train or data.train
        tried = rates or self.config.learning_rates
        for rate in tried:
            model = start()
            total = self.config.steps(len(examples.targets)) * self.config.batch_size
            with progress.task(label, total, "examples") as advance:
                outcome = self.train(
                    model,
                    data,
                    examples,
                    rate=rate,
                    seed=seed,
                    advance=advance,
                    checkpoint=checkpoint if len(tried) == 1 else None,
                )
            if outcome.step and (best is None or main_score(outcome.scores) > main_score(best[1].scores)):
                best = model, outcome
        if best is None:
            raise UserError(f"fine-tuning on {data.task.name} diverged; lower --learning-rate")
        return best

    def train(
        self,
        model: TaskModel,
        data: TaskData,
        examples: Labelled,
        *,
        rate: float,
        seed: int,
        advance: Callable[[int], None] = lambda count: None,
        checkpoint: Path | None = None,
    ) -> Outcome:
        """Fine-tune a model with one learning rate, and leave the weights of the best step on dev in it.

        Cross-entropy for classes, squared error for scores; if the targets are a teacher's logits, their mean squared
        error alone, the distillation objective of Tang et al. 2019 (arXiv:1903.12136, section 3.2). The first dev set
        picks the step.
        """
        started, config, task = time.monotonic(), self.config, data.task
        torch.manual_seed(seed)
        model.to(self.device)
        if isinstance(model, TeacherClassifier):
            model.freeze(config.frozen_layers)
        tokens = model.tokenize(examples.texts)
        dev = {name: model.tokenize(part.texts) for name, part in data.dev.items()}
        targets = torch.from_numpy(examples.targets.astype(np.float32)).to(self.device)
        per_epoch, steps = -(-len(tokens) // config.batch_size), config.steps(len(tokens))
        between = config.between(len(tokens))
        patience = max(config.patience, steps // (3 * between))
        optimizer = _Optimizer(model, rate, config, steps)
        rng = np.random.default_rng(seed)
        batches = chain.from_iterable(tokens.batches(config.batch_size, rng) for _ in repeat(None))
        best_scores: Scores = {}
        best_state: dict[str, torch.Tensor] = {}
        best_step, worse, ended, done = 0, 0, "", 0
        if checkpoint is not None and checkpoint.exists():
            saved = torch.load(checkpoint, map_location=self.device, weights_only=True)
            done, best_step, best_scores, worse = (saved[key] for key in ("step", "best_step", "best_scores", "worse"))
            model.load_state_dict(saved["weights"])
            best_state = saved["best"] or copied(model)
            optimizer.load(saved["optimizer"])
            _set_random(saved["random"], self.device)
            started -= saved["seconds"]
            progress.log(f"resuming after step {done:,} of {steps:,}")
        written = time.monotonic()
        for step, rows in enumerate(batches, start=1):
            if step <= done:
                advance(len(rows))
                continue
            model.train()
            logits = self._logits(model, tokens, rows)
            _loss(logits, targets[torch.from_numpy(rows)], task.regression).backward()
            optimizer.step()
            advance(len(rows))
            if step % between and step < steps:
                continue
            predictions = {name: self.predict(model, part, task.regression) for name, part in dev.items()}
            # NaN is no score, and the weights that gave it are not kept.
            if not all(np.isfinite(values).all() for values in predictions.values()):
                ended = f"diverged before step {step:,} of {steps:,}"
                break
            scores = {
                name: task_metrics(task.metrics, data.dev[name].targets, values) for name, values in predictions.items()
            }
            worse += 1
            if not best_scores or main_score(scores) > main_score(best_scores):
                best_scores, best_step, worse = scores, step, 0
                best_state = copied(model)
            if step == steps:
                epochs = steps / per_epoch
                ended = f"ran all {epochs:.3g} epoch{'s' if epochs != 1 else ''}, {steps:,} steps"
                break
            if worse == patience:
                evaluations = f"{patience} evaluation{'s' if patience != 1 else ''}"
                ended = f"stopped early at step {step:,} of {steps:,}: no better on dev in {evaluations}"
                break
            if checkpoint is not None and time.monotonic() - written > _BETWEEN_CHECKPOINTS:
                content = {
                    "step": step,
                    "best_step": best_step,
                    "best_scores": best_scores,
                    "worse": worse,
                    "weights": model.state_dict(),
                    "best": None if best_step == step else best_state,
                    "optimizer": optimizer.state(),
                    "random": _random(self.device),
                    "seconds": time.monotonic() - started,
                }
                buffer = io.BytesIO()
                torch.save(content, buffer)
                write_atomically(checkpoint, buffer.getvalue())
                written = time.monotonic()
        if best_step:
            model.load_state_dict(best_state)
        seconds = round(time.monotonic() - started, 1)
        return Outcome(scores=best_scores, learning_rate=rate, step=best_step, seconds=seconds, ended=ended)

    @torch.inference_mode()
    def predict(self, model: TaskModel, tokens: ExampleTokens, regression: bool) -> np.ndarray:
        """Return n class numbers or scores, float[n]; NaN for logits that are not finite."""
        model.to(self.device).eval()
        out = np.empty(len(tokens))
        for rows in tokens.batches(256, None):
            logits = self._logits(model, tokens, rows).cpu()
            values = logits[:, 0] if regression else logits.argmax(dim=1).float()
            out[rows] = torch.where(logits.isfinite().all(dim=1), values, torch.nan).numpy()
        return out

    def _logits(self, model: TaskModel, tokens: ExampleTokens, rows: np.ndarray) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return model(tokens.padded(rows, self.device)).float()  # type: ignore[no-any-return]


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _random(device: torch.device) -> list[torch.Tensor]:
    """Return the states of the generators that dropout draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)


def _loss(logits: torch.Tensor, targets: torch.Tensor, regression: bool) -> torch.Tensor:
    if targets.ndim == 2:
        return functional.mse_loss(logits, targets)
    return (
        functional.mse_loss(logits[:, 0], targets) if regression else functional.cross_entropy(logits, targets.long())
    )


class _Optimizer:
    """AdamW, with a linear warm-up and decay; lazy Adam for word embeddings whose gradients are sparse."""

    def __init__(self, model: TaskModel, learning_rate: float, config: Hyperparameters, steps: int) -> None:
        tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding) and part.sparse]
        known, pretrained = {id(table) for table in tables}, {id(weight) for weight in model.pretrained()}
        dense = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in known]
        slow = learning_rate * config.encoder_rate
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in dense if id(weight) not in pretrained]},
            {"params": [weight for weight in dense if id(weight) in pretrained], "lr": slow},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=learning_rate, weight_decay=config.weight_decay, fused=True)
        ]
        if tables:
            self._optimizers.append(torch.optim.SparseAdam(tables, lr=slow))
        rising = max(1, round(config.warmup * steps))

        def factor(step: int) -> float:
            return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)

        self._schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in self._optimizers]
        self._weights = [
            weight for each in self._optimizers for group in each.param_groups for weight in group["params"]
        ]
        self._parts: list[Any] = [*self._optimizers, *self._schedules]
        self._clip = config.clip

    def step(self) -> None:
        """Update the weights from their gradients, and clear those."""
        gradients = []
        for weight in self._weights:
            if weight.grad is not None and weight.grad.is_sparse:
                weight.grad = weight.grad.coalesce()
                gradients.append(weight.grad.values())
            elif weight.grad is not None:
                gradients.append(weight.grad)
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self._clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()

    def state(self) -> list[dict[str, Any]]:
        """Return what `load` needs to continue."""
        return [each.state_dict() for each in self._parts]

    def load(self, states: list[dict[str, Any]]) -> None:
        """Continue where `state` was taken."""
        for each, state in zip(self._parts, states, strict=True):
            each.load_state_dict(state)


def constant(data: TaskData) -> tuple[float, Scores]:
    """Return the commonest class, or the mean of the scores, and what it scores if it is said of every example."""
    labels = data.train.targets
    value = float(labels.mean() if data.task.regression else np.bincount(labels.astype(int)).argmax())
    scores = {
        name: task_metrics(data.task.metrics, part.targets, np.full(len(part.targets), value))
        for name, part in data.dev.items()
    }
    return value, scores


# What `sd finetune` does.


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model that is not written yet."""

    model: TaskModel
    outcome: Outcome
    data: TaskData
    source: Path
    """Folder of the model that it was made of."""
    distillation: dict[str, Any]
    """Record of the student that it was made of; empty for a teacher."""

    @property
    def is_student(self) -> bool:
        """True for a student, False for a teacher."""
        return isinstance(self.model, StudentClassifier)

    def save(self, folder: Path) -> None:
        """Write a student for `sd predict`, or a teacher for `sd embed --teacher`."""
        task = self.data.task
        if isinstance(self.model, TeacherClassifier):
            self.model.save(folder, task, self.outcome)
            return
        record = TaskRecord(
            task=task.name,
            text_columns=task.plain_columns,
            label_column=task.label,
            labels=task.labels,
            metrics=task.metrics,
            dev_examples=self.data.dev_counts,
            **msgspec.structs.asdict(self.outcome),
        )
        glue_task = task.hub if isinstance(task, GlueTask) else None
        save_classifier(folder, self.model, record, glue_task, moved_record(self.distillation, self.source, folder))

    def describe(self) -> str:
        """Return one line with the scores of each dev set."""
        parts = []
        for dev, metrics in self.outcome.scores.items():
            count = self.data.dev_counts[dev]
            shown = (f"{metric} {shown_score(metric, value, count)}" for metric, value in metrics.items())
            parts.append(f"{dev} {', '.join(shown)}")
        kind = "student" if self.is_student else "teacher"
        return f"{kind} fine-tuned on {self.data.task.name}, {'; '.join(parts)} (best at step {self.outcome.step:,})"


def finetune(config: FinetuneConfig, data: TaskData | None = None) -> Finetuned:
    """Fine-tune a teacher or a student; `data` is what `read_task` gives for the config, if it was called before."""
    data = data or read_task(config)
    located = find_model(config.model)
    device = pick_device(config.device)
    of_student = is_student(str(located.folder))
    # Read now: the folder may be the one that is replaced.
    distillation = load_distillation(located.folder) if of_student else {}
    if config.logits is not None and not of_student:
        raise not_a_student(config.model)
    if config.finetuning.frozen_layers and of_student:
        raise UsageError("--freeze-layers is for a teacher: give --teacher, or fine-tune one")
    hyperparameters = (STUDENT if of_student else TEACHER).given(config.finetuning)
    fitter = Fitter(hyperparameters, device, pick_precision("auto", device, FINETUNING))
    train = data.train if config.logits is None else from_logits(config.logits, data)
    progress.log(f"fine-tuning: {hyperparameters.describe(len(train.targets))}")
    model: TaskModel
    if of_student:
        model, outcome = fit_student(load_student(located.folder), data, train, config.seed, fitter)
    else:
        start = partial(TeacherClassifier.load, located, data.task, config.seed)
        model, outcome = fitter.fit(start, data, seed=config.seed, label="finetune")
    progress.log(outcome.ended)
    return Finetuned(model, outcome, data, located.folder, distillation)


def fit_student(
    student: Student, data: TaskData, train: Labelled, seed: int, fitter: Fitter, label: str = "finetune"
) -> tuple[StudentClassifier, Outcome]:
    """Fine-tune a student on a task's labels, or on logits, which are any other examples than `data.train`."""
    scores_of_teacher = train is not data.train and data.task.regression
    if scores_of_teacher:
        # Whatever their unit is, so that a learning rate serves all; `_match_labels` brings them to the labels' after.
        mean, deviation = scale_of(train.targets, "the teacher's scores")
        train = Labelled(train.texts, (train.targets - mean) / deviation)
    start = partial(StudentClassifier.new, student, data.task, seed)
    model, outcome = fitter.fit(start, data, train=train, seed=seed, label=label)
    if scores_of_teacher:
        _match_labels(model, data.train, fitter)
    if data.task.regression:
        # To the unit of the user's file.
        model.rescale(data.deviation, data.mean)
    return model, outcome


def _match_labels(model: StudentClassifier, labelled: Labelled, fitter: Fitter) -> None:
    """Bring the scores of a model that learned a teacher's to the labels' unit: least squares over labelled examples.

    This needs neither the teacher's unit nor the text that it scored: one was fine-tuned here on standardized labels,
    another comes from the hub.
    """
    found = fitter.predict(model, model.tokenize(labelled.texts), regression=True)
    centred = found - found.mean()
    spread = float(centred @ centred)
    slope = float(centred @ labelled.targets) / spread if spread else 0.0
    if not slope > 0:
        raise UserError(
            "the teacher's scores do not rise with the labels of the training examples; use a teacher that was "
            "fine-tuned on this task"
        )
    model.rescale(slope, float(labelled.targets.mean() - slope * found.mean()))
