"""One training step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import TrainConfig
from sentence_distill.student.dataset import Batch
from sentence_distill.student.distributed import ProcessGroup
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.losses import distillation_loss

# What the CPU's allocator, cuDNN and cuBLAS say in a RuntimeError of no kind of its own.
_NO_MEMORY = ("can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Words:
    """The word embeddings of a batch, each different one once.

    Args:
        words: int64[u], the different token ids, ascending.
        rows: float32[u, embedding_dim], their embeddings, a leaf that gathers their gradient.
        places: int64[b, length], for each token its place in `words`.
        weights: float32[b, length] or float32[b, length, 1] to multiply with under dropout, or None.
    """

    words: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    weights: torch.Tensor | None


class Stepper:
    """Computes gradients.

    Attributes:
        pieces: parts in which a process computes its share of a batch; doubled whenever memory runs out.
    """

    def __init__(
        self, encoder: StudentEncoder, config: TrainConfig, precision: torch.dtype, group: ProcessGroup
    ) -> None:
        self.encoder = encoder
        self.pieces = 1
        self._config = config
        self._precision = precision
        self._group = group

    def gradient(self, batch: Batch, step: int) -> tuple[torch.Tensor, Words]:
        """Compute the gradient of a batch's loss, this process's part of it.

        Args:
            batch: of all processes.
            step: its number in the run; with the seed it decides what dropout drops, on any number of processes.

        Returns:
            loss: float32[b], of each sentence, without graph.
            words: whose rows hold their gradient.

        Raises:
            UserError: not even a single sentence fits into memory.
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
        """To the device of the run, without a wait for what it is computing."""
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
        """Vectors of this process's rows; with a graph if all are computed at once."""
        while True:
            try:
                with torch.set_grad_enabled(self.pieces == 1):
                    return torch.cat([self._vectors(words, piece) for piece in share.chunk(self.pieces)])
            except RuntimeError as error:
                self._halve(error, len(share))

    def _backward(
        self, words: Words, share: torch.Tensor, vectors: list[torch.Tensor], gradient: torch.Tensor | None
    ) -> None:
        """From the gradient of the vectors to that of the weights.

        In several pieces each is computed once more, now with its graph: the relational loss needs all vectors of
        a batch before it gives any gradient (gradient caching, Gao et al. 2021, arXiv:2101.06983).
        """
        for weight in (*self.encoder.parameters(), words.rows):
            weight.grad = None
        while gradient is not None and len(share):
            try:
                if vectors and vectors[0].requires_grad:
                    vectors.pop().backward(gradient)
                else:
                    for piece, part in zip(share.chunk(self.pieces), gradient.chunk(self.pieces), strict=True):
                        self._vectors(words, piece).backward(part)
                break
            except RuntimeError as error:
                self._halve(error, len(share))
                for weight in (*self.encoder.parameters(), words.rows):
                    weight.grad = None

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
        """Projections to all target layers side by side, float32[len(share), sum of dims]."""
        if not len(share):
            return words.rows.new_empty(0, sum(self.encoder.config.target_dims))
        embedded = functional.embedding(words.places[share], words.rows)
        if words.weights is not None:
            embedded = embedded * words.weights[share]
        with torch.autocast(embedded.device.type, dtype=torch.bfloat16, enabled=self._precision == torch.bfloat16):
            pooled = self.encoder.pool_words(embedded)
        return torch.cat(self.encoder.targets(pooled), dim=1)
