"""GLUE: fine-tunes a student on each task and scores it on dev."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from sentence_distill.data.glue import TASKS, GlueFolder, GlueHub, GlueTask, TaskMissing
from sentence_distill.data.progress import Progress
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


@dataclass(frozen=True)
class TaskResult:
    """Scores of one task: for each dev set its metrics at the best epoch; or why it was skipped."""

    task: str
    scores: dict[str, dict[str, float]]
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
    progress: Progress,
) -> list[TaskResult]:
    """Fine-tune and score a student on each task, starting anew for each.

    Args:
        student: stays as it is.
        source: where the tasks come from.
        tasks: names in `TASKS`.
        config: options of fine-tuning.
        from_scratch: start from random weights of the same shape instead of the student's.
        device: where to train.
        precision: see `finetune`.
        progress: gets a line a task.
    """
    results = []
    for name in tasks:
        encoder = initial_weights(student.encoder, config.seed) if from_scratch else deepcopy(student.encoder)
        start = Student(encoder.to(device), student.tokenizer)
        result = _run_task(start, source, TASKS[name], config, device, precision)
        results.append(result)
        progress.log(f"{name}{' from scratch' if from_scratch else ''}: {describe(result)}")
    return results


def describe(result: TaskResult) -> str:
    """One line for a task's result."""
    if not result.scores:
        return f"skipped, {result.skipped}"
    parts = [
        f"{dev if len(result.scores) > 1 else ''} {' / '.join(f'{k} {100 * v:.1f}' for k, v in scores.items())}".strip()
        for dev, scores in result.scores.items()
    ]
    return ", ".join(parts) + (f" ({result.skipped})" if result.skipped else "")


def _run_task(
    start: Student,
    source: GlueFolder | GlueHub,
    task: GlueTask,
    config: FinetuneConfig,
    device: torch.device,
    precision: torch.dtype,
) -> TaskResult:
    missing = ""
    dev: dict[str, Tokens] = {}
    try:
        train = Tokens.make(start, source.load(task, "train"))
    except TaskMissing as error:
        return TaskResult(task.name, {}, str(error))
    for split in task.dev:
        try:
            dev[split] = Tokens.make(start, source.load(task, split))
        except TaskMissing as error:
            missing = str(error)
    if not dev:
        return TaskResult(task.name, {}, missing)
    best: dict[str, dict[str, float]] = {}
    for model in finetune(start, train, len(task.labels), config, device, precision):
        scores: dict[str, Any] = {
            split: glue_metrics(task.metrics, tokens.labels, predict(model, tokens, len(task.labels), device))
            for split, tokens in dev.items()
        }
        # The first dev set picks the epoch; MNLI-mm goes with the epoch that MNLI-m picked.
        first = next(iter(dev))
        if not best or mean_score(scores[first]) > mean_score(best[first]):
            best = scores
    return TaskResult(task.name, best, missing)
