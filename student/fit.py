"""Fit models to tasks: fine-tuning and linear probes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.student.finetune import (
    FinetuneConfig,
    Labelled,
    Outcome,
    TaskModel,
    finetune,
    main_score,
)
from sentence_distill.student.metrics import task_metrics
from sentence_distill.student.task_data import TaskData

# Inverse strengths of the L2 penalty that are tried; the best on dev counts, as the best step of fine-tuning does.
STRENGTHS = (0.01, 0.1, 1.0)


def probe(
    encode: Callable[[Sequence[str]], np.ndarray],
    train: Labelled,
    dev: dict[str, Labelled],
    *,
    classes: int,
    metrics: tuple[str, ...],
) -> tuple[dict[str, dict[str, float]], Callable[[Sequence[Sequence[str]]], np.ndarray]]:
    """Fit logistic regression, or ridge regression for scores, on standardised vectors.

    Args:
        encode: n sentences to float32[n, dim].
        train: examples.
        dev: examples by dev set; the first set picks among `STRENGTHS`.
        classes: number of classes, 0 for a regression.
        metrics: see `task_metrics`.

    Returns:
        The scores of each dev set, and a function from columns of texts to float[n] predictions.

    Raises:
        UserError: the examples are all of one class.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classes and len(np.unique(train.targets)) < 2:
        raise UserError("all training examples are of one class, which no probe can learn from")
    vectors = features(encode, train.texts)
    dev_vectors = {name: features(encode, part.texts) for name, part in dev.items()}
    best, best_scores = None, {}
    for strength in STRENGTHS:
        penalised = LogisticRegression(C=strength, max_iter=1000) if classes else Ridge(alpha=1 / strength)
        model = make_pipeline(StandardScaler(), penalised).fit(vectors, train.targets)
        scores = {
            name: task_metrics(metrics, part.targets, model.predict(dev_vectors[name])) for name, part in dev.items()
        }
        if best is None or main_score(scores) > main_score(best_scores):
            best, best_scores = model, scores
    assert best is not None
    chosen = best
    return best_scores, lambda texts: chosen.predict(features(encode, texts))


def features(encode: Callable[[Sequence[str]], np.ndarray], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """float32[n, dim] vectors u of single sentences; [u, v, |u - v|, u * v] of pairs."""
    columns = [encode(column) for column in texts]
    if len(columns) == 1:
        return columns[0]
    u, v = columns
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


# From a task and a way to start to the best fine-tuned model: learning rates are tried, dev decides.

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
    """

    config: FinetuneConfig
    device: torch.device
    precision: torch.dtype

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
            with progress.task(label, total, "examples") as advance:
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
