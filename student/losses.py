"""The distillation loss."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from sentence_distill.student.config import TrainConfig


def distillation_loss(vectors: Sequence[torch.Tensor], targets: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Mean over target layers of the weighted losses of each sentence.

    Args:
        vectors: for each target layer float32[b, dim], the student's projection.
        targets: float32[b, sum of dims], the teacher's layers side by side.
        config: the weights `cosine`, `mse` and `relational`, and the latter's `temperature`.

    Returns:
        float32[b].
    """
    parts = targets.split([vector.shape[1] for vector in vectors], dim=1)
    losses = [_loss(vector, part, config) for vector, part in zip(vectors, parts, strict=True)]
    return torch.stack(losses).mean(dim=0)


def _loss(vectors: torch.Tensor, targets: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    loss = vectors.new_zeros(len(vectors))
    if config.cosine:
        loss = loss + config.cosine * (1 - functional.cosine_similarity(vectors, targets, dim=1))
    if config.mse:
        loss = loss + config.mse * (vectors - targets).square().mean(dim=1)
    if config.relational:
        loss = loss + config.relational * relational_loss(vectors, targets, config.temperature)
    return loss


def relational_loss(vectors: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far the student's neighbours of each sentence are from the teacher's.

    Kullback-Leibler divergence of the student's from the teacher's distribution over the other sentences of the
    batch, a softmax of the cosines divided by `temperature`: SEED (Fang et al. 2021, arXiv:2101.04731, eq. 2
    to 5), with the batch in place of its queue.

    Args:
        vectors: float32[b, dim], the student's.
        targets: float32[b, dim], the teacher's.
        temperature: of both.

    Returns:
        float32[b]; zeros where the batch is a single sentence.
    """
    if len(vectors) < 2:
        return vectors.sum(dim=1) * 0.0
    student, teacher = (_log_neighbours(side, temperature) for side in (vectors, targets))
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def _log_neighbours(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities float32[b, b - 1] of each sentence's neighbours; it is not its own."""
    unit = functional.normalize(vectors, dim=1)
    count = len(unit)
    others = ~torch.eye(count, dtype=torch.bool, device=unit.device)
    return functional.log_softmax((unit @ unit.T)[others].view(count, count - 1) / temperature, dim=1)
