"""Fine-tuning of a whole model on one task: one loop for teachers and students, labels and a teacher's logits."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.config import Hyperparameters
from sentence_distill.student.metrics import task_metrics
from sentence_distill.student.task_data import Labelled, Outcome, Scores, TaskData, main_score

# Steps between two evaluations on dev: an epoch, but several a pass over a large task, and many epochs of few examples.
_FEWEST_BETWEEN, _MOST_BETWEEN = 20, 500


@dataclass(frozen=True)
class Padded:
    """A batch of b examples in c columns."""

    input_ids: torch.Tensor
    """int64[c * b, longest], column after column; 0 fills a text up."""
    lengths: torch.Tensor
    """int64[c * b]."""
    first: torch.Tensor | None
    """int64[b], see `ExampleTokens`."""


@dataclass(frozen=True)
class ExampleTokens:
    """Tokens of n examples."""

    columns: tuple[Tokens, ...]
    """The tokens of n texts for each text of an example; a model that reads pairs as one text has one column."""
    first: np.ndarray | None = None
    """int[n], the number of tokens of the only column that belong to the first text of a pair."""

    def __len__(self) -> int:
        return len(self.columns[0])

    def batches(self, size: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Cut the examples into batches of similar length, in random order if `rng` is given."""
        lengths = np.max([column.lengths for column in self.columns], axis=0)
        rows = rng.permutation(len(self)) if rng is not None else np.arange(len(self))
        order = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        for batch in rng.permutation(len(batches)) if rng is not None else range(len(batches)):
            yield batches[batch]

    def padded(self, rows: np.ndarray, device: torch.device) -> Padded:
        """Return the tokens of int[b] `rows`, column after column."""
        padded, lengths = Tokens.concatenated([column.take(rows) for column in self.columns]).padded()
        first = None if self.first is None else torch.from_numpy(self.first[rows]).to(device)
        return Padded(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device), first)


class TaskModel(Protocol):
    """A model with a head for one task; also an `nn.Module`."""

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenize one or two columns of texts."""

    def pretrained(self) -> list[nn.Parameter]:
        """Return the weights that were learned before the task."""

    def __call__(self, batch: Padded) -> torch.Tensor:
        """Return logits, float[b, outputs]."""


_Model = TypeVar("_Model", bound=TaskModel)


@dataclass(frozen=True)
class Fitter:
    """Fine-tunes models on tasks."""

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
    ) -> tuple[_Model, Outcome]:
        """Fine-tune from the same start with each learning rate; the best on dev is returned.

        Args:
            start: makes the model to start from.
            data: the task.
            train: examples in place of the task's own.
            rates: learning rates in place of the configuration's.
            seed: seed of the order of examples and of dropout.
            label: name of the progress bar.

        Raises:
            UserError: the loss was not finite with any learning rate.
        """
        best: tuple[_Model, Outcome] | None = None
        examples = train or data.train
        for rate in rates or self.config.learning_rates:
            model = start()
            total = self.config.steps(len(examples.targets)) * self.config.batch_size
            with progress.task(label, total, "examples") as advance:
                outcome = self.train(model, data, examples, rate=rate, seed=seed, advance=advance)
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
    ) -> Outcome:
        """Fine-tune a model with one learning rate, and leave the weights of the best step on dev in it.

        Cross-entropy for classes, squared error for scores; if the targets are a teacher's logits, their mean squared
        error alone, the distillation objective of Tang et al. 2019 (arXiv:1903.12136, section 3.2).

        Args:
            model: where to start; it is changed.
            data: the task; its first dev set picks the step.
            examples: what to learn.
            rate: peak of the schedule.
            seed: see `fit`.
            advance: called with the number of examples done.
        """
        assert isinstance(model, nn.Module)
        started, config, task = time.monotonic(), self.config, data.task
        torch.manual_seed(seed)
        model.to(self.device)
        tokens = model.tokenize(examples.texts)
        dev = {name: model.tokenize(part.texts) for name, part in data.dev.items()}
        targets = torch.from_numpy(examples.targets.astype(np.float32)).to(self.device)
        per_epoch, steps = -(-len(tokens) // config.batch_size), config.steps(len(tokens))
        between = min(max(per_epoch, _FEWEST_BETWEEN), _MOST_BETWEEN)
        patience = max(config.patience, steps // (3 * between))
        optimizer = _Optimizer(model, rate, config, steps)
        rng = np.random.default_rng(seed)
        batches = chain.from_iterable(tokens.batches(config.batch_size, rng) for _ in repeat(None))
        best_scores: Scores = {}
        best_step, best_state, worse, ended = 0, {}, 0, ""
        for step, rows in enumerate(batches, start=1):
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
                best_state = {name: value.detach().clone() for name, value in model.state_dict().items()}
            if step == steps:
                epochs = steps / per_epoch
                ended = f"ran all {epochs:.3g} epoch{'s' if epochs != 1 else ''}, {steps:,} steps"
                break
            if worse == patience:
                evaluations = f"{patience} evaluation{'s' if patience != 1 else ''}"
                ended = f"stopped early at step {step:,} of {steps:,}: no better on dev in {evaluations}"
                break
        if best_step:
            model.load_state_dict(best_state)
        seconds = round(time.monotonic() - started, 1)
        return Outcome(scores=best_scores, learning_rate=rate, step=best_step, seconds=seconds, ended=ended)

    @torch.inference_mode()
    def predict(self, model: TaskModel, tokens: ExampleTokens, regression: bool) -> np.ndarray:
        """Return n class numbers or scores, float[n]; NaN for logits that are not finite."""
        assert isinstance(model, nn.Module)
        model.to(self.device).eval()
        out = np.empty(len(tokens))
        for rows in tokens.batches(256, None):
            logits = self._logits(model, tokens, rows).cpu()
            values = logits[:, 0] if regression else logits.argmax(dim=1).float()
            out[rows] = torch.where(logits.isfinite().all(dim=1), values, torch.nan).numpy()
        return out

    def _logits(self, model: TaskModel, tokens: ExampleTokens, rows: np.ndarray) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return model(tokens.padded(rows, self.device)).float()


def _loss(logits: torch.Tensor, targets: torch.Tensor, regression: bool) -> torch.Tensor:
    if targets.ndim == 2:
        return functional.mse_loss(logits, targets)
    return (
        functional.mse_loss(logits[:, 0], targets) if regression else functional.cross_entropy(logits, targets.long())
    )


class _Optimizer:
    """AdamW, with a linear warm-up and decay; lazy Adam for word embeddings whose gradients are sparse."""

    def __init__(self, model: TaskModel, learning_rate: float, config: Hyperparameters, steps: int) -> None:
        assert isinstance(model, nn.Module)
        tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding) and part.sparse]
        known, pretrained = {id(table) for table in tables}, {id(weight) for weight in model.pretrained()}
        dense = [weight for weight in model.parameters() if id(weight) not in known]
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
