"""From a task and a way to start to the best fine-tuned model: learning rates are tried, dev decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.student.finetuning.finetune import (
    FinetuneConfig,
    Labelled,
    Outcome,
    TaskModel,
    finetune,
    main_score,
)
from sentence_distill.student.finetuning.task_data import TaskData

_Model = TypeVar("_Model", bound=TaskModel)


@dataclass(frozen=True)
class Fitted(Generic[_Model]):
    """A fine-tuned model, what it came to, and the learning rate that was best."""

    model: _Model
    outcome: Outcome
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Fitter:
    """Fine-tunes models on tasks.

    Args:
        config: options.
        device: where to train.
        precision: see `finetune`.
        progress: where to report.
    """

    config: FinetuneConfig
    device: torch.device
    precision: torch.dtype
    progress: Progress

    def fit(
        self,
        start: Callable[[], _Model],
        data: TaskData,
        *,
        train: Labelled | None = None,
        rates: Sequence[float] | None = None,
        seed: int,
        label: str,
    ) -> Fitted[_Model]:
        """Fine-tune from the same start with each learning rate; the best on dev is returned.

        Args:
            start: makes the model to start from.
            data: the task.
            train: examples in place of the task's own.
            rates: learning rates in place of the configuration's.
            seed: see `finetune`.
            label: of the progress bar.

        Raises:
            UserError: the loss was not finite with any learning rate.
        """
        best: Fitted[_Model] | None = None
        examples = train or data.train
        for rate in rates or self.config.learning_rates:
            model = start()
            total = self.config.steps(len(examples.targets)) * self.config.batch_size
            with self.progress.task(label, total, "examples") as advance:
                outcome = finetune(
                    model,
                    examples,
                    data.dev,
                    classes=len(data.task.labels),
                    metrics=data.task.metrics,
                    learning_rate=rate,
                    config=self.config,
                    seed=seed,
                    device=self.device,
                    precision=self.precision,
                    advance=advance,
                )
            if outcome.step and (best is None or main_score(outcome.scores) > main_score(best.outcome.scores)):
                best = Fitted(model, outcome, rate)
        if best is None:
            raise UserError(f"fine-tuning on {data.task.name} diverged; lower --learning-rate")
        return best
