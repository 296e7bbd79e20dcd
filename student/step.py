"""A training step: the distillation loss, its gradient, and the update of the weights.

Most weights of a student are word embeddings, and a batch touches few rows of them. So gradient, all-reduce and update
are restricted to the distinct words of a batch: `Words` holds a small table of these rows, which replaces that of
`nn.Embedding` in the graph, and `RowAdam` updates only them.
"""

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

# Texts by which to recognize a RuntimeError of the CPU's allocator, cuDNN or cuBLAS as a lack of memory.
_NO_MEMORY = ("can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
# Decay of the second moment per step, and the term that keeps the quotient finite, as in torch.optim.Adam.
_BETA, _EPSILON = 0.999, 1e-8


def distillation_loss(vectors: Sequence[torch.Tensor], targets: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return the loss of each sentence, float32[b]: weighted losses, averaged over the target layers.

    `vectors` has float32[b, dim] for each layer; `targets` is float32[b, sum of dims], with the layers concatenated.
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
    """Return the divergence between the teacher's and the student's similarities in the batch, float32[b].

    For each sentence, the softmax of its cosines to the other sentences, divided by `temperature`, is a distribution
    over them; the loss is the Kullback-Leibler divergence of the student's distribution from the teacher's. This is
    SEED (Fang et al. 2021, arXiv:2101.04731, eq. 2 to 5), with the batch in place of its queue. The loss of a single
    sentence is 0.
    """
    count = len(vectors)
    if count < 2:
        # Keeps the graph, so that backward works as usual.
        return vectors.sum(dim=1) * 0.0
    # A sentence is not its own neighbor.
    others = ~torch.eye(count, dtype=torch.bool, device=vectors.device)

    def log_neighbors(side: torch.Tensor) -> torch.Tensor:
        unit = functional.normalize(side, dim=1)
        return functional.log_softmax((unit @ unit.T)[others].view(count, count - 1) / temperature, dim=1)

    student, teacher = log_neighbors(vectors), log_neighbors(targets)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True)
class Words:
    """The distinct words of a batch and their embeddings."""

    words: torch.Tensor
    """int64[u], the distinct token ids, ascending."""
    rows: torch.Tensor
    """float32[u, embedding_dim], their embeddings, a leaf tensor whose gradient sums over all occurrences of a word."""
    places: torch.Tensor
    """int64[b, length], index of each token in `words`."""
    weights: torch.Tensor | None
    """float32[b, length, 1], factors of dropout; None without dropout."""


class Stepper:
    """Computation of the gradient of a batch, distributed over processes and within the available memory.

    The relational loss compares all sentences of a batch, so it needs the vectors of all processes at once. A step
    therefore has three parts: encode this process's rows, gather the vectors of the whole batch and differentiate the
    loss with respect to them, then backpropagate this gradient through the rows of this process.
    """

    def __init__(
        self, encoder: StudentEncoder, config: TrainConfig, precision: torch.dtype, group: ProcessGroup
    ) -> None:
        self.encoder = encoder
        self.pieces = 1
        """Number of parts in which a process computes its rows of a batch; doubled whenever memory runs out."""
        self._config, self._precision, self._group = config, precision, group

    def gradient(self, batch: Batch, step: int) -> tuple[torch.Tensor, Words]:
        """Return the loss of each sentence, float32[b], and the words of the batch; set this process's gradients.

        Gradients are those of the sum of losses, divided by the configured batch size and not by the length of the
        batch, so that a sentence in a small batch weighs the same as one in a full batch. The seed and `step` decide
        what dropout drops, on any number of processes.
        """
        words = self._words(batch.input_ids, step)
        targets = self._move(batch.targets).float()
        share = torch.arange(len(targets), device=targets.device)[self._group.share]
        # In a list, so that `_backward` can drop the last reference to the graph when memory runs out.
        vectors = [self._forward(words, share)]
        # The graph is cut here: the loss is differentiated with respect to the vectors first.
        leaf = vectors[0].detach().requires_grad_()
        whole = self._group.gather(leaf, len(targets))
        loss = distillation_loss(whole.split(self.encoder.config.target_dims, dim=1), targets, self._config)
        (loss.sum() / self._config.batch_size).backward()
        self._backward(words, share, vectors, leaf.grad)
        return loss.detach(), words

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device of the run without waiting for pending computation."""
        if self._group.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._group.device, non_blocking=True)

    def _words(self, input_ids: torch.Tensor, step: int) -> Words:
        # On the CPU: a GPU would have to synchronize, because the size of the result depends on the data.
        unique, places = torch.unique(input_ids, return_inverse=True)
        words = self._move(unique)
        rows = self.encoder.embedding.weight.detach()[words].requires_grad_()
        return Words(words, rows, self._move(places), self._dropout(input_ids, step))

    def _dropout(self, input_ids: torch.Tensor, step: int) -> torch.Tensor | None:
        token, embedding = self._config.token_dropout, self._config.embedding_dropout
        if not token and not embedding:
            return None
        # Drawn on the CPU for the whole batch, so that masks are the same on any device and number of processes.
        rng = np.random.default_rng([self._config.seed, step])
        weights = torch.from_numpy(rng.random(input_ids.shape) >= token).float()
        if embedding:
            # Drops words as types: all occurrences of a word in the batch, or none.
            table = torch.from_numpy(rng.random(self.encoder.config.vocabulary) >= embedding)
            weights *= table[input_ids] / (1 - embedding)
        return self._move(weights[:, :, None])

    def _forward(self, words: Words, share: torch.Tensor) -> torch.Tensor:
        """Encode the rows of this process; a graph is kept only if they are computed in one piece."""
        while True:
            try:
                with torch.set_grad_enabled(self.pieces == 1):
                    return torch.cat([self._vectors(words, piece) for piece in share.chunk(self.pieces)])
            except RuntimeError as error:
                self._halve(error, len(share))

    def _backward(
        self, words: Words, share: torch.Tensor, vectors: list[torch.Tensor], gradient: torch.Tensor | None
    ) -> None:
        """Backpropagate the gradient of the vectors to the weights.

        With several pieces, each piece is encoded again, this time with its graph: the relational loss needs the
        vectors of the whole batch before it has any gradient (gradient caching, Gao et al. 2021, arXiv:2101.06983).
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
        """Halve the size of the pieces from now on if memory ran out; raise any other error again."""
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise error
        if self.pieces >= rows:
            raise UserError("a single sentence does not fit into memory; lower --hidden or --layers") from error
        self.pieces *= 2
        if self._group.device.type == "cuda":
            torch.cuda.empty_cache()

    def _vectors(self, words: Words, share: torch.Tensor) -> torch.Tensor:
        """Encode rows of the batch to all target layers, concatenated: float32[len(share), sum of dims]."""
        if not len(share):
            return words.rows.new_empty(0, sum(self.encoder.config.target_dims))
        embedded = functional.embedding(words.places[share], words.rows)
        if words.weights is not None:
            embedded = embedded * words.weights[share]
        with torch.autocast(embedded.device.type, dtype=torch.bfloat16, enabled=self._precision == torch.bfloat16):
            pooled = self.encoder.pool_words(embedded)
        return torch.cat(self.encoder.targets(pooled), dim=1)


def learning_rate(done: float, config: TrainConfig) -> float:
    """Return the learning rate after a share `done` of the run: linear warmup, then cosine decay to 0."""
    if done < config.warmup:
        return config.learning_rate * done / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / max(1e-9, 1 - config.warmup)))


