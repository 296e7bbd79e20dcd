"""One training step: the distillation loss, its gradient, and the update of the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import TrainConfig
from sentence_distill.student.dataset import Batch
from sentence_distill.student.distributed import ProcessGroup
from sentence_distill.student.encoder import StudentEncoder

# What the CPU's allocator, cuDNN and cuBLAS say in a RuntimeError of no kind of its own.
_NO_MEMORY = ("can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
# Decay of the second moment a step, and what keeps the quotient finite: torch.optim.Adam's own.
_BETA, _EPSILON = 0.999, 1e-8


def distillation_loss(vectors: Sequence[torch.Tensor], targets: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Average the weighted losses of each sentence over the target layers, float32[b].

    `vectors` are float32[b, dim] for each layer, `targets` float32[b, sum of dims], the layers side by side.
    """
    losses = []
    for vector, target in zip(vectors, targets.split([each.shape[1] for each in vectors], dim=1), strict=True):
        loss = vector.new_zeros(len(vector))
        if config.cosine:
            loss = loss + config.cosine * (1 - functional.cosine_similarity(vector, target, dim=1))
        if config.mse:
            loss = loss + config.mse * (vector - target).square().mean(dim=1)
        if config.relational:
            loss = loss + config.relational * relational_loss(vector, target, config.temperature)
        losses.append(loss)
    return torch.stack(losses).mean(dim=0)


def relational_loss(vectors: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how far the student's neighbours of each sentence are from the teacher's, float32[b]; 0 for a lone one.

    Kullback-Leibler divergence of the student's from the teacher's distribution over the other sentences of the
    batch, a softmax of the cosines divided by `temperature`: SEED (Fang et al. 2021, arXiv:2101.04731, eq. 2
    to 5), with the batch in place of its queue.
    """
    count = len(vectors)
    if count < 2:
        return vectors.sum(dim=1) * 0.0
    # No sentence is its own neighbour.
    others = ~torch.eye(count, dtype=torch.bool, device=vectors.device)

    def log_neighbours(side: torch.Tensor) -> torch.Tensor:
        unit = functional.normalize(side, dim=1)
        return functional.log_softmax((unit @ unit.T)[others].view(count, count - 1) / temperature, dim=1)

    student, teacher = log_neighbours(vectors), log_neighbours(targets)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True)
class Words:
    """The word embeddings of a batch, each different one once."""

    words: torch.Tensor
    """int64[u], the different token ids, ascending."""
    rows: torch.Tensor
    """float32[u, embedding_dim], their embeddings, a leaf that gathers their gradient."""
    places: torch.Tensor
    """int64[b, length], for each token its place in `words`."""
    weights: torch.Tensor | None
    """float32[b, length, 1] to multiply with under dropout."""


class Stepper:
    """Computes gradients."""

    def __init__(
        self, encoder: StudentEncoder, config: TrainConfig, precision: torch.dtype, group: ProcessGroup
    ) -> None:
        self.encoder = encoder
        self.pieces = 1
        """Parts in which a process computes its share of a batch; doubled whenever memory runs out."""
        self._config, self._precision, self._group = config, precision, group

    def gradient(self, batch: Batch, step: int) -> tuple[torch.Tensor, Words]:
        """Compute the loss of each sentence, float32[b] without graph, and this process's part of its gradient.

        `step` decides with the seed what dropout drops, the same on any number of processes.
        """
        words = self._words(batch.input_ids, step)
        targets = self._move(batch.targets).float()
        share = torch.arange(len(targets), device=targets.device)[self._group.share]
        # In a list of its own, so that the graph of a pass that ran out of memory can be let go of.
        vectors = [self._forward(words, share)]
        leaf = vectors[0].detach().requires_grad_()
        whole = self._group.gather(leaf, len(targets))
        loss = distillation_loss(whole.split(self.encoder.config.target_dims, dim=1), targets, self._config)
        (loss.sum() / self._config.batch_size).backward()
        self._backward(words, share, vectors, leaf.grad)
        return loss.detach(), words

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy to the device of the run, without a wait for what it is computing."""
        if self._group.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._group.device, non_blocking=True)

    def _words(self, input_ids: torch.Tensor, step: int) -> Words:
        # On the CPU, where the size of the result is known without a wait for the device.
        unique, places = torch.unique(input_ids, return_inverse=True)
        words = self._move(unique)
        rows = self.encoder.embedding.weight.detach()[words].requires_grad_()
        return Words(words, rows, self._move(places), self._dropout(input_ids, step))

    def _dropout(self, input_ids: torch.Tensor, step: int) -> torch.Tensor | None:
        token, embedding = self._config.token_dropout, self._config.embedding_dropout
        if not token and not embedding:
            return None
        # Drawn on the CPU for the whole batch, so that it is the same on any device and number of processes.
        rng = np.random.default_rng([self._config.seed, step])
        weights = torch.from_numpy(rng.random(input_ids.shape) >= token).float()
        if embedding:
            table = torch.from_numpy(rng.random(self.encoder.config.vocabulary) >= embedding)
            weights *= table[input_ids] / (1 - embedding)
        return self._move(weights[:, :, None])

    def _forward(self, words: Words, share: torch.Tensor) -> torch.Tensor:
        """Encode this process's rows; with a graph if all are computed at once."""
        while True:
            try:
                with torch.set_grad_enabled(self.pieces == 1):
                    return torch.cat([self._vectors(words, piece) for piece in share.chunk(self.pieces)])
            except RuntimeError as error:
                self._halve(error, len(share))

    def _backward(
        self, words: Words, share: torch.Tensor, vectors: list[torch.Tensor], gradient: torch.Tensor | None
    ) -> None:
        """Go from the gradient of the vectors to that of the weights.

        In several pieces each is computed once more, now with its graph: the relational loss needs all vectors of
        a batch before it gives any gradient (gradient caching, Gao et al. 2021, arXiv:2101.06983).
        """
        while True:
            for weight in (*self.encoder.parameters(), words.rows):
                weight.grad = None
            if gradient is None or not len(share):
                return
            try:
                if vectors and vectors[0].requires_grad:
                    vectors.pop().backward(gradient)
                else:
                    for piece, part in zip(share.chunk(self.pieces), gradient.chunk(self.pieces), strict=True):
                        self._vectors(words, piece).backward(part)
                return
            except RuntimeError as error:
                self._halve(error, len(share))

    def _halve(self, error: RuntimeError, rows: int) -> None:
        """Compute in pieces half as large from now on, if it is memory that ran out."""
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise error
        if self.pieces >= rows:
            raise UserError(
                "a single sentence does not fit into memory; take a smaller --hidden or fewer --layers"
            ) from error
        self.pieces *= 2
        if self._group.device.type == "cuda":
            torch.cuda.empty_cache()

    def _vectors(self, words: Words, share: torch.Tensor) -> torch.Tensor:
        """Project rows to all target layers side by side, float32[len(share), sum of dims]."""
        if not len(share):
            return words.rows.new_empty(0, sum(self.encoder.config.target_dims))
        embedded = functional.embedding(words.places[share], words.rows)
        if words.weights is not None:
            embedded = embedded * words.weights[share]
        with torch.autocast(embedded.device.type, dtype=torch.bfloat16, enabled=self._precision == torch.bfloat16):
            pooled = self.encoder.pool_words(embedded)
        return torch.cat(self.encoder.targets(pooled), dim=1)


