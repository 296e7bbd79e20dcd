"""Fine-tune a model on labelled examples."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.metrics import task_metrics


@dataclass(frozen=True)
class ExampleTokens:
    """Tokens of n examples.

    Args:
        columns: the tokens of n texts for each text of an example; a model that reads pairs as one has one column.
        first: int[n], how many tokens of the only column belong to the first text of a pair, or None.
    """

    columns: tuple[Tokens, ...]
    first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def batches(self, size: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Cut the examples into batches of similar length, in random order where `rng` is given."""
        lengths = np.max([column.lengths for column in self.columns], axis=0)
        rows = rng.permutation(len(self)) if rng is not None else np.arange(len(self))
        order = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        for batch in rng.permutation(len(batches)) if rng is not None else range(len(batches)):
            yield batches[batch]

    def padded(self, rows: np.ndarray, device: torch.device) -> "Padded":
        """The tokens of int[b] `rows`, column after column."""
        padded, lengths = Tokens.concatenated([column.take(rows) for column in self.columns]).padded()
        first = None if self.first is None else torch.from_numpy(self.first[rows]).to(device)
        return Padded(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device), first)


@dataclass(frozen=True)
class Padded:
    """A batch of b examples in c columns.

    Args:
        input_ids: int64[c * b, longest], column after column; 0 stands behind a text's end.
        lengths: int64[c * b].
        first: int64[b], see `ExampleTokens`, or None.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    first: torch.Tensor | None


# Fine-tuning of a whole model on one task: one loop for teachers and students, labels and a teacher's logits.

# Version of the loop below, which stands beside the results that are kept: a change that gives other weights with the
# same options counts it up. 2: a third of a long schedule is waited for.
LOOP = 2
# Steps between two scorings on dev: an epoch, but of a large task several and of a few examples many epochs.
_FEWEST_BETWEEN, _MOST_BETWEEN = 20, 500
LEAST_STEPS = 200
"""However few examples there are, a model has this many steps to learn them, unless epochs are asked for."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a model is fine-tuned; the same for every task and every row of a table."""

    epochs: int = 6
    """Most passes over the training examples."""
    least_steps: int = LEAST_STEPS
    """Steps that few examples get, in more passes than `epochs`; 0 for a number of epochs that was asked for."""
    max_steps: int = 2000
    """Most steps, but at least one epoch: large tasks get fewer passes."""
    batch_size: int = 64
    """Examples of a batch."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Peaks of AdamW's schedule that are tried with the first seed; the best on dev serves the others."""
    encoder_rate: float = 1.0
    """Learning rate of what was pre-trained, as a multiple of the head's."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises; then it falls linearly to 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    patience: int = 3
    """Evaluations on dev without a better score after which fine-tuning ends, but a third of the steps at least: what a
    long schedule gains comes late, when its rate is low."""

    def steps(self, examples: int) -> int:
        """Most steps over so many examples."""
        per_epoch = -(-examples // self.batch_size)
        return max(per_epoch, min(self.max_steps, max(self.epochs * per_epoch, self.least_steps)))

    def describe(self, examples: int) -> str:
        """Say how long fine-tuning over so many examples is, and why."""
        steps, per_epoch = self.steps(examples), -(-examples // self.batch_size)
        passes = f"{steps / per_epoch:.3g} epochs of {examples:,} examples"
        if steps > self.epochs * per_epoch:
            why = f": at least {self.least_steps} steps; --epochs N sets another length"
        else:
            why = f" of {self.epochs}: --finetune-steps ends it there" if steps < self.epochs * per_epoch else ""
        return f"at most {steps:,} steps, {passes}{why}"

    def identity(self) -> dict[str, Any]:
        """What results depend on; an option that came later is left out at its default, as results from before do."""
        fields = asdict(self)
        if self.least_steps == LEAST_STEPS:
            del fields["least_steps"]
        return fields


STUDENT = FinetuneConfig()
TEACHER = FinetuneConfig(epochs=3, max_steps=2500, batch_size=32, learning_rates=(5e-5,), warmup=0.1)


class TaskModel(Protocol):
    """A model with a head for one task; also an `nn.Module`."""

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenise one or two columns of texts."""

    def pretrained(self) -> list[nn.Parameter]:
        """The weights that were learned before the task."""

    def __call__(self, batch: Padded) -> torch.Tensor:
        """Logits, float[b, outputs]."""


