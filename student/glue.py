"""GLUE: fine-tunes a student on each task and scores it on dev."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder, GlueHub, GlueTask, TaskMissing
from sentence_distill.student.finetune import (
    FinetuneConfig,
    Tokens,
    finetune,
    initial_weights,
    mean_score,
    predict,
)
from sentence_distill.student.metrics import glue_metrics
from sentence_distill.student.model import Student


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task: for each dev set its metrics at the best epoch; `skipped` says what is missing and why."""

    task: str
    scores: dict[str, dict[str, float]]
    best_epoch: int = 0
    epochs: int = 0
    examples: int = 0
    skipped: str = ""


def run_glue(
    student: Student,
    source: GlueFolder | GlueHub,
    *,
    tasks: Sequence[str],
    config: FinetuneConfig,
    from_scratch: bool,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[TaskResult]:
    """Fine-tune and score a student on each task, starting anew for each.

    A task whose data is missing or can't be read is a result with the reason; the others go on.

    Args:
        student: stays as it is.
        source: where the tasks come from.
        tasks: names in `TASKS`.
        config: options of fine-tuning.
        from_scratch: start from random weights of the same shape instead of the student's.
        device: where to train.
        precision: see `finetune`.

    Yields:
        One result a task, as soon as it is there.
    """
    for name in tasks:
        encoder = initial_weights(student.encoder, config.seed) if from_scratch else deepcopy(student.encoder)
        start = Student(encoder.to(device), student.tokenizer)
        try:
            yield _run_task(start, source, TASKS[name], config, device, precision)
        except (TaskMissing, UserError) as error:
            yield TaskResult(task=name, scores={}, skipped=str(error))


def describe(result: TaskResult) -> str:
    """One line for a task's result."""
    parts = []
    for dev, scores in result.scores.items():
        figures = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in scores.items())
        parts.append(f"{dev}: {figures}")
    if result.skipped:
        parts.append(f"skipped: {result.skipped}")
    return f"{result.task} {'; '.join(parts)}"


def _run_task(
    start: Student,
    source: GlueFolder | GlueHub,
    task: GlueTask,
    config: FinetuneConfig,
    device: torch.device,
    precision: torch.dtype,
) -> TaskResult:
    train = Tokens.make(start, source.load(task, "train"))
    dev: dict[str, Tokens] = {}
    missing = []
    for split in task.dev:
        try:
            dev[split] = Tokens.make(start, source.load(task, split))
        except TaskMissing as error:
            missing.append(error)
    if not dev:
        raise missing[0]
    # The first dev set picks the epoch; MNLI-mm goes with the one that MNLI-m picked.
    first = next(iter(dev))
    best: dict[str, dict[str, float]] = {}
    best_epoch = epoch = 0
    for epoch, model in enumerate(finetune(start, train, len(task.labels), config, device, precision), start=1):
        scores = {
            split: glue_metrics(task.metrics, tokens.labels, predict(model, tokens, len(task.labels), device))
            for split, tokens in dev.items()
        }
        if not best or mean_score(scores[first]) > mean_score(best[first]):
            best, best_epoch = scores, epoch
    return TaskResult(
        task=task.name,
        scores=best,
        best_epoch=best_epoch,
        epochs=epoch,
        examples=len(train),
        skipped="; ".join(map(str, missing)),
    )