def learning_rate(done: float, config: TrainConfig) -> float:
    """Return the rate after the share `done` of the run: linear warm-up, then half a cosine down to 0."""
    if done < config.warmup:
        return config.learning_rate * done / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / max(1e-9, 1 - config.warmup)))


class RowAdam:
    """What torch.optim.Adam with betas of (0, 0.999) does to a whole table, at the cost of the rows of a step.

    A row's second moment decays with every step, also with those that have no gradient for it; that is made up for when
    the row is next touched. So a word that is in a share p of the batches moves by about rate / sqrt(p) each time. In
    torch.optim.SparseAdam, whose moments know nothing of the steps between, every word moves by the rate, and rare ones
    hardly get away from where they began. A first moment would hand a gradient out over steps that mostly lack the row,
    so there is none.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table
        self._steps = 0
        self._second = torch.zeros_like(table)
        # The step that last touched each row.
        self._touched = torch.zeros(len(table), dtype=torch.int64, device=table.device)

    @torch.no_grad()
    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Update `rows`, int64[u] and all different, by their gradient, float32[u, width]."""
        self._steps += 1
        decay = _BETA ** (self._steps - self._touched[rows])[:, None].float()
        second = self._second[rows] * decay + (1 - _BETA) * gradient * gradient
        self._second[rows] = second
        self._touched[rows] = self._steps
        unbiased = second / (1 - _BETA**self._steps)
        self._table.index_add_(0, rows, gradient / (unbiased.sqrt() + _EPSILON), alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {"steps": self._steps, "second": self._second, "touched": self._touched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self._steps = state["steps"]
        self._second.copy_(state["second"])
        self._touched.copy_(state["touched"])


class Optimizer:
    """AdamW for the dense weights, and RowAdam for the word embeddings.

    Those are most of a student's weights, and a batch touches few of them: nothing passes over their whole table.
    """

    def __init__(self, encoder: StudentEncoder, config: TrainConfig) -> None:
        table = encoder.embedding.weight
        self.dense = [weight for weight in encoder.parameters() if weight is not table]
        """All weights but the word embeddings."""
        self._config = config
        self._adamw = torch.optim.AdamW(
            self.dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._words = RowAdam(table.data)
        self.rate = 0.0
        """Learning rate of the last step."""

    def step(self, rate: float, words: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Update the weights from their gradients and clear those; return the gradient's norm before clipping."""
        self.rate = self._adamw.param_groups[0]["lr"] = rate
        assert rows.grad is not None
        norm = clip_grad_norm_([*self.dense, rows], self._config.clip)
        self._adamw.step()
        self._words.step(words, rows.grad, rate * self._config.embedding_rate)
        self._adamw.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both to resume from."""
        return {"adamw": self._adamw.state_dict(), "words": self._words.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self._adamw.load_state_dict(state["adamw"])
        self._words.load_state_dict(state["words"])