@dataclass(frozen=True)
class Labelled:
    """Examples with what a model should say of them.

    Args:
        texts: one or two columns of n texts.
        targets: float32[n], class numbers or scores; or float32[n, outputs], the logits of a teacher.
    """

    texts: Sequence[Sequence[str]]
    targets: np.ndarray

    def take(self, rows: np.ndarray) -> "Labelled":
        """The examples int[k] `rows`."""
        return Labelled([[column[row] for row in rows] for column in self.texts], self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What fine-tuning came to: the scores of each dev set at the best step; the model holds that step's weights.

    Step 0 and no scores: it diverged before it was scored once. `ended` says when fine-tuning ended, and why.
    """

    scores: dict[str, dict[str, float]]
    step: int
    seconds: float
    ended: str = ""


def finetune(
    model: TaskModel,
    train: Labelled,
    dev: dict[str, Labelled],
    *,
    classes: int,
    metrics: tuple[str, ...],
    learning_rate: float,
    config: FinetuneConfig,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
    advance: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Fine-tune a model and leave the weights of the best step on dev in it.

    Cross-entropy for classes, squared error for scores; where the targets are a teacher's logits, their mean squared
    error alone, the distillation objective of Tang et al. 2019 (arXiv:1903.12136, section 3.2).

    Args:
        model: where to start; it is changed.
        train: examples.
        dev: examples with hard labels by dev set; the first set picks the step.
        classes: number of classes, 0 for a regression.
        metrics: see `task_metrics`.
        learning_rate: peak of the schedule.
        config: other options.
        seed: of the order of examples and of dropout.
        device: where to train.
        precision: bfloat16 computes under autocast.
        advance: called with the number of examples done.
    """
    assert isinstance(model, nn.Module)
    started = time.monotonic()
    torch.manual_seed(seed)
    model.to(device)
    tokens, tokenized = model.tokenize(train.texts), {name: model.tokenize(part.texts) for name, part in dev.items()}
    targets = torch.from_numpy(train.targets.astype(np.float32)).to(device)
    steps = config.steps(len(tokens))
    between = min(max(-(-len(tokens) // config.batch_size), _FEWEST_BETWEEN), _MOST_BETWEEN)
    patience = max(config.patience, steps // (3 * between))
    optimizer = _Optimizer(model, learning_rate, config, steps)
    best, ended = _Best(), ""
    for step, rows in enumerate(_endless(tokens, config.batch_size, np.random.default_rng(seed)), start=1):
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(tokens.padded(rows, device)).float()
        _loss(logits, targets[torch.from_numpy(rows)], classes).backward()
        optimizer.step()
        advance(len(rows))
        if step % between and step < steps:
            continue
        predictions = {name: predict(model, part, classes, device, precision) for name, part in tokenized.items()}
        # What is no number is no score, and neither are the weights that gave it.
        if not all(np.isfinite(values).all() for values in predictions.values()):
            ended = f"diverged before step {step:,} of {steps:,}"
            break
        scores = {name: task_metrics(metrics, dev[name].targets, values) for name, values in predictions.items()}
        best.offer(scores, step, model)
        if step == steps:
            epochs = steps / -(-len(tokens) // config.batch_size)
            ended = f"ran all {epochs:.3g} epoch{'s' if epochs != 1 else ''}, {steps:,} steps"
            break
        if best.worse == patience:
            evaluations = f"{patience} evaluation{'s' if patience != 1 else ''}"
            ended = f"stopped early at step {step:,} of {steps:,}: no better on dev in {evaluations}"
            break
    if best.step:
        model.load_state_dict(best.state)
    return Outcome(scores=best.scores, step=best.step, seconds=time.monotonic() - started, ended=ended)


@dataclass
class _Best:
    """The best step so far, its weights, and how many evaluations since then were no better."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    step: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    worse: int = 0

    def offer(self, scores: dict[str, dict[str, float]], step: int, model: nn.Module) -> None:
        self.worse += 1
        if not self.scores or main_score(scores) > main_score(self.scores):
            self.scores, self.step, self.worse = scores, step, 0
            self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}


def _endless(tokens: ExampleTokens, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        yield from tokens.batches(size, rng)


class _Optimizer:
    """AdamW, with a linear warm-up and fall; lazy Adam for word embeddings whose gradients are sparse."""

    def __init__(self, model: TaskModel, learning_rate: float, config: FinetuneConfig, steps: int) -> None:
        assert isinstance(model, nn.Module)
        tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding) and part.sparse]
        pretrained = {id(weight) for weight in model.pretrained()}
        rates: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for weight in model.parameters():
            if not any(weight is table for table in tables):
                rates[id(weight) in pretrained].append(weight)
        slow = learning_rate * config.encoder_rate
        groups: list[dict[str, Any]] = [{"params": rates[False]}, {"params": rates[True], "lr": slow}]
        dense = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=config.weight_decay, fused=True)
        self._optimizers: list[torch.optim.Optimizer] = [dense]
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


def _loss(logits: torch.Tensor, targets: torch.Tensor, classes: int) -> torch.Tensor:
    if targets.ndim == 2:
        return functional.mse_loss(logits, targets)
    return functional.cross_entropy(logits, targets.long()) if classes else functional.mse_loss(logits[:, 0], targets)


@torch.inference_mode()
def predict(
    model: TaskModel, tokens: ExampleTokens, classes: int, device: torch.device, precision: torch.dtype = torch.float32
) -> np.ndarray:
    """Class numbers, or scores in a regression: float[n], in the order of the examples; NaN where logits are."""
    assert isinstance(model, nn.Module)
    model.to(device).eval()
    out = np.empty(len(tokens))
    for rows in tokens.batches(256, None):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(tokens.padded(rows, device)).float().cpu()
        values = logits.argmax(dim=1).float() if classes else logits[:, 0]
        out[rows] = torch.where(logits.isfinite().all(dim=1), values, torch.nan).numpy()
    return out


def main_score(scores: dict[str, dict[str, float]]) -> float:
    """One number for a task: the mean of its metrics on the first dev set, as GLUE averages them."""
    return float(np.mean(list(next(iter(scores.values())).values())))