class RowAdam:
    """Adam for the rows of a table, exact but lazy: same result as torch.optim.Adam with betas of (0, 0.999).

    Adam decays the second moment of every row in every step, even if the row has no gradient. Here a row is touched
    only when it has a gradient, and its second moment then catches up on the decay of all steps since the last time,
    by a power of beta. The cost of a step depends on the words of the batch, not on the size of the vocabulary.

    The decay matters for rare words. If a word occurs in a share p of the batches, its second moment is about p times
    the squared gradient, so each update moves it by about rate / sqrt(p). In torch.optim.SparseAdam, whose moments do
    not decay in between, every word moves by about the rate, and rare words hardly leave their initial position. There
    is no first moment, because it would spread a gradient over later steps, most of which do not touch the row.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table
        self._steps = 0
        self._second = torch.zeros_like(table)
        # Last step in which each row had a gradient.
        self._touched = torch.zeros(len(table), dtype=torch.int64, device=table.device)

    @torch.no_grad()
    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Update the distinct rows int64[u] by their gradient, float32[u, width]."""
        self._steps += 1
        # Catch up on the decay of all steps since each row was last touched, including this one.
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
    """AdamW for the dense weights, and `RowAdam` for the word embeddings."""

    def __init__(self, encoder: StudentEncoder, config: TrainConfig) -> None:
        table = encoder.embedding.weight
        self.dense = [weight for weight in encoder.parameters() if weight is not table]
        """All weights except the word embeddings."""
        self._config = config
        self._adamw = torch.optim.AdamW(
            self.dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._words = RowAdam(table.data)
        self.rate = 0.0
        """Learning rate of the last step."""

    def step(self, rate: float, words: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Update all weights and clear their gradients; return the norm of the gradient before clipping."""
        self.rate = self._adamw.param_groups[0]["lr"] = rate
        assert rows.grad is not None
        norm = clip_grad_norm_([*self.dense, rows], self._config.clip)
        self._adamw.step()
        self._words.step(words, rows.grad, rate * self._config.embedding_rate)
        self._adamw.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers to resume from."""
        return {"adamw": self._adamw.state_dict(), "words": self._words.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self._adamw.load_state_dict(state["adamw"])
        self._words.load_state_dict(state["words"])
