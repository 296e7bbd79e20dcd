"""The optimizer and its schedule."""

import math
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from sentence_distill.student.config import TrainConfig
from sentence_distill.student.encoder import StudentEncoder

# Decay of the second moment a step, and what keeps the quotient finite: torch.optim.Adam's own.
_BETA, _EPSILON = 0.999, 1e-8


class RowAdam:
    """What torch.optim.Adam with betas of (0, 0.999) does to a whole table, at the cost of the rows of a step.

    A row's second moment decays with every step, also with those that have no gradient for it; that is made up for when
    the row is next touched. So a word that is in a share p of the batches moves by about rate / sqrt(p) each time. In
    torch.optim.SparseAdam, whose moments know nothing of the steps between, every word moves by the rate, and rare ones
    hardly get away from where they began. A first moment would hand a gradient out over steps that mostly lack the row,
    so there is none.
    """

    def __init__(self, table: torch.Tensor) -> None:
        """Begin.

        Args:
            table: float32[n, width], updated in place.
        """
        self._table = table
        self._steps = 0
        self._second = torch.zeros_like(table)
        # The step that last touched each row.
        self._touched = torch.zeros(len(table), dtype=torch.int64, device=table.device)

    @torch.no_grad()
    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Update some rows.

        Args:
            rows: int64[u], all different.
            gradient: float32[u, width], theirs.
            rate: learning rate.
        """
        self._steps += 1
        decay = _BETA ** (self._steps - self._touched[rows])[:, None].float()
        second = self._second[rows] * decay + (1 - _BETA) * gradient * gradient
        self._second[rows] = second
        self._touched[rows] = self._steps
        unbiased = second / (1 - _BETA**self._steps)
        self._table.index_add_(0, rows, gradient / (unbiased.sqrt() + _EPSILON), alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        """State to go on from."""
        return {"steps": self._steps, "second": self._second, "touched": self._touched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._steps = state["steps"]
        self._second.copy_(state["second"])
        self._touched.copy_(state["touched"])


# Optimizers of a student: its word embeddings are most of its weights, and a batch touches few of them.


def learning_rate(done: float, config: TrainConfig) -> float:
    """Learning rate after the share `done` of the run: linear warm-up, then half a cosine down to 0."""
    if done < config.warmup:
        return config.learning_rate * done / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / max(1e-9, 1 - config.warmup)))


class Optimizer:
    """AdamW for the dense weights, and RowAdam for the word embeddings: nothing passes over their whole table.

    Attributes:
        dense: all weights but the word embeddings.
        rate: learning rate of the last step.
    """

    def __init__(self, encoder: StudentEncoder, config: TrainConfig) -> None:
        table = encoder.embedding.weight
        self.dense = [weight for weight in encoder.parameters() if weight is not table]
        self._clip = config.clip
        self._embedding_rate = config.embedding_rate
        self._adamw = torch.optim.AdamW(
            self.dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._words = RowAdam(table.data)
        self.rate = 0.0

    def step(self, rate: float, words: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Update the weights from their gradients, and clear those.

        Args:
            rate: learning rate of the dense weights.
            words: int64[u], the different token ids of the batch, ascending.
            rows: float32[u, embedding_dim] with a gradient, the embeddings of `words`.

        Returns:
            Norm of the gradient before it was clipped.
        """
        self.rate = rate
        self._adamw.param_groups[0]["lr"] = rate
        assert rows.grad is not None
        norm = clip_grad_norm_([*self.dense, rows], self._clip)
        self._adamw.step()
        self._words.step(words, rows.grad, rate * self._embedding_rate)
        self._adamw.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """State of both."""
        return {"adamw": self._adamw.state_dict(), "words": self._words.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._adamw.load_state_dict(state["adamw"])
        self._words.load_state_dict(state["words"])
